"""Reading arithmetic with constant scalars out of a graph, in whatever order it was written."""

from __future__ import annotations

import math

import onnx_ir as ir

from edgeopt.graph.rewriting import constant

CLOSE = 1e-5
"""Relative difference up to which a constant is the number meant; it is rounded to float32 or worse."""


def scalar(value: ir.Value | None) -> float | None:
    """The number, where a value is a constant of one element."""
    numbers = constant(value)
    return float(numbers.reshape(-1)[0]) if numbers is not None and numbers.size == 1 else None


def is_close(value: float | None, wanted: float) -> bool:
    """Whether a number is the one meant."""
    return value is not None and math.isclose(value, wanted, rel_tol=CLOSE)


def operands(node: ir.Node) -> list[tuple[ir.Value, ir.Value]]:
    """The two inputs of a commutative node, in both orders."""
    one, two = node.inputs[:2]
    return [] if one is None or two is None else [(one, two), (two, one)]


def scaled_by(value: ir.Value | None, factor: float) -> tuple[ir.Value, list[ir.Node]] | None:
    """Reads ``value`` as x times the factor, written as Mul or Div: x and the node."""
    node = None if value is None else value.producer()
    if node is None or len(node.inputs) != 2:
        return None
    one, two = node.inputs
    if node.op_type == "Div" and one is not None and is_close(scalar(two), 1 / factor):
        return one, [node]
    if node.op_type == "Mul":
        for x, number in operands(node):
            if is_close(scalar(number), factor):
                return x, [node]
    return None


def product_of(value: ir.Value, x: ir.Value, factor: float) -> tuple[ir.Value, list[ir.Node]] | None:
    """Follows ``value`` downwards to the value that is ``value · x · factor``, in any order of factors.

    Returns:
        That value, and the nodes between.
    """
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    first = uses[0].node
    if first.op_type == "Mul":
        for one, other in operands(first):
            if one is not value:
                continue
            half = scaled_by(other, factor)
            if half is not None and half[0] is x:  # value · (x · factor)
                return first.outputs[0], [*half[1], first]
            if other is x:  # (value · x) · factor
                return _times(first, factor)
    if _scales(first, value, factor):  # (value · factor) · x
        following = list(first.outputs[0].uses())
        if len(following) == 1 and following[0].node.op_type == "Mul":
            last = following[0].node
            if any(one is first.outputs[0] and other is x for one, other in operands(last)):
                return last.outputs[0], [first, last]
    return None


def _times(node: ir.Node, factor: float) -> tuple[ir.Value, list[ir.Node]] | None:
    following = list(node.outputs[0].uses())
    if len(following) != 1 or not _scales(following[0].node, node.outputs[0], factor):
        return None
    return following[0].node.outputs[0], [node, following[0].node]


def _scales(node: ir.Node, value: ir.Value, factor: float) -> bool:
    if node.op_type not in ("Mul", "Div"):
        return False
    scaled = scaled_by(node.outputs[0], factor)
    return scaled is not None and scaled[0] is value
