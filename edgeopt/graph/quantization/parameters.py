"""What quantizes a value: its place in a model, its parameters, and the arithmetic they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Site:
    """The place of one quantized value.

    Attributes:
        value: The value's name.
        readers: The node inputs, as (node name, input index), that read the value quantized;
            ``None`` for all readers and the graph's outputs. Other readers keep the float. The
            graph's output of index i is the reader ``("", i)``.
    """

    value: str
    readers: tuple[tuple[str, int], ...] | None = None


@dataclass(frozen=True, eq=False)
class QuantParams:
    """Parameters of one quantization, q = saturate(round(x / scale) + zero_point).

    Attributes:
        dtype: The integer type.
        scale: float32: shape () per tensor, [channels] along ``axis`` per channel, and for blocks the
            value's shape with ``axis`` divided by ``block``. ``None`` is dynamic: computed per call.
        zero_point: Integers of ``dtype``, shaped as the scale; ``None`` for zero.
        axis: The axis of channels or blocks; ``None`` per tensor.
        block: The block size along ``axis``; 0 for none.
    """

    dtype: ir.DataType
    scale: np.ndarray | None
    zero_point: np.ndarray | None = None
    axis: int | None = None
    block: int = 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QuantParams):
            return NotImplemented
        return (
            (self.dtype, self.axis, self.block) == (other.dtype, other.axis, other.block)
            and _same(self.scale, other.scale)
            and _same(self.zero_point, other.zero_point)
        )


Parameters = Mapping[Site, list[QuantParams]]
"""All quantization of a model; a list of two or more is a chain of requantizations."""


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and np.array_equal(one, other)


def quantize_array(array: np.ndarray, params: QuantParams) -> np.ndarray:
    """Computes QuantizeLinear: integers of ``params.dtype``, halves rounded to even."""
    scale, zero_point = spread(params, array.shape)
    low, high = integer_range(params.dtype)
    grid = np.rint(array.astype(np.float32) / scale) + zero_point
    integers: np.ndarray = np.clip(grid, low, high).astype(params.dtype.numpy())
    return integers


def dequantize_array(integers: np.ndarray, params: QuantParams) -> np.ndarray:
    """Computes DequantizeLinear, in float32."""
    scale, zero_point = spread(params, integers.shape)
    wide = integers.astype(np.int64) if params.dtype == ir.DataType.INT32 else integers.astype(np.float32)
    values: np.ndarray = ((wide - zero_point).astype(np.float32) * scale).astype(np.float32)
    return values


def spread(params: QuantParams, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale and zero point, both shaped to broadcast with an array of ``shape``."""
    assert params.scale is not None
    zero_point = np.zeros_like(params.scale) if params.zero_point is None else params.zero_point
    scale, zero_point = params.scale.astype(np.float32), zero_point.astype(np.float32)
    if params.axis is None:
        return scale, zero_point
    axis = params.axis % len(shape)
    if params.block:
        repeated = (np.repeat(item, params.block, axis) for item in (scale, zero_point))
        index = tuple(slice(0, shape[i]) if i == axis else slice(None) for i in range(len(shape)))
        scale, zero_point = (item[index] for item in repeated)
        return scale, zero_point
    aligned = [-1 if i == axis else 1 for i in range(len(shape))]
    return scale.reshape(aligned), zero_point.reshape(aligned)


def integer_range(dtype: ir.DataType) -> tuple[int, int]:
    """Returns the smallest and largest integer of a type."""
    bits = dtype.bitwidth
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dtype.is_signed() else (0, 2**bits - 1)
