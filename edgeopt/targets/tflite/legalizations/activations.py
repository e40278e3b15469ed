"""Activations that TFLite has no operator for, by the formulas that define them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from edgeopt.graph.layout import shape_of
from edgeopt.targets.tflite.legalize import Legalization, Splice, legalizes
from edgeopt.targets.tflite.steps import Parameters, attribute, only_reader, quantized


@legalizes("HardSigmoid")
def spell_hard_sigmoid(splice: Splice, node: ir.Node) -> bool:
    """x · HardSigmoid(x) of the usual slope as HardSwish; else a clipped line."""
    alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    source = node.inputs[0]
    if source is None:
        return False
    usual = abs(alpha - 1 / 6) < 1e-6 and beta == 0.5
    if usual:
        shifted = splice.op("Add", source, np.array(3, np.float32), shape=shape_of(source))
        clipped = splice.op(
            "Clip", shifted, np.array(0, np.float32), np.array(6, np.float32), shape=shape_of(source)
        )
        if quantized(source) is not None:
            clipped = splice.grid(clipped, Parameters("int8", 6 / 255, -128))
        return splice.replace(splice.op("Mul", clipped, np.array(1 / 6, np.float32)))
    line = splice.op("Mul", source, np.array(alpha, np.float32), shape=shape_of(source))
    line = splice.op("Add", line, np.array(beta, np.float32), shape=shape_of(source))
    return splice.replace(splice.op("Clip", line, np.array(0, np.float32), np.array(1, np.float32)))


@legalizes("Mul")
def join_hard_swish(splice: Splice, node: ir.Node) -> bool:
    """x · HardSigmoid(x) of slope 1/6 as HardSwish."""
    for mine, other in ((0, 1), (1, 0)):
        value, source = node.inputs[mine], node.inputs[other]
        gate = value.producer() if value is not None else None
        if gate is None or gate.op_type != "HardSigmoid" or gate.inputs[0] is not source or value is None:
            continue
        if only_reader(value) is not node or attribute(gate, "beta", 0.5) != 0.5:
            continue
        if abs(attribute(gate, "alpha", 0.2) - 1 / 6) < 1e-6:
            return splice.replace(splice.op("HardSwish", source))
    return False


def _spelled(formula: Callable[[Splice, ir.Node, ir.Value], ir.Value]) -> Legalization:
    def rule(splice: Splice, node: ir.Node) -> bool:
        source = node.inputs[0]
        if source is None or source.dtype != ir.DataType.FLOAT:
            return False
        return splice.replace(formula(splice, node, source))

    rule.__name__ = "spell_activation"
    return rule


def _number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def _softplus(splice: Splice, node: ir.Node, x: ir.Value) -> ir.Value:
    """max(x, 0) + log(1 + exp(-|x|)), which does not overflow."""
    shape = shape_of(x)
    tail = splice.op("Exp", splice.op("Neg", splice.op("Abs", x, shape=shape), shape=shape), shape=shape)
    tail = splice.op("Log", splice.op("Add", tail, _number(1), shape=shape), shape=shape)
    return splice.op("Add", splice.op("Relu", x, shape=shape), tail, shape=shape)


def _mish(splice: Splice, node: ir.Node, x: ir.Value) -> ir.Value:
    return splice.op("Mul", x, splice.op("Tanh", _softplus(splice, node, x), shape=shape_of(x)))


def _softsign(splice: Splice, node: ir.Node, x: ir.Value) -> ir.Value:
    shape = shape_of(x)
    return splice.op("Div", x, splice.op("Add", splice.op("Abs", x, shape=shape), _number(1), shape=shape))


def _swish(splice: Splice, node: ir.Node, x: ir.Value) -> ir.Value:
    alpha, shape = attribute(node, "alpha", 1.0), shape_of(x)
    line = x if alpha == 1.0 else splice.op("Mul", x, _number(alpha), shape=shape)
    gate = splice.op("Sigmoid", line, shape=shape)
    if quantized(x) is not None and line is x:
        gate = splice.grid(gate, Parameters("int8", 1 / 256, -128))
    return splice.op("Mul", x, gate)


def _exponential(splice: Splice, x: ir.Value, alpha: float, gamma: float, inner: float) -> ir.Value:
    """gamma · (max(x, 0) + alpha · (exp(min(x, 0) / inner) - 1))."""
    shape = shape_of(x)
    low = splice.op("Min", x, _number(0), shape=shape)
    if inner != 1.0:
        low = splice.op("Mul", low, _number(1 / inner), shape=shape)
    low = splice.op("Sub", splice.op("Exp", low, shape=shape), _number(1), shape=shape)
    low = splice.op("Mul", low, _number(alpha * gamma), shape=shape)
    high = splice.op("Relu", x, shape=shape)
    if gamma != 1.0:
        high = splice.op("Mul", high, _number(gamma), shape=shape)
    return splice.op("Add", high, low)


def _selu(splice: Splice, node: ir.Node, x: ir.Value) -> ir.Value:
    alpha, gamma = (
        attribute(node, "alpha", 1.67326319217681884765625),
        attribute(node, "gamma", 1.05070102214813232421875),
    )
    return _exponential(splice, x, alpha, gamma, 1.0)


def _celu(splice: Splice, node: ir.Node, x: ir.Value) -> ir.Value:
    alpha = attribute(node, "alpha", 1.0)
    return _exponential(splice, x, alpha, 1.0, alpha)


def _thresholded(splice: Splice, node: ir.Node, x: ir.Value) -> ir.Value:
    over = splice.op("Greater", x, _number(attribute(node, "alpha", 1.0)), shape=shape_of(x))
    over.dtype = ir.DataType.BOOL
    out = splice.op("Where", over, x, _number(0))
    out.type = x.type
    return out


for _name, _formula in (
    ("Softplus", _softplus),
    ("Mish", _mish),
    ("Softsign", _softsign),
    ("Swish", _swish),
    ("Selu", _selu),
    ("Celu", _celu),
    ("ThresholdedRelu", _thresholded),
):
    legalizes(_name)(_spelled(_formula))


@legalizes("Elu")
def spell_elu(splice: Splice, node: ir.Node) -> bool:
    """ELU with another alpha than 1."""
    alpha, source = attribute(node, "alpha", 1.0), node.inputs[0]
    if alpha == 1.0 or source is None:
        return False
    return splice.replace(_exponential(splice, source, alpha, 1.0, 1.0))
