"""Quantization parameters, and where they stand in a model.

A quantized value is followed by QuantizeLinear and DequantizeLinear, and nowhere else is it
recorded that a value is quantized. ``read`` collects the parameters of all such pairs, ``write``
inserts pairs for given parameters; ``strip`` removes every pair. ``read(write(strip(m), p)) == p``,
and ``write(strip(m), read(m))`` equals ``m`` up to the names of inserted nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Site:
    """The place of one quantized value.

    Attributes:
        value: The value's name.
        readers: The node inputs, as (node name, input index), that read the value quantized;
            ``None`` for all readers and the graph's outputs. Other readers keep the float.
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
