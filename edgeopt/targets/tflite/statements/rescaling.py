"""The table of statements, and how an accumulator becomes an int8 output: one factor, zero point, bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from edgeopt.targets.tflite import fixed_point as fp
from edgeopt.targets.tflite.program import Operation
from edgeopt.targets.tflite.sums import scale_of, zero_of

Kernel = Callable[[Operation, Sequence[np.ndarray]], np.ndarray]
KERNELS: dict[str, Kernel] = {}


def kernel(*codes: str) -> Callable[[Kernel], Kernel]:
    """Registers the statement of one or several operators."""

    def register(function: Kernel) -> Kernel:
        KERNELS.update(dict.fromkeys(codes, function))
        return function

    return register


def bounds(operation: Operation) -> tuple[int, int]:
    """The output's range, narrowed by the fused activation or by what the operator itself clips."""
    kind = operation.options.get("fusedActivationFunction", 0)
    kind = {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}.get(operation.code, kind)
    output = operation.outputs[0]
    low, high = {0: (None, None), 1: (0.0, None), 2: (-1.0, 1.0), 3: (0.0, 6.0)}[kind]

    def quantized(value: float) -> int:
        ratio = np.float32(value) / np.float32(scale_of(output))
        return zero_of(output) + math.floor(abs(float(ratio)) + 0.5) * (1 if value >= 0 else -1)

    return (
        -128 if low is None else max(-128, quantized(low)),
        127 if high is None else min(127, quantized(high)),
    )


def finish(operation: Operation, accumulator: np.ndarray) -> np.ndarray:
    """Adds the output's zero point and clips."""
    low, high = bounds(operation)
    return np.asarray(np.clip(accumulator + zero_of(operation.outputs[0]), low, high).astype(np.int8))


def requantize(operation: Operation, accumulator: np.ndarray, factors: Sequence[float]) -> np.ndarray:
    """Brings an accumulator to the output's scale, by one factor or one per channel (last axis)."""
    parts = [fp.quantize_multiplier(factor) for factor in factors]
    multiplier = np.array([part[0] for part in parts], np.int64)
    shift = np.array([part[1] for part in parts], np.int64)
    return finish(operation, fp.multiply(accumulator, multiplier, shift))


def channel_factors(operation: Operation, index: int = 0) -> list[float]:
    """input scale · weight scale / output scale, per channel, in double precision."""
    weight = operation.inputs[1]
    if weight is None or weight.scale is None:
        raise KeyError("the weight is not quantized")
    given, made = scale_of(operation.inputs[index]), scale_of(operation.outputs[0])
    return [given * float(scale) / made for scale in weight.scale]


def away(real: np.ndarray) -> np.ndarray:
    """Rounds half away from zero."""
    return np.asarray(np.trunc(real + np.copysign(np.float32(0.5), real)))
