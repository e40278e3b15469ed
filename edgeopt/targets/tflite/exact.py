"""The quantized graph itself, in numpy: every operator in exact arithmetic, its result rounded once.

QuantizeLinear and DequantizeLinear around an operator say: take the real numbers, compute, divide by the
output's scale, round half to even, saturate. Executed in float32 that statement has noise of its own,
since sums of products are rounded; a value near the middle between two steps then falls on either side,
and each such flip perturbs the layers behind it. Here sums are integers and the rest is float64, so that
what a kernel does differently is the kernel's doing.

Three operators have no such form that a kernel could be held to, because their integer rule rounds on
the way; theirs is the rule of ``reference.py``: HARD_SWISH (16-bit products), AVERAGE_POOL_2D (halves away
from zero on the stored integers) and RESIZE_BILINEAR (weights of 10 bits).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgeopt.targets.tflite.program import Operation
from edgeopt.targets.tflite.reference import KERNELS as SPECIFIED
from edgeopt.targets.tflite.reference import Kernel, bounds, channel_factors
from edgeopt.targets.tflite.sums import DATA_INPUT, accumulate, centred, scale_of, zero_of

KERNELS: dict[str, Kernel] = dict(SPECIFIED)


def _kernel(*codes: str) -> Callable[[Kernel], Kernel]:
    def register(function: Kernel) -> Kernel:
        KERNELS.update(dict.fromkeys(codes, function))
        return function

    return register


def steps(operation: Operation, quotient: np.ndarray) -> np.ndarray:
    """Rounds a result, given in units of the output's scale, half to even, and saturates."""
    low, high = bounds(operation)
    rounded = np.rint(quotient) + zero_of(operation.outputs[0])
    return np.asarray(np.clip(rounded, low, high).astype(np.int8))


def real(operation: Operation, index: int, array: np.ndarray) -> np.ndarray:
    """The numbers that an input stands for, float64."""
    tensor = operation.inputs[index]
    if tensor is None or tensor.scale is None:
        return array.astype(np.float64)
    return np.asarray(centred(operation, index, array) * scale_of(tensor))


def _rounded(function: Callable[..., np.ndarray], count: int) -> Kernel:
    """An operator on the real numbers of its first inputs."""

    def run(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
        numbers = [real(operation, index, arrays[index]) for index in range(count)]
        return steps(operation, function(operation, *numbers) / scale_of(operation.outputs[0]))

    return run


@_kernel("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")
def weighted(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The integer sum by input scale · weight scale / output scale."""
    factors = np.array(channel_factors(operation, DATA_INPUT.get(operation.code, 0)))
    return steps(operation, accumulate(operation, arrays) * factors)


@_kernel("BATCH_MATMUL")
def batch_matmul(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The integer sum by the scales' quotient."""
    factor = scale_of(operation.inputs[0]) * scale_of(operation.inputs[1]) / scale_of(operation.outputs[0])
    return steps(operation, accumulate(operation, arrays) * factor)


@_kernel("MUL")
def mul(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The integer product by the scales' quotient."""
    product = centred(operation, 0, arrays[0]) * centred(operation, 1, arrays[1])
    factor = scale_of(operation.inputs[0]) * scale_of(operation.inputs[1]) / scale_of(operation.outputs[0])
    return steps(operation, product * factor)


@_kernel("MEAN", "SUM")
def reduce(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The integer sum by the scales' quotient, over the count for a mean."""
    axes = tuple(int(axis) for axis in np.atleast_1d(arrays[1]))
    total = centred(operation, 0, arrays[0]).sum(axis=axes, keepdims=bool(operation.options.get("keepDims")))
    count = int(np.prod([arrays[0].shape[axis] for axis in axes])) if operation.code == "MEAN" else 1
    return steps(operation, total * (scale_of(operation.inputs[0]) / scale_of(operation.outputs[0])) / count)


@_kernel("QUANTIZE", "RELU", "RELU6", "RELU_N1_TO_1")
def requantize(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The same number on another grid; bounds clip."""
    if arrays[0].dtype == np.float32:
        return steps(operation, arrays[0] / np.float32(scale_of(operation.outputs[0])))
    factor = scale_of(operation.inputs[0]) / scale_of(operation.outputs[0])
    return steps(operation, centred(operation, 0, arrays[0]) * factor)


@_kernel("SOFTMAX")
def softmax(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Shares of exponentials along the last axis."""
    x = real(operation, 0, arrays[0]) * float(operation.options.get("beta", 1.0))
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    shares = exponentials / exponentials.sum(-1, keepdims=True)
    return steps(operation, shares / scale_of(operation.outputs[0]))


def _leaky(operation: Operation, x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, x, x * float(np.float32(operation.options["alpha"])))


_kernel("ADD")(_rounded(lambda operation, a, b: a + b, 2))
_kernel("SUB")(_rounded(lambda operation, a, b: a - b, 2))
_kernel("PRELU")(_rounded(lambda operation, x, slope: np.where(x >= 0, x, x * slope), 2))
_kernel("LEAKY_RELU")(_rounded(_leaky, 1))
_kernel("LOGISTIC")(_rounded(lambda operation, x: 1 / (1 + np.exp(-x)), 1))
_kernel("TANH")(_rounded(lambda operation, x: np.tanh(x), 1))
