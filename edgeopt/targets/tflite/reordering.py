"""The order of a value's channels: which convolution's weight decides it, and which would follow it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.graph.layout import shape_of
from edgeopt.targets.tflite.legalize import Splice
from edgeopt.targets.tflite.steps import attribute, constant, only_reader

CHANNELWISE = {
    "Relu",
    "Clip",
    "HardSwish",
    "HardSigmoid",
    "Sigmoid",
    "Tanh",
    "Elu",
    "LeakyRelu",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
}
"""Operators of one input that treat every channel alike and on its own."""


def maker_of(value: ir.Value) -> ir.Node | None:
    """The convolution whose weight decides the order of a value's channels."""
    node = value.producer()
    while node is not None and node.op_type in CHANNELWISE:
        source = node.inputs[0]
        if source is None or only_reader(source) is not node or len(node.outputs) != 1:
            return None
        node = source.producer()
    if node is None or node.op_type != "Conv" or attribute(node, "group", 1) != 1:
        return None
    return node if all(_known(item) for item in node.inputs[1:]) else None


def _known(value: ir.Value | None) -> bool:
    """Whether it is absent or a constant in float, perhaps stored in float16."""
    known = constant(value)
    return value is None or (known is not None and known.scale is None)


def takers_of(value: ir.Value, inside: set[ir.Node]) -> list[tuple[ir.Node, str]] | None:
    """The nodes that another order of a value's channels concerns, and what of each is to be reordered:
    ``columns`` or ``rows`` of its weight, or ``nothing``; ``None`` where something minds the order."""
    if value.is_graph_output():
        return None
    found: list[tuple[ir.Node, str]] = []
    for node, index in value.uses():
        if node in inside:
            continue
        if node.op_type == "Conv" and index == 0 and all(_known(item) for item in node.inputs[1:]):
            group, channels = attribute(node, "group", 1), shape_of(value)[1]
            if group == 1:
                found.append((node, "columns"))
                continue
            if group != channels or shape_of(node.outputs[0])[1] != channels:
                return None
            found.append((node, "rows"))
        elif node.op_type not in CHANNELWISE or index != 0 or len(node.outputs) != 1:
            return None
        else:
            found.append((node, "nothing"))
        further = takers_of(node.outputs[0], set())
        if further is None:
            return None
        found += further
    return found


def reorder(splice: Splice, conv: ir.Node, side: str, order: Sequence[int]) -> None:
    """Takes a convolution's weight in another order of its input's channels, or of its output's."""
    for index, value in enumerate(conv.inputs[1:], 1):
        known = constant(value)
        if value is None or known is None or (side == "columns" and index > 1):
            continue
        taken = np.ascontiguousarray(known.data[:, order] if side == "columns" else known.data[order])
        stored = splice.array(taken, _unused(splice.graph, f"{value.name}/ordered"))
        if taken.dtype == np.float16:
            stored = splice.op("Cast", stored, shape=taken.shape, to=int(ir.DataType.FLOAT))
            stored.dtype = ir.DataType.FLOAT
            splice.graph.insert_before(conv, splice.made[-1])
        conv.replace_input_with(index, stored)


def _unused(graph: ir.Graph, name: str) -> str:
    while name in graph.initializers:
        name += "'"
    return name


def rename(first: ir.Value, last: ir.Value) -> None:
    """Values whose channels lie otherwise now have not the names of the model that came in."""
    value: ir.Value | None = last
    while value is not None:
        value.name = f"{value.name}/ordered"
        node = value.producer()
        value = None if value is first or node is None else node.inputs[0]
