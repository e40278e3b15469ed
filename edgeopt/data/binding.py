"""Binding raw samples to the inputs of a model: names, shapes, types, and the batch axis.

A row of an array, that is one sample, goes to an input in one of two ways. A row with one axis less than
the input gets the batch axis in front, and several rows make one call where that axis is symbolic. A
row with as many axes as the input is a whole input by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeopt.data.sources import LABEL, UNNAMED, Sample
from edgeopt.errors import DataError, nearest
from edgeopt.preprocess import Preprocess
from edgeopt.session import TensorSpec


@dataclass(slots=True)
class Binding:
    """How the samples of one source become the inputs of one model.

    Attributes:
        inputs: The model's inputs.
        preprocess: What happens to the image input first.
        where: The source, for messages.
        casts: Per input the conversion that was made, as a sentence; filled as samples are bound.
    """

    inputs: Sequence[TensorSpec]
    preprocess: Preprocess | None
    where: str
    casts: dict[str, str] = field(default_factory=dict)

    def batches(self, row: Mapping[str, np.ndarray]) -> bool:
        """Whether the model takes several rows like this one in one call."""
        return all(
            row[spec.name].ndim == len(spec.shape) - 1 and isinstance(spec.shape[0], str)
            for spec in self.inputs
        )

    @property
    def image_input(self) -> str:
        """The input that preprocessing is for.

        Raises:
            DataError: The model has several and preprocessing names none, or none that exists.
        """
        names = [spec.name for spec in self.inputs]
        asked = self.preprocess.input if self.preprocess else None
        if asked is not None and asked not in names:
            raise DataError(f"the model has no input {asked!r}", nearest=nearest(asked, names) or names)
        if asked is None and len(names) != 1:
            raise DataError(
                f"the model has {len(names)} inputs, and preprocessing does not say which one it is for",
                hint=f"preprocess.input: {names[0] if names else ''}",
            )
        return asked or names[0]

    def check_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """Checks the names of a source's arrays and returns those that are no input.

        Raises:
            DataError: An input has no array.
        """
        wanted = [spec.name for spec in self.inputs]
        given = [name for name in names if name != LABEL]
        if given == [UNNAMED] and len(wanted) == 1:
            return ()
        if UNNAMED in given:
            raise DataError(
                f"the model has {len(wanted)} inputs and the data do not name theirs",
                where=self.where,
                hint=f"arrays named {', '.join(wanted)}",
            )
        for name in wanted:
            if name not in given:
                raise DataError(
                    f"the data hold no array for the model's input {name!r}; they hold "
                    + (", ".join(repr(other) for other in given) or "nothing"),
                    where=self.where,
                    nearest=nearest(name, given),
                    hint="name the arrays like the model's inputs, and the labels 'label'",
                )
        return tuple(name for name in given if name not in wanted)

    def row(self, sample: Sample, index: int) -> dict[str, np.ndarray]:
        """Turns one raw sample into a row per input, preprocessed and converted, without a batch axis
        added.

        Raises:
            DataError: A shape or type does not fit.
        """
        feeds: dict[str, np.ndarray] = {}
        for spec in self.inputs:
            key = UNNAMED if UNNAMED in sample else spec.name
            if key not in sample:
                self.check_names(list(sample))
            value = np.asarray(sample[key])
            if self.preprocess is not None and spec.name == self.image_input:
                value = self.preprocess.apply(value)
            self._check_shape(spec, value, index)
            feeds[spec.name] = self._converted(spec, value, index)
        return feeds

    def call(self, rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Joins rows of equal shapes into the inputs of one call; more than one only where it batches."""
        joined: dict[str, np.ndarray] = {}
        for spec in self.inputs:
            arrays = [row[spec.name] for row in rows]
            whole = arrays[0].ndim == len(spec.shape)
            joined[spec.name] = arrays[0] if whole else np.stack(arrays)
        return joined

    def _check_shape(self, spec: TensorSpec, value: np.ndarray, index: int) -> None:
        shape, wanted = list(value.shape), spec.shape
        if len(shape) == len(wanted) - 1:
            fits = wanted[0] == 1 or isinstance(wanted[0], str)
            if not fits:
                raise DataError(
                    f"the input {spec.name!r} takes exactly {wanted[0]} samples a call",
                    where=self.where,
                    hint="export the model with a batch of 1 or a dynamic one",
                )
            pairs = list(zip(shape, wanted[1:], strict=True))
        elif len(shape) == len(wanted):
            pairs = list(zip(shape, wanted, strict=True))
        else:
            pairs = [(0, 1)]
        if any(isinstance(dim, int) and size != dim for size, dim in pairs):
            shown = ", ".join(str(dim) for dim in wanted)
            hint = "declare the preprocessing: resize, crop, layout" if value.ndim == 3 else None
            if value.ndim == 3 and sorted(map(str, shape)) == sorted(map(str, wanted[1:])):
                hint = "the axes are in another order: preprocess.layout is " + (
                    "NHWC or NCHW; with preprocessing, give uint8 [height, width, channels]"
                )
            raise DataError(
                f"sample {index} has the shape {shape} and the input {spec.name!r} is [{shown}]",
                where=self.where,
                hint=hint,
            )

    def _converted(self, spec: TensorSpec, value: np.ndarray, index: int) -> np.ndarray:
        if value.dtype.name == spec.dtype or not spec.dtype:
            return value
        if spec.dtype == "bfloat16":
            import ml_dtypes

            wanted: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        else:
            wanted = np.dtype(spec.dtype)
        floats = value.dtype.kind == "f" and (wanted.kind == "f" or spec.dtype == "bfloat16")
        integers = value.dtype.kind in "iu" and wanted.kind in "iu"
        if not (floats or integers):
            hint = None
            if value.dtype.kind in "iub" and wanted.kind == "f":
                hint = "declare the preprocessing (scale, mean, std), or store the array as " + spec.dtype
            raise DataError(
                f"the data of {spec.name!r} are {value.dtype.name} and the model takes {spec.dtype}",
                where=self.where,
                hint=hint,
            )
        converted = value.astype(wanted)
        if integers and not np.array_equal(converted, value):
            raise DataError(
                f"sample {index} holds values that do not fit into the {spec.dtype} of {spec.name!r}",
                where=self.where,
            )
        self.casts[spec.name] = f"{spec.name!r} is converted from {value.dtype.name} to {spec.dtype}"
        return converted
