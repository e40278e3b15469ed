"""Elementwise operators: ranks and types that do not match, remainders with a sign."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.layout import shape_of
from edgeopt.targets.tflite.legalize import Splice, legalizes, plain_attributes
from edgeopt.targets.tflite.steps import attribute, constant


@legalizes(
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Max",
    "Min",
    "Sum",
    "Mean",
    "Where",
    "PRelu",
    "Expand",
    "Mod",
    "Equal",
    "Less",
    "LessOrEqual",
    "Greater",
    "GreaterOrEqual",
    "And",
    "Or",
    "Xor",
)
def raise_rank(splice: Splice, node: ir.Node) -> bool:
    """Computed operands of fewer axes get axes of size 1, so that all share one layout."""
    rank = len(shape_of(node.outputs[0]))
    inputs: list[ir.Value | None] = []
    for index, value in enumerate(node.inputs):
        if value is None or constant(value) is not None or (node.op_type == "Expand" and index > 0):
            inputs.append(value)
        elif len(shape := shape_of(value)) < rank:
            inputs.append(splice.reshape(value, (*[1] * (rank - len(shape)), *shape)))
        else:
            inputs.append(value)
    if not splice.made:
        return False
    return splice.replace(splice.op(node.op_type, *inputs, **plain_attributes(node)))


@legalizes("Pow")
def cast_exponent(splice: Splice, node: ir.Node) -> bool:
    """Base and exponent of one type: the exponent's follows the base's, but integers by a float's."""
    base, exponent = node.inputs
    if base is None or exponent is None or base.dtype is None or base.dtype == exponent.dtype:
        return False
    real = ir.DataType.FLOAT
    shape = shape_of(node.outputs[0])
    first = base if base.dtype == real else _cast(splice, base, real)
    second = exponent if exponent.dtype == real else _cast(splice, exponent, real)
    out = splice.op("Pow", first, second, shape=shape)
    return splice.replace(out if base.dtype == real else _cast(splice, out, base.dtype))


def _cast(splice: Splice, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    out = splice.op("Cast", value, shape=shape_of(value), to=int(dtype))
    out.dtype = dtype
    return out


@legalizes("Mod")
def spell_remainder(splice: Splice, node: ir.Node) -> bool:
    """A remainder with the sign of the dividend, by that of the absolute values."""
    first, second = node.inputs
    if not attribute(node, "fmod", 0) or first is None or second is None or first.dtype is None:
        return False
    one, two, shape = shape_of(first), shape_of(second), shape_of(node.outputs[0])
    left = splice.op("Max", first, splice.op("Neg", first, shape=one), shape=one)
    right = splice.op("Max", second, splice.op("Neg", second, shape=two), shape=two)
    rest = splice.op("Mod", left, right, shape=shape)
    negative = splice.op("Less", first, np.array(0, first.dtype.numpy()), shape=one)
    negative.dtype = ir.DataType.BOOL
    out = splice.op("Where", negative, splice.op("Neg", rest, shape=shape), rest)
    out.dtype = first.dtype
    return splice.replace(out)
