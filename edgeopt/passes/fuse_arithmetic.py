"""Fuse arithmetic with constants that follows each other, and constant factors into weights further up.

(x·a)·b = x·(a·b)      (x + a) + b = x + (a + b)      x·(1/y) = x/y
c·(A·B) = (c·A)·B      where a Conv, Gemm or MatMul with a constant weight makes A, in one axis order
                       or another: the scale of attention becomes part of the weights of its queries
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.graph.change import NoMatch
from edgeopt.graph.linear import linear
from edgeopt.graph.rewriting import (
    Replacement,
    Result,
    another_reader,
    constant,
    initializer,
    node,
    rule,
    sole_reader,
)
from edgeopt.graph.scalars import operands, scalar
from edgeopt.graph.shapes import dims
from edgeopt.passes._fusion import Fusion

_FURTHEST = 12
"""How many nodes up a factor is carried at most."""

_MOVES = {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Split", "Identity"}


@rule("Add|Sub -> Add|Sub", name="constant terms")
def merge_terms(first: ir.Node, second: ir.Node) -> Result:
    """One constant, no larger than the larger of the two."""
    one, two = _with_constant(first), _with_constant(second)
    if one is None or two is None or two[0] is not first.outputs[0] or not _same_float(one[1], two[1]):
        return None
    left = one[1] if first.op_type == "Add" else -one[1]
    return _combined("Add", one[0], left + (two[1] if second.op_type == "Add" else -two[1]), one, two, second)


@rule("Mul|Div -> Mul|Div", name="constant factors")
def merge_factors(first: ir.Node, second: ir.Node) -> Result:
    """One constant, no larger than the larger of the two."""
    one, two = _with_constant(first), _with_constant(second)
    if one is None or two is None or two[0] is not first.outputs[0] or not _same_float(one[1], two[1]):
        return None
    factors = [
        number.astype(np.float64) ** (1 if item.op_type == "Mul" else -1)
        for item, (_, number) in ((first, one), (second, two))
        if item.op_type == "Mul" or number.all()
    ]
    if len(factors) < 2:
        return NoMatch("a divisor is zero")
    product = (factors[0] * factors[1]).astype(one[1].dtype)
    usual = np.isfinite(product).all() and (np.abs(product) > np.finfo(product.dtype).tiny).all()
    if not usual:
        return NoMatch("the product of the factors is zero, subnormal or not finite")
    return _combined("Mul", one[0], product, one, two, second)


@rule("Reciprocal -> Mul", name="Reciprocal -> Mul is Div")
def divide(reciprocal: ir.Node, product: ir.Node) -> Result:
    """x times 1 / y."""
    for one, other in operands(product):
        if one is reciprocal.outputs[0] and other is not one and other.dtype != ir.DataType.FLOAT16:
            return node("Div", [other, reciprocal.inputs[0]])
    return None


@rule("MatMul|Transpose|Reshape -> Mul|Div", name="factor into a weight further up")
def scale_weight(above: ir.Node, scaling: ir.Node) -> Result:
    """Carries a factor up to the first constant weight or bias."""
    number = next((scalar(value) for value in scaling.inputs if scalar(value) is not None), None)
    if (
        number is None
        or not number
        or (scaling.op_type == "Div" and scaling.inputs[0] is not above.outputs[0])
    ):
        return None
    if (dims(scaling.outputs[0]) or ()) != (dims(above.outputs[0]) or (None,)):
        return None
    factor = number if scaling.op_type == "Mul" else 1 / number
    replaced: list[ir.Node] = [scaling]
    new = _scaled(above.outputs[0], factor, replaced, _FURTHEST)
    if new is None:
        return NoMatch("no constant weight is linear in the value")
    return Replacement({scaling.outputs[0]: new}, list(reversed(replaced)))


@rule("Mul|Div -> MatMul", name="factors of both operands")
def one_factor(scaling: ir.Node, product: ir.Node) -> Result:
    """(a·x)·(b·y) = (ab·x)·y for numbers a and b."""
    one, other = product.inputs[:2]
    second = None if other is None else other.producer()
    if one is not scaling.outputs[0] or one is None or other is None or second is None or second is scaling:
        return None
    if sole_reader(one) is None or sole_reader(other) is None or second.op_type not in ("Mul", "Div"):
        return None
    left, right = _by_number(scaling), _by_number(second)
    if left is None or right is None or right[0].dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return None
    number = np.array(left[1] * right[1], right[0].dtype.numpy())
    if not np.isfinite(number) or abs(number) < np.finfo(number.dtype).tiny:
        return NoMatch("the product of the factors is zero, subnormal or not finite")
    scaled = node("Mul", [left[0], initializer(f"{scaling.name}.factor", number)])
    new = node("MatMul", [scaled.outputs[0], right[0]])
    return Replacement({product.outputs[0]: new.outputs[0]}, [scaling, second, product])


def _by_number(scaling: ir.Node) -> tuple[ir.Value, float] | None:
    """What a Mul or Div scales by one number, and the factor."""
    for value, other in operands(scaling) if scaling.op_type == "Mul" else operands(scaling)[:1]:
        number = scalar(other)
        if number and dims(value) is not None and dims(value) == dims(scaling.outputs[0]):
            return value, number if scaling.op_type == "Mul" else 1 / number
    return None


def _scaled(value: ir.Value, factor: float, replaced: list[ir.Node], steps: int) -> ir.Value | None:
    """The value times the factor, made of copies of the nodes that make it; ``None`` where that is not."""
    maker = value.producer()
    if maker is None or sole_reader(value) is None or not steps or len(maker.outputs) != 1:
        return None
    mark = len(replaced)
    replaced.append(maker)
    made = _scaled_maker(maker, factor, replaced, steps - 1)
    if made is None:
        del replaced[mark:]
        return None
    return made.outputs[0]


def _scaled_maker(maker: ir.Node, factor: float, replaced: list[ir.Node], steps: int) -> ir.Node | None:
    inputs = list(maker.inputs)
    if maker.op_type in ("Conv", "Gemm"):
        layer = linear(maker)
        if isinstance(layer, NoMatch):
            return None
        made = layer.scaled(np.full(layer.channels, factor), np.zeros(layer.channels))
        return None if isinstance(made, NoMatch) else made
    if maker.op_type in _MOVES and inputs[0] is not None:
        inner = _scaled(inputs[0], factor, replaced, steps)
        return None if inner is None else _with_inputs(maker, [inner, *inputs[1:]])
    if maker.op_type == "MatMul":
        for place in (1, 0):
            numbers = constant(inputs[place])
            if numbers is not None and numbers.dtype.kind == "f":
                return _constant_scaled(maker, place, numbers, factor)
        for place in (0, 1):
            source = inputs[place]
            inner = None if source is None else _scaled(source, factor, replaced, steps)
            if inner is not None:
                return _with_inputs(maker, [inner if at == place else old for at, old in enumerate(inputs)])
    if maker.op_type == "Add":
        for value, other in operands(maker):
            numbers = constant(other)
            inner = None if numbers is None else _scaled(value, factor, replaced, steps)
            if inner is not None and numbers is not None:
                shift = initializer(f"{other.name}", (numbers * factor).astype(numbers.dtype))
                return node("Add", [inner, shift])
    return None


def _constant_scaled(maker: ir.Node, place: int, numbers: np.ndarray, factor: float) -> ir.Node | None:
    weight = maker.inputs[place]
    if weight is None or another_reader(weight, than=maker) is not None or numbers.dtype == np.float16:
        return None
    inputs = list(maker.inputs)
    inputs[place] = initializer(f"{weight.name}", (numbers * factor).astype(numbers.dtype))
    return _with_inputs(maker, inputs)


def _with_inputs(maker: ir.Node, inputs: list[ir.Value | None]) -> ir.Node:
    return ir.Node("", maker.op_type, inputs, list(maker.attributes.values()))


def _with_constant(item: ir.Node) -> tuple[ir.Value, np.ndarray] | None:
    """The computed operand and the constant one; of a quotient or difference the constant is the second."""
    pairs = operands(item) if item.op_type in ("Add", "Mul") else operands(item)[:1]
    for value, other in pairs:
        numbers = constant(other)
        if numbers is not None and constant(value) is None:
            return value, numbers
    return None


def _same_float(one: np.ndarray, two: np.ndarray) -> bool:
    return one.dtype == two.dtype and one.dtype in (np.float32, np.float64)


def _combined(
    operator: str,
    x: ir.Value,
    numbers: np.ndarray,
    one: tuple[ir.Value, np.ndarray],
    two: tuple[ir.Value, np.ndarray],
    last: ir.Node,
) -> Result:
    if numbers.size > max(one[1].size, two[1].size):
        return NoMatch("the two constants together are larger")
    return node(operator, [x, initializer(f"{last.name}.constant", numbers)])


@dataclass(frozen=True)
class FuseArithmetic(Fusion):
    """Fuse constant factors and terms that follow each other, or into weights further up."""

    name: ClassVar[str] = "fuse-arithmetic"
    patterns = (merge_terms, merge_factors, divide, scale_weight, one_factor)
