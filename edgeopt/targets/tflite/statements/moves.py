"""To and from float, and what only moves integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeopt.targets.tflite.program import Operation
from edgeopt.targets.tflite.statements.rescaling import (
    away,
    finish,
    kernel,
    requantize,
)
from edgeopt.targets.tflite.sums import centred, scale_of, zero_of


@kernel("QUANTIZE")
def quantize(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """From float, rounded half away from zero, or from another scale."""
    if arrays[0].dtype == np.int8:
        factor = scale_of(operation.inputs[0]) / scale_of(operation.outputs[0])
        return requantize(operation, centred(operation, 0, arrays[0]), [factor])
    real = arrays[0].astype(np.float32) / np.float32(scale_of(operation.outputs[0]))
    return finish(operation, away(real).astype(np.int64))


@kernel("DEQUANTIZE")
def dequantize(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """scale · (q - zero point)."""
    centre = centred(operation, 0, arrays[0]).astype(np.float32)
    return np.asarray(centre * np.float32(scale_of(operation.inputs[0])), np.float32)


@kernel("RESHAPE")
def reshape(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The same numbers."""
    return arrays[0].reshape(operation.outputs[0].shape)


@kernel("CONCATENATION")
def concatenate(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The same numbers: all share a scale."""
    return np.concatenate(list(arrays), axis=int(operation.options["axis"]))


@kernel("PAD", "PADV2")
def pad(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """PAD fills with the zero point."""
    fill = int(arrays[2].reshape(-1)[0]) if operation.code == "PADV2" else zero_of(operation.inputs[0])
    return np.pad(arrays[0], arrays[1].tolist(), constant_values=fill)


@kernel("SLICE")
def slice_(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """From where on, and how many."""
    where = tuple(slice(int(b), int(b + s)) for b, s in zip(arrays[1], arrays[2], strict=True))
    return np.asarray(arrays[0][where])


@kernel("STRIDED_SLICE")
def strided_slice(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """With steps; a masked end reaches the last element."""
    mask = int(operation.options.get("endMask", 0))
    where = tuple(
        slice(int(begin), None if mask >> axis & 1 else int(end), int(step))
        for axis, (begin, end, step) in enumerate(zip(*arrays[1:4], strict=True))
    )
    return np.asarray(arrays[0][where])


@kernel("TRANSPOSE")
def transpose(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The same numbers in another order."""
    return arrays[0].transpose(arrays[1].tolist())


@kernel("GATHER")
def gather(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Chosen entries of one axis."""
    return np.take(arrays[0], arrays[1], axis=int(operation.options["axis"]))
