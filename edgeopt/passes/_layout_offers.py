"""In which orders of their axes the operators of ONNX can compute.

A Transpose only renames the axes of what it reads. Operators that work on elements take any order; those
along given axes take any order too and find their axes in it; all others want the order as it is, as do
the model's inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgeopt.graph.layout import Choice, Layout, identity
from edgeopt.graph.region import graphs_of
from edgeopt.graph.rewriting import constant, opset
from edgeopt.graph.shapes import dims
from edgeopt.graph.traversal import captured_by

# fmt: off
ELEMENTWISE = {
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh",
    "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign",
    "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
}
"""Operators on the elements of one value."""

BROADCAST = {
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min",
    "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
}
"""Operators on the elements of several values that are broadcast together."""

REDUCE = {
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSum", "ReduceSumSquare",
}
"""Operators that reduce axes."""
# fmt: on


@dataclass(frozen=True)
class Step:
    """A node, or the readers that want a value as it is (graph outputs)."""

    node: ir.Node | None
    inputs: Sequence[ir.Value | None]
    outputs: Sequence[ir.Value]


def rank_of(value: ir.Value | None) -> int:
    """The number of a value's axes; 0 where it is not known."""
    return len(dims(value) or ())


def offer(step: Step, is_input: bool, index: int, layout: Layout) -> Choice | None:
    """The way to run a step with a layout at one of its inputs or outputs; ``None`` where there is none."""
    node, given = step.node, step.inputs
    value = given[index] if is_input else step.outputs[index]
    if value is None or len(layout) != rank_of(value):
        return None
    plain = Choice(
        tuple(None if value is None else identity(rank_of(value)) for value in given),
        tuple(identity(rank_of(value)) for value in step.outputs),
    )
    if node is not None and is_move(node):
        order = order_of(node)
        before = layout if is_input else tuple(order[axis] for axis in layout)
        return Choice((before,), (tuple(order.index(axis) for axis in before),))
    if layout == identity(len(layout)):
        return plain
    if node is None or not _follows(node, layout):
        return None
    first = len(layout)
    inputs = tuple(layout if _moves(node, place, first) else None for place in range(len(given)))
    if any(
        want is None and value is not None and not _kept(node, place)
        for place, (want, value) in enumerate(zip(inputs, given, strict=True))
    ):
        return None
    return Choice(inputs, tuple(layout for _ in step.outputs))


def _follows(node: ir.Node, layout: Layout) -> bool:
    """Whether an operator can compute in another order of axes."""
    if node.domain not in ("", "ai.onnx") or any(graphs_of(item) for item in node.attributes.values()):
        return False
    if any(rank_of(value) != len(layout) for value in node.outputs if value.name):
        return False
    if node.op_type in ELEMENTWISE or node.op_type in BROADCAST:
        return True
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return all(dims(value) == () for value in node.inputs[1:])
    if node.op_type in ("Concat", "Split"):
        return True
    if node.op_type == "Softmax":
        axis = node.attributes.get_int("axis", -1 if opset(node) >= 13 else 1)
        return opset(node) >= 13 and layout[-1] == axis % len(layout)
    return (
        node.op_type in REDUCE and bool(node.attributes.get_int("keepdims", 1)) and axes_of(node) is not None
    )


def _moves(node: ir.Node, place: int, rank: int) -> bool:
    """Whether an input is one of the tensors that the operator computes on, with all axes."""
    value = node.inputs[place]
    if value is None or rank_of(value) != rank:
        return False
    return place == 0 or node.op_type in BROADCAST or node.op_type == "Concat"


def _kept(node: ir.Node, place: int) -> bool:
    """Whether an input stays as it is in every order: a scalar, a constant, a parameter."""
    value = node.inputs[place]
    if value is None or (node.op_type not in BROADCAST and node.op_type != "Concat"):
        return place > 0
    return constant(value) is not None or dims(value) == ()


def is_move(node: ir.Node) -> bool:
    """Whether a node is a Transpose of a value whose rank is known."""
    if node.op_type != "Transpose" or node.domain not in ("", "ai.onnx"):
        return False
    return dims(node.inputs[0]) is not None and len(order_of(node)) == rank_of(node.inputs[0])


def order_of(transpose: ir.Node) -> Layout:
    """The axes of a Transpose's input in the order of its output."""
    rank = rank_of(transpose.inputs[0])
    return tuple(transpose.attributes.get_ints("perm", tuple(reversed(range(rank)))))


def axes_of(reduce: ir.Node) -> list[int] | None:
    """The axes that a reduction is over, from the first on; ``None`` where they are not known, or all."""
    given = reduce.attributes.get_ints("axes", None)
    if given is None and len(reduce.inputs) > 1 and reduce.inputs[1] is not None:
        numbers = constant(reduce.inputs[1])
        given = None if numbers is None else [int(axis) for axis in numbers.reshape(-1)]
    rank = rank_of(reduce.inputs[0])
    return None if not given or not rank else [axis % rank for axis in given]


def steps_of(graph: ir.Graph) -> list[Step]:
    """The nodes of a graph but constants, with what their subgraphs read; then the graph's outputs."""
    steps = []
    for node in graph:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            continue
        named = [value for value in node.outputs if value.name]
        steps.append(Step(node, [*node.inputs, *captured_by(node)], named))
    return [*steps, Step(None, list(graph.outputs), [])]
