"""Reading the primitives that normalizations share out of a graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.rewriting import constant, sole_reader
from edgeopt.graph.scalars import operands, scalar
from edgeopt.graph.shapes import dims


def centred_root(
    variance: ir.Node, add: ir.Node
) -> tuple[ir.Value, ir.Node, ir.Value, float, list[ir.Node]] | None:
    """Reads mean((x - mean(x))²) + epsilon.

    Returns:
        x, the node of its mean, the deviation, epsilon, and all nodes.
    """
    epsilon = next((scalar(one) for one, other in operands(add) if other is variance.outputs[0]), None)
    centred = squared(variance.inputs[0])
    if epsilon is None or centred is None:
        return None
    deviation, square = centred
    subtract = deviation.producer()
    if subtract is None or subtract.op_type != "Sub":
        return None
    x, mean = subtract.inputs[0], subtract.inputs[1].producer() if subtract.inputs[1] is not None else None
    if x is None or mean is None or mean.op_type != "ReduceMean" or mean.inputs[0] is not x:
        return None
    return x, mean, deviation, epsilon, [mean, subtract, square, variance, add]


def squared(value: ir.Value | None) -> tuple[ir.Value, ir.Node] | None:
    """What a value is the square of, and the node."""
    square = None if value is None else value.producer()
    if square is None or square.inputs[0] is None:
        return None
    power = square.op_type == "Pow" and scalar(square.inputs[1]) == 2
    product = square.op_type == "Mul" and square.inputs[0] is square.inputs[1]
    return (square.inputs[0], square) if power or product else None


def last_axes(mean: ir.Node, x: ir.Value) -> int | None:
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


def divided(root: ir.Node, deviation: ir.Value) -> list[ir.Node] | None:
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


def with_constant(
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


def scaled_and_shifted(
    value: ir.Value, channels: int, rank: int
) -> tuple[np.ndarray, np.ndarray, list[ir.Node]]:
    """Reads what follows a value: a product with one constant a channel, then a sum with one.

    Returns:
        Scale and shift, float32 [channels], 1 and 0 where there are none; and the nodes, in order.
    """
    scale, shift = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    nodes = []
    scaling = _per_channel(value, "Mul", channels, rank)
    if scaling is not None:
        scale, value = scaling[1], scaling[0].outputs[0]
        nodes.append(scaling[0])
    shifting = _per_channel(value, "Add", channels, rank)
    if shifting is not None:
        shift = shifting[1]
        nodes.append(shifting[0])
    return scale, shift, nodes


def _per_channel(
    value: ir.Value, operator: str, channels: int, rank: int
) -> tuple[ir.Node, np.ndarray] | None:
    """The only reader of a value, where it combines it with one constant a channel."""
    reader = sole_reader(value)
    if reader is None or reader.op_type != operator:
        return None
    for one, other in operands(reader):
        numbers = constant(other) if one is value else None
        if numbers is None or numbers.ndim > rank or numbers.dtype != np.float32:
            continue
        aligned = numbers.reshape((1,) * (rank - numbers.ndim) + numbers.shape)
        if aligned.shape == (1, channels, *[1] * (rank - 2)) or numbers.size == 1:
            return reader, np.ascontiguousarray(np.broadcast_to(aligned.reshape(-1), (channels,)))
    return None
