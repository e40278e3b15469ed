"""Operators that compute each element by itself, with broadcasting."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import onnx_ir as ir
import torch
import torch.nn.functional as F

from edgeopt.graph.autograd.dtypes import torch_dtype
from edgeopt.graph.autograd.operators import Call, Tensor, operator

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": lambda x: F.softplus(x, threshold=40.0),
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}

BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}

for _name, _unary in UNARY.items():
    operator(_name)(lambda call, x, function=_unary: function(x))
for _name, _binary in BINARY.items():
    operator(_name)(lambda call, a, b, function=_binary: function(a, b))


@operator("Div")
def div(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Divides; integers are truncated."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Pow")
def power(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Raises to a power, in the type of the base."""
    if not a.is_floating_point() and b.is_floating_point():
        return torch.pow(a.to(b.dtype), b).to(a.dtype)
    return torch.pow(a, b.to(a.dtype) if b.is_floating_point() else b)


@operator("Mod")
def mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Takes the remainder, with the sign of the divisor or (fmod) of the dividend."""
    return torch.fmod(a, b) if call.integer("fmod") else torch.remainder(a, b)


@operator("Max")
def maximum(call: Call, *values: Tensor) -> Tensor:
    """The largest of several tensors."""
    return functools.reduce(torch.maximum, values)


@operator("Min")
def minimum(call: Call, *values: Tensor) -> Tensor:
    """The smallest of several tensors."""
    return functools.reduce(torch.minimum, values)


@operator("Sum")
def total(call: Call, *values: Tensor) -> Tensor:
    """The sum of several tensors."""
    return functools.reduce(torch.add, values)


@operator("Mean")
def mean(call: Call, *values: Tensor) -> Tensor:
    """The mean of several tensors."""
    return functools.reduce(torch.add, values) / len(values)


@operator("Where")
def where(call: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Chooses between two tensors."""
    return torch.where(condition, a, b)


@operator("Clip")
def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Limits to a range, whose upper end wins."""
    if low is not None:
        x = torch.maximum(x, low.to(x.dtype))
    return x if high is None else torch.minimum(x, high.to(x.dtype))


@operator("LeakyRelu")
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    """x, or alpha x below zero."""
    return F.leaky_relu(x, call.number("alpha", 0.01))


@operator("PRelu")
def prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    """x, or slope x below zero."""
    return torch.where(x < 0, x * slope, x)


@operator("ThresholdedRelu")
def thresholded_relu(call: Call, x: Tensor) -> Tensor:
    """x above alpha, else zero."""
    return torch.where(x > call.number("alpha", 1.0), x, torch.zeros_like(x))


@operator("Elu")
def elu(call: Call, x: Tensor) -> Tensor:
    """alpha (exp x - 1) below zero."""
    return F.elu(x, call.number("alpha", 1.0))


@operator("Celu")
def celu(call: Call, x: Tensor) -> Tensor:
    """alpha (exp(x / alpha) - 1) below zero."""
    return F.celu(x, call.number("alpha", 1.0))


@operator("Selu")
def selu(call: Call, x: Tensor) -> Tensor:
    """The scaled Elu."""
    alpha = call.number("alpha", 1.67326319217681884765625)
    gamma = call.number("gamma", 1.05070102214813232421875)
    return gamma * F.elu(x, alpha)


@operator("Gelu")
def gelu(call: Call, x: Tensor) -> Tensor:
    """x times the normal distribution function, exact or by tanh."""
    return F.gelu(x, approximate=call.text("approximate", "none"))


@operator("Swish")
def swish(call: Call, x: Tensor) -> Tensor:
    """x sigmoid(alpha x)."""
    return x * torch.sigmoid(call.number("alpha", 1.0) * x)


@operator("HardSigmoid")
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    """alpha x + beta within 0 and 1."""
    return torch.clamp(call.number("alpha", 0.2) * x + call.number("beta", 0.5), 0, 1)


@operator("Shrink")
def shrink(call: Call, x: Tensor) -> Tensor:
    """Pulls towards zero by a bias, and to zero within lambd."""
    bias, limit = call.number("bias", 0.0), call.number("lambd", 0.5)
    zero = torch.zeros_like(x)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, zero))


@operator("IsInf")
def is_inf(call: Call, x: Tensor) -> Tensor:
    """Whether infinite, of the signs asked for."""
    found = torch.zeros_like(x, dtype=torch.bool)
    if call.integer("detect_positive", 1):
        found = found | (x == math.inf)
    if call.integer("detect_negative", 1):
        found = found | (x == -math.inf)
    return found


@operator("Cast")
def cast(call: Call, x: Tensor) -> Tensor:
    """Changes the type; floats become floats of the type computed in where one was chosen."""
    return _to(call, x, ir.DataType(call.integer("to")))


@operator("CastLike")
def cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    """Changes the type to another tensor's."""
    value = call.node.inputs[1]
    if value is not None and value.dtype is not None:
        return _to(call, x, value.dtype)
    return x != 0 if like.dtype == torch.bool else x.to(like.dtype)


def _to(call: Call, x: Tensor, kind: ir.DataType) -> Tensor:
    dtype = torch_dtype(kind)
    if dtype is None or (kind.bitwidth < 8 and kind != ir.DataType.BOOL):
        raise call.refuse(f"to {kind.name.lower()}")
    if dtype.is_floating_point and call.dtype is not None:
        dtype = call.dtype
    if dtype == torch.bool:
        return x != 0
    return x.to(dtype)


@operator("Dropout", host=(1, 2))
def dropout(call: Call, x: Tensor, ratio: float | None = None, training: bool | None = None) -> object:
    """Passes its input on, as at inference."""
    if training:
        raise call.refuse("in training mode")
    return (x, torch.ones_like(x, dtype=torch.bool)) if call.wants(1) else x
