"""One part of the data, as passes, harnesses and the judge read it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeopt.data.binding import Binding
from edgeopt.data.sources import LABEL, UNNAMED, Sample, Source
from edgeopt.errors import DataError
from edgeopt.preprocess import Preprocess


@dataclass(frozen=True, slots=True)
class Call:
    """The inputs of one model call, and the samples that they are.

    Attributes:
        feeds: An array per input.
        samples: The raw samples, ``label`` among them, in the order of the batch.
        joined: The samples lie along the first axis of every input.
    """

    feeds: dict[str, np.ndarray]
    samples: tuple[Sample, ...]
    joined: bool


class DataSamples:
    """Samples in a fixed order, read anew each time: memory does not grow with their number.

    Args:
        source: Where they come from.
        indices: Which of the source's samples, ascending.
        digests: One digest a sample.
        binding: How they become a model's inputs; ``None`` where a harness takes them as they are.
        preprocess: For a harness: what happens to images first.
        labelled: Whether they have labels.
    """

    def __init__(
        self,
        source: Source,
        indices: Sequence[int],
        digests: Sequence[bytes],
        binding: Binding | None,
        preprocess: Preprocess | None,
        labelled: bool,
    ) -> None:
        self._source = source
        self._indices = tuple(indices)
        self._digests = tuple(digests)
        self._binding = binding
        self._preprocess = preprocess
        self._labelled = labelled

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def where(self) -> str:
        """The file, folder or function that they come from."""
        return self._source.where

    @property
    def digest(self) -> str:
        """SHA-256 of the samples in order, and of their preprocessing."""
        state = hashlib.sha256(self._preprocess.digest.encode() if self._preprocess else b"")
        for digest in self._digests:
            state.update(digest)
        return state.hexdigest()

    @property
    def sample_digests(self) -> tuple[bytes, ...]:
        """One digest a sample, of its inputs without the label."""
        return self._digests

    @property
    def labels(self) -> np.ndarray | None:
        """One label a sample: one array where they have one shape, else an array of objects."""
        if not self._labelled:
            return None
        values = self._source.labels(self._indices)
        try:
            array = np.asarray(values)
        except ValueError:
            array = np.asarray(None)
        if array.ndim >= 1 and array.dtype.kind in "biufU" and len(array) == len(values):
            return array
        objects = np.empty(len(values), object)
        objects[:] = values
        return objects

    def feeds(self, batch: int = 1) -> Iterator[dict[str, np.ndarray]]:
        """Streams the inputs of model calls.

        Args:
            batch: Up to this many samples a call, where the model takes several and their shapes are
                equal; one otherwise.
        """
        for call in self.calls(batch):
            yield call.feeds

    def calls(self, batch: int = 1) -> Iterator[Call]:
        """Streams model calls together with the samples that they are made of."""
        if self._binding is None:
            for sample in self.items():
                yield Call({k: v for k, v in sample.items() if k != LABEL}, (sample,), False)
            return
        rows: list[dict[str, np.ndarray]] = []
        samples: list[Sample] = []
        shapes: list[tuple[int, ...]] | None = None
        for index, sample in zip(self._indices, self._source.rows(self._indices), strict=True):
            row = self._binding.row(sample, index)
            size = batch if self._binding.batches(row) else 1
            if rows and ([value.shape for value in row.values()] != shapes or len(rows) >= size):
                yield self._call(rows, samples)
                rows, samples = [], []
            shapes = [value.shape for value in row.values()]
            rows.append(row)
            samples.append(sample)
        if rows:
            yield self._call(rows, samples)

    def items(self, *, labels: bool = True) -> Iterator[Sample]:
        """Streams the samples as a harness takes them: images preprocessed, nothing bound.

        An image from a folder is named as preprocessing says, or ``image``.
        """
        for sample in self._source.rows(self._indices):
            item: dict[str, Any] = {k: v for k, v in sample.items() if labels or k != LABEL}
            image = UNNAMED if UNNAMED in item else self._preprocess.input if self._preprocess else None
            if image is not None and image in item:
                value = item.pop(image)
                name = (self._preprocess.input if self._preprocess else None) or "image"
                item[name] = self._preprocess.apply(value) if self._preprocess else value
            yield item

    def limited(self, limit: int | None) -> DataSamples:
        """Returns at most ``limit`` of the samples, evenly spread over all of them."""
        if limit is None or limit >= len(self):
            return self
        return self.subset(spread(len(self), limit))

    def subset(self, positions: Sequence[int]) -> DataSamples:
        """Returns the samples at these positions, which ascend."""
        return DataSamples(
            self._source,
            [self._indices[position] for position in positions],
            [self._digests[position] for position in positions],
            self._binding,
            self._preprocess,
            self._labelled,
        )

    def _call(self, rows: Sequence[dict[str, np.ndarray]], samples: Sequence[Sample]) -> Call:
        if self._binding is None:
            raise DataError("these samples are not bound to a model's inputs")
        joined = all(
            row.ndim == len(spec.shape) - 1 or (row.ndim > 1 and row.shape[0] == 1)
            for spec, row in zip(self._binding.inputs, rows[0].values(), strict=True)
        )
        return Call(self._binding.call(rows), tuple(samples), joined)


def spread(count: int, limit: int) -> list[int]:
    """Returns ``limit`` of ``count`` positions, evenly spread and ascending, the first among them."""
    return [position * count // limit for position in range(limit)]
