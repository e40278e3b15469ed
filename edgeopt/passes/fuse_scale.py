"""Fuse constant factors and shifts into the linear node before them.

    Mul(W·x + b, a) = (a·W)·x + a·b        Add(W·x + b, c) = W·x + (b + c)

for a Conv, ConvTranspose, Gemm or MatMul, where a and c are one number or one number a channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.graph.change import NoMatch
from edgeopt.graph.linear import Linear, linear
from edgeopt.graph.rewriting import Result, constant, rule
from edgeopt.graph.shapes import dims
from edgeopt.passes._fusion import Fusion


@rule("Conv|ConvTranspose|Gemm -> Mul|Div|Add|Sub")
def fold_into_producer(producer: ir.Node, arithmetic: ir.Node) -> Result:
    """Scales or shifts the weight and bias."""
    position = 1 if arithmetic.inputs[0] is producer.outputs[0] else 0
    numbers = constant(arithmetic.inputs[position])
    if numbers is None:
        return None
    if position == 0 and arithmetic.op_type in ("Div", "Sub"):
        return NoMatch("the constant is the first operand")
    layer = linear(producer)
    if isinstance(layer, NoMatch):
        return layer
    vector = per_channel(numbers, producer, layer)
    if isinstance(vector, NoMatch):
        return vector
    scale, shift = np.ones(layer.channels), np.zeros(layer.channels)
    if arithmetic.op_type in ("Mul", "Div"):
        if arithmetic.op_type == "Div" and not vector.all():
            return NoMatch("a divisor is zero")
        scale = vector if arithmetic.op_type == "Mul" else 1 / vector
    else:
        shift = vector if arithmetic.op_type == "Add" else -vector
    return layer.scaled(scale, shift)


def per_channel(numbers: np.ndarray, producer: ir.Node, layer: Linear) -> np.ndarray | NoMatch:
    """Broadcasts a constant to one number a channel, where it is that and makes the output no larger."""
    conv = producer.op_type in ("Conv", "ConvTranspose")
    rank = layer.weight.ndim if conv else len(dims(producer.outputs[0]) or (0, 0))
    if numbers.ndim > rank:
        return NoMatch("the constant has more axes than the output")
    aligned = numbers.astype(np.float64).reshape((1,) * (rank - numbers.ndim) + numbers.shape)
    axis = 1 if conv else rank - 1
    others = [size for place, size in enumerate(aligned.shape) if place != axis]
    if any(size != 1 for size in others) or aligned.shape[axis] not in (1, layer.channels):
        return NoMatch(f"the constant of shape {list(numbers.shape)} is not one number a channel")
    return np.broadcast_to(aligned.reshape(-1), (layer.channels,))


@dataclass(frozen=True)
class FuseScale(Fusion):
    """Fuse constant factors and shifts into the Conv, ConvTranspose or Gemm before them."""

    name: ClassVar[str] = "fuse-scale"
    patterns = (fold_into_producer,)
