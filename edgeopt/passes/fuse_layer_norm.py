"""Fuse the primitives of layer normalization (Ba et al. 2016) into LayerNormalization.

    d = x - mean(x)        y = d / sqrt(mean(d²) + epsilon) [· gamma [+ beta]]

over the last axes. The square is Pow(d, 2) or Mul(d, d), the quotient Div or Mul by the reciprocal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.graph.change import NoMatch
from edgeopt.graph.rewriting import (
    Replacement,
    Result,
    constant,
    initializer,
    node,
    opset,
    rule,
    sole_reader,
)
from edgeopt.graph.scalars import operands, scalar
from edgeopt.graph.shapes import dims
from edgeopt.passes._fusion import Fusion


@rule("ReduceMean -> Add -> Sqrt", name="layer normalization -> LayerNormalization")
def fuse(variance: ir.Node, add: ir.Node, root: ir.Node) -> Result:
    """Follows the square root up to x and down to gamma and beta."""
    epsilon = next((scalar(one) for one, other in operands(add) if other is variance.outputs[0]), None)
    centred = _squared(variance.inputs[0])
    if epsilon is None or centred is None:
        return None
    deviation, square = centred
    subtract = deviation.producer()
    if subtract is None or subtract.op_type != "Sub":
        return None
    x, mean = subtract.inputs[0], subtract.inputs[1].producer() if subtract.inputs[1] is not None else None
    if x is None or mean is None or mean.op_type != "ReduceMean" or mean.inputs[0] is not x:
        return None
    first = _last_axes(mean, x)
    if first is None or first != _last_axes(variance, x):
        return NoMatch("the mean is not taken over the last axes")
    divide = _divided(root, deviation)
    if divide is None:
        return None
    if opset(root) < 17:
        return NoMatch(f"LayerNormalization needs opset 17, the model has {opset(root)}")
    shape = (dims(x) or ())[first:]
    if not all(isinstance(size, int) for size in shape):
        return NoMatch("the size of a normalized axis is not known")
    nodes = [mean, subtract, square, variance, add, root, *divide]
    sizes = tuple(size for size in shape if isinstance(size, int))
    dtype = (x.dtype or ir.DataType.FLOAT).numpy()
    last, gamma, beta = divide[-1].outputs[0], np.ones(sizes, dtype), None
    scaling = _with_constant(last, "Mul", sizes)
    if scaling is not None:
        gamma, last = scaling[1], scaling[0].outputs[0]
        nodes.append(scaling[0])
    shifting = _with_constant(last, "Add", sizes)
    if shifting is not None:
        beta, last = shifting[1], shifting[0].outputs[0]
        nodes.append(shifting[0])
    inputs = [x, initializer(f"{root.name}.gamma", gamma)]
    if beta is not None:
        inputs.append(initializer(f"{root.name}.beta", beta))
    fused = node("LayerNormalization", inputs, {"axis": first - len(dims(x) or ()), "epsilon": epsilon})
    return Replacement({last: fused.outputs[0]}, nodes)


def _squared(value: ir.Value | None) -> tuple[ir.Value, ir.Node] | None:
    square = None if value is None else value.producer()
    if square is None or square.inputs[0] is None:
        return None
    power = square.op_type == "Pow" and scalar(square.inputs[1]) == 2
    product = square.op_type == "Mul" and square.inputs[0] is square.inputs[1]
    return (square.inputs[0], square) if power or product else None


def _last_axes(mean: ir.Node, x: ir.Value) -> int | None:
    """The first of the last axes that a mean is taken over, which it must keep."""
    rank = len(dims(x) or ())
    if not rank or not mean.attributes.get_int("keepdims", 1):
        return None
    axes: list[int] = list(mean.attributes.get_ints("axes", ()))
    if not axes and len(mean.inputs) > 1:
        given = constant(mean.inputs[1])
        axes = [] if given is None else [int(axis) for axis in given]
    axes = sorted(axis % rank for axis in axes)
    return axes[0] if axes and axes == list(range(axes[0], rank)) else None


def _divided(root: ir.Node, deviation: ir.Value) -> list[ir.Node] | None:
    """The nodes that divide the deviation by the root."""
    reader = sole_reader(root.outputs[0])
    if reader is None:
        return None
    if reader.op_type == "Div" and reader.inputs[0] is deviation:
        return [reader]
    inverse = reader.op_type == "Reciprocal" or (reader.op_type == "Div" and scalar(reader.inputs[0]) == 1)
    product = sole_reader(reader.outputs[0]) if inverse else None
    if product is not None and product.op_type == "Mul" and deviation in product.inputs:
        return [reader, product]
    return None


def _with_constant(
    value: ir.Value, operator: str, sizes: tuple[int, ...]
) -> tuple[ir.Node, np.ndarray] | None:
    """The only reader of a value, where it combines it with a constant of the normalized shape."""
    reader = sole_reader(value)
    if reader is None or reader.op_type != operator:
        return None
    for one, other in operands(reader):
        numbers = constant(other) if one is value else None
        if numbers is not None and numbers.shape == sizes:
            return reader, numbers
    return None


@dataclass(frozen=True)
class FuseLayerNorm(Fusion):
    """Fuse the primitives of layer normalization into LayerNormalization (opset 17)."""

    name: ClassVar[str] = "fuse-layer-norm"
    kernel = "layer-norm"
    patterns = (fuse,)
