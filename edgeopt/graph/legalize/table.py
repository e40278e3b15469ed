"""What the files of decompositions share: how one is declared, and what they build with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeopt.graph.rewriting import Result, Rule, initializer, node, opset, rule


@dataclass(frozen=True)
class Decomposition:
    """An operator said in older ones.

    Attributes:
        rule: The rewrite; its pattern is the one operator.
        below: It serves every opset below this one, where an attribute or input is missing there; 0 where
            it serves only runtimes and opsets without the operator.
        always: It serves runtimes that have the operator but not all of its forms; the function leaves
            the others alone.
    """

    rule: Rule
    below: int = 0
    always: bool = False


def decomposition(
    operator: str, *, below: int = 0, always: bool = False
) -> Callable[[Callable[[ir.Node], Result]], Decomposition]:
    """Declares the decomposition of one operator of ai.onnx."""

    def declare(function: Callable[[ir.Node], Result]) -> Decomposition:
        return Decomposition(rule(operator, name=f"decompose {operator}")(function), below, always)

    return declare


def first(item: ir.Node, index: int = 0) -> ir.Value:
    """The input of that index, which the operator requires."""
    value = item.inputs[index]
    if value is None:
        raise ValueError(f"{item.op_type} {item.name!r} has no input {index}")
    return value


def optional(item: ir.Node, index: int) -> ir.Value | None:
    """The input of that index, if it is given."""
    return item.inputs[index] if index < len(item.inputs) else None


def make(
    operator: str,
    inputs: Sequence[ir.Value | None],
    like: ir.Value,
    *,
    dtype: ir.DataType | None = None,
    same: bool = True,
    **attributes: object,
) -> ir.Value:
    """Builds one node and returns its output.

    Args:
        operator: An operator of ai.onnx.
        inputs: Its inputs.
        like: The output has its type, and its shape where ``same``.
        dtype: Another element type of the output.
        same: Whether the output has the shape of ``like`` too.
        attributes: The node's attributes.
    """
    output = node(operator, inputs, attributes).outputs[0]
    output.type = ir.TensorType(dtype) if dtype is not None else like.type
    output.shape = like.shape.copy() if same and like.shape is not None else None
    return output


def scalar(number: float, like: ir.Value, name: str = "constant") -> ir.Value:
    """A constant of shape () and of the type of a value."""
    dtype = like.dtype or ir.DataType.FLOAT
    return initializer(name, np.asarray(number, dtype.numpy()))


def integers(numbers: Sequence[int], name: str = "constant") -> ir.Value:
    """A constant of int64, shaped [n]."""
    return initializer(name, np.asarray(numbers, np.int64))


def reduce(operator: str, item: ir.Node, value: ir.Value, axes: Sequence[int]) -> ir.Value:
    """Reduces axes to size 1, with the axes where the opset in force at a node wants them."""
    if opset(item) >= 18 or operator == "ReduceSum":
        reduced = node(operator, [value, integers(axes, "axes")], {"keepdims": 1})
    else:
        reduced = node(operator, [value], {"keepdims": 1, "axes": list(axes)})
    output = reduced.outputs[0]
    output.type = value.type
    if value.shape is not None:
        dims = list(value.shape)
        for axis in axes:
            dims[axis] = 1
        output.shape = ir.Shape(dims)
    return output


def rank(value: ir.Value) -> int | None:
    """The number of axes, if it is known."""
    return None if value.shape is None else len(value.shape)


def sizes(value: ir.Value) -> list[int] | None:
    """The sizes of all axes, if all are known numbers."""
    if value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
        return None
    return [int(dim) for dim in value.shape if isinstance(dim, int)]
