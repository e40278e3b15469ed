"""Sums, products and activations of two or of one value, in fixed point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeopt.targets.tflite import fixed_point as fp
from edgeopt.targets.tflite.program import Operation, Tensor
from edgeopt.targets.tflite.statements.rescaling import (
    finish,
    kernel,
    requantize,
)
from edgeopt.targets.tflite.sums import centred, scale_of


@kernel("ADD", "SUB")
def add(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Both inputs to 20 more bits at twice the larger scale, summed, then to the output's scale."""
    scales = [scale_of(operation.inputs[0]), scale_of(operation.inputs[1])]
    twice = 2 * max(scales)
    terms = []
    for index, scale in enumerate(scales):
        multiplier, shift = fp.quantize_multiplier(scale / twice)
        wide = centred(operation, index, arrays[index]) << 20
        terms.append(fp.rounding_shift(fp.doubling_high_multiply(wide, multiplier), -shift))
    total = terms[0] + terms[1] if operation.code == "ADD" else terms[0] - terms[1]
    multiplier, shift = fp.quantize_multiplier(twice / ((1 << 20) * scale_of(operation.outputs[0])))
    return finish(operation, fp.rounding_shift(fp.doubling_high_multiply(total, multiplier), -shift))


@kernel("MUL")
def mul(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The product of the integers, by the scales' quotient in float32."""
    product = centred(operation, 0, arrays[0]) * centred(operation, 1, arrays[1])
    return requantize(operation, product, [_float32_factor(operation, operation.inputs[:2])])


def _float32_factor(operation: Operation, inputs: Sequence[Tensor | None], more: float = 1.0) -> float:
    factor = np.float32(more)
    for tensor in inputs:
        factor = np.float32(factor * np.float32(scale_of(tensor)))
    return float(np.float32(factor / np.float32(scale_of(operation.outputs[0]))))


@kernel("MAXIMUM", "MINIMUM")
def extremum(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Of integers that share a scale."""
    pick = np.maximum if operation.code == "MAXIMUM" else np.minimum
    return np.asarray(pick(arrays[0], arrays[1]))


@kernel("RELU", "RELU6", "RELU_N1_TO_1")
def relu(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """To the output's scale, then clipped."""
    return requantize(
        operation, centred(operation, 0, arrays[0]), [_float32_factor(operation, operation.inputs[:1])]
    )


@kernel("LEAKY_RELU")
def leaky_relu(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """A factor of its own for negative numbers."""
    x = centred(operation, 0, arrays[0])
    alpha = float(np.float32(operation.options["alpha"]))
    straight = _float32_factor(operation, operation.inputs[:1])
    sloped = float(
        np.float32(np.float32(scale_of(operation.inputs[0])) * np.float32(alpha))
        / np.float32(scale_of(operation.outputs[0]))
    )
    return np.where(x >= 0, requantize(operation, x, [straight]), requantize(operation, x, [sloped]))


@kernel("PRELU")
def prelu(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """As LEAKY_RELU, with quantized slopes."""
    x = centred(operation, 0, arrays[0])
    sloped = x * centred(operation, 1, arrays[1])
    straight = _float32_factor(operation, operation.inputs[:1])
    return np.where(
        x >= 0,
        requantize(operation, x, [straight]),
        requantize(operation, sloped, [_float32_factor(operation, operation.inputs[:2])]),
    )


@kernel("HARD_SWISH")
def hard_swish(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """x · relu6(x + 3) / 6 in 16-bit fixed point."""
    wide = centred(operation, 0, arrays[0]) << 7
    fine = np.float32(1 / 128) * np.float32(scale_of(operation.inputs[0]))
    out, out_shift = fp.quantize_multiplier(float(fine / np.float32(scale_of(operation.outputs[0]))))
    gate, gate_shift = fp.quantize_multiplier(float(fine / np.float32(3.0 / 32768.0)))

    def narrow(multiplier: int) -> int:
        return 32767 if multiplier >= fp.INT32_MAX - (1 << 15) else (multiplier + (1 << 15)) >> 16

    def left(x: np.ndarray, by: int) -> np.ndarray:
        return np.asarray(np.clip(x << by, -32768, 32767))

    value = fp.doubling_high_multiply(wide, narrow(out), bits=16)
    reluish = left(wide, gate_shift - 1) if gate_shift > 0 else wide
    reluish = fp.doubling_high_multiply(reluish, narrow(gate), bits=16)
    if gate_shift > 0:
        reluish = left(reluish, 1)
    elif gate_shift < 0:
        reluish = fp.rounding_shift(reluish, -gate_shift)
    reluish = (reluish + (1 << 15)) >> 1
    product = fp.truncated(reluish * value, 1 << 15)
    return finish(operation, fp.rounding_shift(product, -out_shift))
