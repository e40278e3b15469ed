"""Convolutions and matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeopt.targets.tflite import fixed_point as fp
from edgeopt.targets.tflite.program import Operation
from edgeopt.targets.tflite.statements.rescaling import (
    channel_factors,
    finish,
    kernel,
    requantize,
)
from edgeopt.targets.tflite.sums import DATA_INPUT, accumulate, scale_of


@kernel("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
def conv(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Sums in int32 over windows, pads standing for zero."""
    factors = channel_factors(operation, DATA_INPUT.get(operation.code, 0))
    return requantize(operation, accumulate(operation, arrays), factors)


@kernel("FULLY_CONNECTED")
def fully_connected(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """A matrix product, rounded once; with one weight scale its product with the input's is a float32."""
    accumulator = accumulate(operation, arrays)
    tensor, output = operation.inputs[1], operation.outputs[0]
    factors = channel_factors(operation)
    if tensor is not None and tensor.scale is not None and tensor.scale.size == 1:
        product = np.float32(scale_of(operation.inputs[0])) * np.float32(tensor.scale[0])
        factors = [float(product) / scale_of(output)]
    parts = [fp.quantize_multiplier(factor) for factor in factors]
    multiplier = np.array([part[0] for part in parts], np.int64)
    shift = np.array([part[1] for part in parts], np.int64)
    return finish(operation, fp.multiply_once(accumulator, multiplier, shift))


@kernel("BATCH_MATMUL")
def batch_matmul(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """A product of two computed matrices."""
    accumulator = accumulate(operation, arrays)
    product = np.float32(scale_of(operation.inputs[0])) * np.float32(scale_of(operation.inputs[1]))
    return requantize(operation, accumulator, [float(product) / scale_of(operation.outputs[0])])
