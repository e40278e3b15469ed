"""Our statement, in numpy, of what LiteRT's default kernels compute in int8: those of XNNPACK.

Sums are the same integers as in the reference kernels. They are brought to the output's scale by one
product in float32, rounded half to even; sums of two tensors by fixed-point factors of 21 bits, and
LEAKY_RELU and QUANTIZE from int8 by factors of 8 bits, halves upwards. What XNNPACK does not take
(HARD_SWISH, SOFTMAX, the moves) runs on the builtin kernels, which follow ``reference.py``. The tests hold
this against LiteRT bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from edgeopt.targets.tflite.exact import steps
from edgeopt.targets.tflite.program import Operation
from edgeopt.targets.tflite.reference import KERNELS as SPECIFIED
from edgeopt.targets.tflite.reference import Kernel, bounds
from edgeopt.targets.tflite.sums import DATA_INPUT, accumulate, centred, scale_of, zero_of

KERNELS: dict[str, Kernel] = dict(SPECIFIED)

FACTOR_BITS = 8
"""Fraction bits of the factors of LEAKY_RELU and of QUANTIZE from int8."""


def _kernel(*codes: str) -> Callable[[Kernel], Kernel]:
    def register(function: Kernel) -> Kernel:
        KERNELS.update(dict.fromkeys(codes, function))
        return function

    return register


def _scale(operation: Operation, index: int = 0) -> np.float32:
    return np.float32(scale_of(operation.inputs[index]))


def _made(operation: Operation) -> np.float32:
    return np.float32(scale_of(operation.outputs[0]))


def _shifted(operation: Operation, total: np.ndarray, bits: int) -> np.ndarray:
    """total / 2**bits, halves upwards, at the output's zero point, clipped."""
    low, high = bounds(operation)
    rounded = ((total + (1 << (bits - 1))) >> bits) + zero_of(operation.outputs[0])
    return np.asarray(np.clip(rounded, low, high).astype(np.int8))


def factor(ratio: float) -> int:
    """A factor of 8 fraction bits."""
    return int(np.rint(np.float32(2**FACTOR_BITS) * np.float32(ratio)))


def _takes(ratio: float) -> bool:
    """Whether a ratio of scales is one that XNNPACK has a factor of 8 bits for."""
    return bool(2.0**-FACTOR_BITS <= ratio <= 2.0 ** (FACTOR_BITS - 1))


@_kernel("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")
def weighted(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The integer sum by a float32 factor per channel."""
    weight = operation.inputs[1]
    if weight is None or weight.scale is None:
        raise KeyError("the weight is not quantized")
    given = _scale(operation, DATA_INPUT.get(operation.code, 0))
    factors = given * weight.scale.astype(np.float32) / _made(operation)
    return steps(operation, accumulate(operation, arrays).astype(np.float32) * factors)


@_kernel("BATCH_MATMUL")
def batch_matmul(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The integer sum by a float32 factor."""
    factors = _scale(operation) * _scale(operation, 1) / _made(operation)
    return steps(operation, accumulate(operation, arrays).astype(np.float32) * factors)


@_kernel("MUL")
def mul(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The integer product by a float32 factor."""
    product = centred(operation, 0, arrays[0]) * centred(operation, 1, arrays[1])
    factors = _scale(operation) * _scale(operation, 1) / _made(operation)
    return steps(operation, product.astype(np.float32) * factors)


@_kernel("ADD", "SUB")
def add(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Factors of 21 bits, by the larger of the two."""
    ratios = [float(np.float32(_scale(operation, index) / _made(operation))) for index in (0, 1)]
    shift = 21 - math.frexp(max(ratios))[1]
    first, second = (
        centred(operation, index, arrays[index]) * int(np.rint(ratios[index] * 2.0**shift))
        for index in (0, 1)
    )
    return _shifted(operation, first + second if operation.code == "ADD" else first - second, shift)


@_kernel("MEAN")
def mean(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of the stored integers by a float32 factor that holds the count, both zero points in float."""
    axes = tuple(int(axis) for axis in np.atleast_1d(arrays[1]))
    total = arrays[0].sum(axis=axes, keepdims=bool(operation.options.get("keepDims")), dtype=np.int64)
    count = int(np.prod([arrays[0].shape[axis] for axis in axes]))
    ratio = _scale(operation) / _made(operation) / np.float32(count)
    given, made = zero_of(operation.inputs[0]), zero_of(operation.outputs[0])
    offset = np.float32(-given * count) * ratio + np.float32(made)
    low, high = bounds(operation)
    rounded = np.rint(total.astype(np.float32) * ratio + offset)
    return np.asarray(np.clip(rounded, low, high).astype(np.int8))


@_kernel("LEAKY_RELU")
def leaky_relu(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """A factor of 8 bits on either side of zero."""
    ratio = float(_scale(operation) / _made(operation))
    slope = float(np.float32(ratio) * np.float32(operation.options["alpha"]))
    if not (_takes(ratio) and _takes(abs(slope))):
        return SPECIFIED[operation.code](operation, arrays)
    x = centred(operation, 0, arrays[0])
    return _shifted(operation, np.where(x >= 0, x * factor(ratio), x * factor(slope)), FACTOR_BITS)


@_kernel("QUANTIZE")
def quantize(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """From float by the inverse scale; from int8 by a factor of 8 bits."""
    if arrays[0].dtype == np.float32:
        return steps(operation, arrays[0] * (np.float32(1) / _made(operation)))
    ratio = float(_scale(operation) / _made(operation))
    if not _takes(ratio):
        return SPECIFIED[operation.code](operation, arrays)
    return _shifted(operation, centred(operation, 0, arrays[0]) * factor(ratio), FACTOR_BITS)


@_kernel("RESIZE_BILINEAR")
def resize_bilinear(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Weights of 11 bits, halves upwards."""
    bits = 11
    x = arrays[0].astype(np.int64)
    (top, bottom, down), (left, right, across) = (
        _positions(operation, x.shape[1 + axis], int(arrays[1][axis]), bits) for axis in (0, 1)
    )
    down, across = down[None, :, None, None], across[None, None, :, None]
    above, below = (
        (x[:, row][:, :, left] << bits) + (x[:, row][:, :, right] - x[:, row][:, :, left]) * across
        for row in (top, bottom)
    )
    total = (above << bits) + (below - above) * down
    return np.asarray(((total + (1 << (2 * bits - 1))) >> (2 * bits)).astype(np.int8))


def _positions(
    operation: Operation, size: int, out: int, bits: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two neighbours of every output along an axis, and the weight of the second."""
    where = np.arange(out, dtype=np.float32)
    if operation.options.get("alignCorners") and out > 1:
        where = where * np.float32((size - 1) / (out - 1))
    elif operation.options.get("halfPixelCenters"):
        where = (where + np.float32(0.5)) * np.float32(size / out) - np.float32(0.5)
    else:
        where = where * np.float32(size / out)
    where = np.clip(where, 0, size - 1)
    first = where.astype(np.int64)
    weight = np.rint((where - first) * np.float32(2**bits)).astype(np.int64)
    return first, np.minimum(first + 1, size - 1), weight
