"""Seeded inputs, for a model that comes without data: to time it, or to show its fidelity."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgeopt.errors import DataError, nearest
from edgeopt.session import TensorSpec

DYNAMIC = 16
"""The size of a dynamic axis that is not the first one; the first, mostly the batch, is 1."""


class SeededSamples:
    """``Samples`` from a seeded generator: floats are standard normal, integers and bools 0 or 1.

    Args:
        inputs: The model's inputs.
        count: The number of samples.
        seed: Of the generator.
        shapes: Per input its shape, where the model leaves it open.

    Raises:
        DataError: ``shapes`` names no input or contradicts one, or an input holds no numbers.
    """

    labels: np.ndarray | None = None

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        count: int = 16,
        seed: int = 0,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.count, self.seed = count, seed
        names = [spec.name for spec in inputs]
        for name in shapes or {}:
            if name not in names:
                raise DataError(
                    f"the model has no input {name!r}", nearest=nearest(name, names), hint=", ".join(names)
                )
        self.inputs = tuple(inputs)
        self.shapes = {spec.name: _fixed(spec, (shapes or {}).get(spec.name)) for spec in inputs}
        for spec in inputs:
            if spec.dtype in ("str", ""):
                raise DataError(f"the input {spec.name!r} holds no numbers, so no inputs can be made up")

    def __len__(self) -> int:
        return self.count

    @property
    def digest(self) -> str:
        """SHA-256 of what the samples are made from."""
        made_from = (self.inputs, sorted(self.shapes.items()), self.count, self.seed)
        return hashlib.sha256(repr(made_from).encode()).hexdigest()

    def feeds(self, batch: int = 1) -> Iterator[dict[str, np.ndarray]]:
        """Streams calls of one sample each; ``batch`` changes nothing."""
        for number in range(self.count):
            draw = np.random.default_rng([self.seed, number])
            call = {}
            for spec in self.inputs:
                shape = self.shapes[spec.name]
                if spec.dtype.startswith(("float", "bfloat")):
                    call[spec.name] = draw.standard_normal(shape, np.float32).astype(_dtype(spec.dtype))
                else:
                    call[spec.name] = draw.integers(0, 2, shape).astype(spec.dtype)
            yield call


def _fixed(spec: TensorSpec, wanted: Sequence[int] | None) -> tuple[int, ...]:
    if wanted is None:
        return tuple(
            size if isinstance(size, int) else (1 if axis == 0 else DYNAMIC)
            for axis, size in enumerate(spec.shape)
        )
    fits = len(wanted) == len(spec.shape) and all(
        isinstance(size, str) or size == given for size, given in zip(spec.shape, wanted, strict=True)
    )
    if not fits:
        shown = ", ".join(str(size) for size in spec.shape)
        raise DataError(f"the input {spec.name!r} is [{shown}] and cannot take the shape {list(wanted)}")
    return tuple(wanted)


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        wide: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return wide
    return np.dtype(name)
