"""Sigmoid and tanh by table, softmax in fixed point."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from edgeopt.targets.tflite import fixed_point as fp
from edgeopt.targets.tflite.program import Operation
from edgeopt.targets.tflite.statements.rescaling import (
    away,
    kernel,
)
from edgeopt.targets.tflite.sums import scale_of, zero_of


def _by_table(
    operation: Operation, array: np.ndarray, function: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """A function tabulated over all 256 inputs, in float32."""
    tensor, output = operation.inputs[0], operation.outputs[0]
    inputs = (np.arange(-128, 128) - zero_of(tensor)).astype(np.float32) * np.float32(scale_of(tensor))
    real = function(inputs).astype(np.float32) * np.float32(1 / np.float32(scale_of(output)))
    table = np.clip(away(real) + zero_of(output), -128, 127).astype(np.int8)
    return np.asarray(table[array.astype(np.int64) + 128])


@kernel("LOGISTIC")
def logistic(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """By table."""
    return _by_table(operation, arrays[0], lambda x: 1.0 / (1.0 + np.exp(-x)))


@kernel("TANH")
def tanh(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """By table."""
    return _by_table(operation, arrays[0], np.tanh)


@kernel("SOFTMAX")
def softmax(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Exponentials of differences from the row's largest, in fixed point with 5 integer bits."""
    real = min(scale_of(operation.inputs[0]) * float(operation.options.get("beta", 1.0)) * 2**26, 2.0**31 - 1)
    multiplier, shift = fp.quantize_multiplier(real)
    smallest = -math.floor(31 * 2**26 / 2**shift)
    rows = arrays[0].reshape(-1, arrays[0].shape[-1]).astype(np.int64)
    result = np.empty(rows.shape, np.int8)
    for number, row in enumerate(rows):
        difference = row - row.max()
        live = difference >= smallest
        scaled = fp.doubling_high_multiply(np.where(live, difference, 0) << shift, multiplier)
        exponentials = fp.exp_of_negative(scaled, 5)
        total = int(np.where(live, fp.rounding_shift(exponentials, 12), 0).sum())
        inverse, over = fp.reciprocal(total, 12)
        shares = fp.rounding_shift(fp.doubling_high_multiply(exponentials, inverse), over + 31 - 8)
        result[number] = np.where(live, np.clip(shares - 128, -128, 127), -128)
    return result.reshape(arrays[0].shape)
