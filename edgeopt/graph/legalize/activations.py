"""Activations in terms of older ones.

Gelu       x · (1 + erf(x / √2)) / 2, or with tanh (Hendrycks and Gimpel, 2016)
HardSwish  x · HardSigmoid(x; 1/6, 1/2) (Howard et al., 2019)
Mish       x · tanh(softplus(x)) (Misra, 2019)
Swish      x · sigmoid(alpha · x)
Celu       max(0, x) + min(0, alpha · (exp(x / alpha) - 1))
Softplus   log(1 + exp(x)), stated as max(x, 0) + log(1 + exp(-|x|)), which does not overflow
Softsign   x / (1 + |x|)
Shrink     x - bias above lambd, x + bias below -lambd, else 0
"""

from __future__ import annotations

import math

import onnx_ir as ir

from edgeopt.graph.legalize.table import decomposition, first, make, scalar
from edgeopt.graph.rewriting import NoMatch, Result


@decomposition("Gelu")
def gelu(item: ir.Node) -> Result:
    """Opset 20."""
    x = first(item)
    half = make("Mul", [x, scalar(0.5, x)], x)
    if item.attributes.get_string("approximate", "none") == "tanh":
        square = make("Mul", [x, x], x)
        bent = make("Add", [make("Mul", [square, scalar(0.044715, x)], x), scalar(1, x)], x)
        inner = make("Mul", [make("Mul", [x, scalar(math.sqrt(2 / math.pi), x)], x), bent], x)
        curve = make("Tanh", [inner], x)
    else:
        curve = make("Erf", [make("Mul", [x, scalar(math.sqrt(0.5), x)], x)], x)
    return make("Mul", [half, make("Add", [curve, scalar(1, x)], x)], x)


@decomposition("HardSwish")
def hard_swish(item: ir.Node) -> Result:
    """Opset 14."""
    x = first(item)
    return make("Mul", [x, make("HardSigmoid", [x], x, alpha=1 / 6, beta=0.5)], x)


@decomposition("Mish")
def mish(item: ir.Node) -> Result:
    """Opset 18."""
    x = first(item)
    return make("Mul", [x, make("Tanh", [make("Softplus", [x], x)], x)], x)


@decomposition("Swish")
def swish(item: ir.Node) -> Result:
    """Opset 24."""
    x = first(item)
    alpha = item.attributes.get_float("alpha", 1.0)
    inner = x if alpha == 1 else make("Mul", [x, scalar(alpha or 0.0, x)], x)
    return make("Mul", [x, make("Sigmoid", [inner], x)], x)


@decomposition("Celu")
def celu(item: ir.Node) -> Result:
    """Opset 12."""
    x = first(item)
    alpha = item.attributes.get_float("alpha", 1.0) or 1.0
    stretched = x if alpha == 1 else make("Mul", [x, scalar(1 / alpha, x)], x)
    curve = make("Elu", [stretched], x, alpha=1.0)
    return curve if alpha == 1 else make("Mul", [curve, scalar(alpha, x)], x)


@decomposition("Softplus")
def softplus(item: ir.Node) -> Result:
    """Opset 1; some runtimes lack it."""
    x = first(item)
    small = make("Exp", [make("Neg", [make("Abs", [x], x)], x)], x)
    return make("Add", [make("Relu", [x], x), make("Log", [make("Add", [small, scalar(1, x)], x)], x)], x)


@decomposition("Softsign")
def softsign(item: ir.Node) -> Result:
    """Opset 1; some runtimes lack it."""
    x = first(item)
    return make("Div", [x, make("Add", [make("Abs", [x], x), scalar(1, x)], x)], x)


@decomposition("Shrink")
def shrink(item: ir.Node) -> Result:
    """Opset 9."""
    x = first(item)
    if x.dtype is None or not x.dtype.is_floating_point():
        return NoMatch("it shrinks integers")
    bias = item.attributes.get_float("bias", 0.0) or 0.0
    limit = item.attributes.get_float("lambd", 0.5) or 0.0
    above = make("Greater", [x, scalar(limit, x)], x, dtype=ir.DataType.BOOL)
    below = make("Less", [x, scalar(-limit, x)], x, dtype=ir.DataType.BOOL)
    lower = make("Where", [below, make("Add", [x, scalar(bias, x)], x), scalar(0, x)], x)
    return make("Where", [above, make("Sub", [x, scalar(bias, x)], x), lower], x)


DECOMPOSITIONS = (gelu, hard_swish, mish, swish, celu, softplus, softsign, shrink)
