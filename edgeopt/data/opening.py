"""Opening data: finding the sources, splitting, and checking everything before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt import user_code
from edgeopt.data.binding import Binding
from edgeopt.data.evaluation import Evaluation
from edgeopt.data.samples import DataSamples, spread
from edgeopt.data.sources import IMAGES, LABEL, UNNAMED, Sample, Source, open_function, open_path
from edgeopt.data.spec import DataSpec, SourceSpec
from edgeopt.errors import DataError
from edgeopt.metrics.base import Metric
from edgeopt.session import TensorSpec

FILES = {"calibrate": "calibration", "validate": "validation", "evaluate": "evaluation"}
"""Per part the name of its file or folder, without suffix."""

VALIDATION_FROM = 50
"""Below this many calibration samples none are set aside for validation."""


@dataclass(frozen=True, slots=True)
class Data:
    """The three parts, opened and checked.

    Attributes:
        calibrate: What passes may calibrate on.
        validate: What decides between alternatives; ``calibrate`` itself where there are few samples.
        evaluate: Sealed; for the judge.
        notes: Sentences for the report: conversions, a missing split, samples in two parts.
    """

    calibrate: DataSamples | None
    validate: DataSamples | None
    evaluate: Evaluation | None
    notes: tuple[str, ...] = ()


def open_data(
    spec: DataSpec,
    inputs: Sequence[TensorSpec] | None,
    metric: Metric | None = None,
    *,
    outputs: Sequence[TensorSpec] = (),
    base: Path | None = None,
    code: bool = True,
) -> Data:
    """Opens all parts of the data and checks them: one pass over every sample, in bounded memory.

    Args:
        spec: Where they are.
        inputs: The model's inputs; ``None`` where a harness takes the samples as they are.
        metric: What will judge; its labels are checked.
        outputs: The model's outputs, which say how many classes there are.
        base: The folder that relative paths start from; the current one by default.
        code: False refuses ``package.module:function``.

    Raises:
        DataError: Something is missing or does not fit the model or the metric.
        UserError: Code is refused or cannot be imported.
    """
    opener = _Opener(inputs, metric, _classes(outputs, metric), spec, base, code)
    found = opener.sources()
    notes: list[str] = []
    opened: dict[str, DataSamples] = {}
    for part, (source, indices) in found.items():
        chosen = {"calibrate": spec.calibrate, "validate": spec.validate_, "evaluate": spec.evaluate}[part]
        limit = chosen.samples if chosen else None
        if limit is not None and limit < len(indices):
            indices = [indices[position] for position in spread(len(indices), limit)]
        opened[part] = opener.open(part, source, indices)
    calibrate, validate = opened.get("calibrate"), opened.get("validate")
    if calibrate is not None and validate is None:
        calibrate, validate = _split(calibrate)
        if validate is calibrate:
            notes.append(
                f"{len(calibrate)} calibration samples are too few to set some aside: alternatives are "
                "decided on the calibration samples themselves"
            )
    evaluate = opened.get("evaluate")
    notes += opener.notes
    notes += _overlap(calibrate, validate if validate is not calibrate else None, evaluate)
    return Data(calibrate, validate, None if evaluate is None else Evaluation(evaluate), tuple(notes))


class _Opener:
    """What opening every part shares."""

    def __init__(
        self,
        inputs: Sequence[TensorSpec] | None,
        metric: Metric | None,
        classes: int | None,
        spec: DataSpec,
        base: Path | None,
        code: bool,
    ) -> None:
        self.inputs = inputs
        self.metric = metric
        self.classes = classes
        self.spec = spec
        self.base = base
        self.code = code
        self.notes: list[str] = []

    def sources(self) -> dict[str, tuple[Source, list[int]]]:
        """Finds every part's source and the indices of its samples there."""
        spec = self.spec
        found = self._from_path(spec.path) if spec.path is not None else {}
        for part, chosen in (
            ("calibrate", spec.calibrate),
            ("validate", spec.validate_),
            ("evaluate", spec.evaluate),
        ):
            if chosen is not None and chosen.path is not None:
                found[part] = self._chosen(part, chosen)
        if not found:
            raise DataError("no part of the data has a source", hint="--data PATH")
        return dict(sorted(found.items(), key=lambda entry: list(FILES).index(entry[0])))

    def _source(self, path: str) -> Source:
        if user_code.is_code(path):
            return open_function(path, base=self.base, code=self.code)
        return open_path((self.base or Path()) / path)

    def _chosen(self, part: str, chosen: SourceSpec) -> tuple[Source, list[int]]:
        source = self._source(chosen.path or "")
        indices = list(range(len(source)))
        if source.split:
            indices = [index for index in indices if source.part(index) == part]
        return source, indices

    def _from_path(self, path: str) -> dict[str, tuple[Source, list[int]]]:
        folder = (self.base or Path()) / path
        if not user_code.is_code(path) and folder.is_dir():
            present: dict[str, tuple[Source, list[int]]] = {}
            for part, stem in FILES.items():
                for name in (f"{stem}.npz", f"{stem}.npy", stem):
                    if (folder / name).exists():
                        source = open_path(folder / name)
                        present[part] = (source, list(range(len(source))))
                        break
            if present:
                return present
            if not (folder / "labels.csv").is_file() and not _has_images(folder):
                arrays = sorted(file.name for file in folder.glob("*.np[yz]"))
                raise DataError(
                    "the folder holds no calibration.npz, no evaluation.npz and no images"
                    + (f"; it holds {', '.join(arrays)}" if arrays else ""),
                    where=str(folder),
                    hint="name the files like that, or give one file, which is then split",
                )
        source = self._source(path)
        if source.split:
            parts: dict[str, list[int]] = {}
            for index in range(len(source)):
                if (assigned := source.part(index)) is not None:
                    parts.setdefault(assigned, []).append(index)
            return {part: (source, indices) for part, indices in parts.items()}
        indices = range(len(source))
        return {
            "calibrate": (source, [index for index in indices if index % 5 == 0]),
            "evaluate": (source, [index for index in indices if index % 5 != 0]),
        }

    def open(self, part: str, source: Source, indices: Sequence[int]) -> DataSamples:
        """Checks one part, sample by sample."""
        where = f"{source.where} ({part})"
        if not indices:
            raise DataError(f"the data set to {part} on is empty", where=source.where)
        preprocess = self.spec.preprocess
        binding = None if self.inputs is None else Binding(self.inputs, preprocess, where)
        first = next(source.rows(indices[:1]))
        if binding is not None:
            extra = binding.check_names(list(first))
            if extra:
                self._note(f"{source.where}: {', '.join(extra)}: no input of the model, left to the metric")
        digests: list[bytes] = []
        labelled = 0
        if source.images:  # decoding all of them only to check would double the work
            if binding is not None:
                binding.row(first, indices[0])
            digests = [source.digest({}, index) for index in indices]
            if LABEL in first:
                for index, label in zip(indices, source.labels(indices), strict=True):
                    self._check_label(index, label, where)
                labelled = len(indices)
        else:
            for index, sample in zip(indices, source.rows(indices), strict=True):
                _check_finite(sample, index, where)
                if binding is not None:
                    binding.row(sample, index)
                digests.append(source.digest(sample, index))
                if LABEL in sample:
                    self._check_label(index, sample[LABEL], where)
                    labelled += 1
        needed = self.metric is not None and self.metric.needs_labels and part == "evaluate"
        if self.metric is not None and needed and labelled < len(indices):
            missing = "none" if labelled == 0 else f"{labelled} for {len(indices)} samples"
            raise DataError(
                f"the metric {self.metric.name} needs labels, and the data have {missing}",
                where=where,
                hint="add an array 'label', one entry a sample",
            )
        if binding is not None:
            for cast in binding.casts.values():
                self._note(cast)
        return DataSamples(source, indices, digests, binding, preprocess, labelled == len(indices))

    def _check_label(self, index: int, label: Any, where: str) -> None:
        if self.metric is not None:
            self.metric.check_label(label, index, self.classes, where)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _check_finite(sample: Sample, index: int, where: str) -> None:
    for name, value in sample.items():
        array = np.asarray(value) if not isinstance(value, (list, tuple, str, dict)) else None
        if array is None or array.dtype.kind != "f" or np.isfinite(array).all():
            continue
        kind = "NaN" if np.isnan(array).any() else "Inf"
        shown = name if name != UNNAMED else "the input"
        raise DataError(f"sample {index} has {kind} in {shown!r}", where=where)


def _split(samples: DataSamples) -> tuple[DataSamples, DataSamples]:
    """Sets samples aside for validation: those with i % 5 == 4."""
    if len(samples) < VALIDATION_FROM:
        return samples, samples
    kept = [position for position in range(len(samples)) if position % 5 != 4]
    aside = [position for position in range(len(samples)) if position % 5 == 4]
    return samples.subset(kept), samples.subset(aside)


def _overlap(
    calibrate: DataSamples | None, validate: DataSamples | None, evaluate: DataSamples | None
) -> list[str]:
    """Warns of samples that are in the evaluation data and in another part."""
    if evaluate is None:
        return []
    notes = []
    evaluated = set(evaluate.sample_digests)
    for name, part in (("calibration", calibrate), ("validation", validate)):
        shared = len(evaluated.intersection(part.sample_digests)) if part is not None else 0
        if shared:
            notes.append(
                f"warning: {shared} of the {len(evaluate)} evaluation samples "
                f"{'is' if shared == 1 else 'are'} also in the {name} samples, "
                "so the accuracy may look better than it is"
            )
    return notes


def _classes(outputs: Sequence[TensorSpec], metric: Metric | None) -> int | None:
    """The number of classes, where the output that the metric reads says it."""
    chosen = [
        spec for spec in outputs if metric is None or metric.output is None or spec.name == metric.output
    ]
    if len(chosen) != 1 or not chosen[0].shape:
        return None
    sizes = [size for size in chosen[0].shape[1:] if size != 1] or list(chosen[0].shape[-1:])
    return sizes[0] if len(sizes) == 1 and isinstance(sizes[0], int) else None


def _has_images(folder: Path) -> bool:
    return any(
        path.suffix.lower() in IMAGES
        for pattern in ("*", "*/*")
        for path in folder.glob(pattern)
        if path.is_file()
    )
