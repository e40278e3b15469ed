"""Arithmetic and logic in terms of older operators.

Reciprocal  1 / x
Mod         a - b · floor(a / b); with fmod a - b · trunc(a / b), trunc as sign · floor of the magnitude
Xor         (a or b) and not (a and b)
IsInf       x = inf, x = -inf
Clip        min(max(x, low), high), where a bound is computed at run time
CastLike    Cast, where the type is known
"""

from __future__ import annotations

import onnx_ir as ir

from edgeopt.graph.legalize.table import decomposition, first, make, optional, scalar
from edgeopt.graph.rewriting import NoMatch, Result, tensor_of

BOOL = ir.DataType.BOOL


@decomposition("Reciprocal")
def reciprocal(item: ir.Node) -> Result:
    """Opset 1; some runtimes lack it."""
    x = first(item)
    return make("Div", [scalar(1, x), x], x)


@decomposition("Mod")
def mod(item: ir.Node) -> Result:
    """Opset 10; of floats."""
    a, b, out = first(item), first(item, 1), item.outputs[0]
    if a.dtype is None or not a.dtype.is_floating_point():
        return NoMatch("it is of integers")
    quotient = make("Div", [a, b], out)
    if item.attributes.get_int("fmod", 0):
        size = make("Floor", [make("Abs", [quotient], out)], out)
        whole = make("Mul", [make("Sign", [quotient], out), size], out)
    else:
        whole = make("Floor", [quotient], out)
    return make("Sub", [a, make("Mul", [whole, b], out)], out)


@decomposition("Xor")
def xor(item: ir.Node) -> Result:
    """Opset 1; some runtimes lack it."""
    a, b, out = first(item), first(item, 1), item.outputs[0]
    both = make("Not", [make("And", [a, b], out)], out)
    return make("And", [make("Or", [a, b], out), both], out)


@decomposition("IsInf")
def is_inf(item: ir.Node) -> Result:
    """Opset 10."""
    x = first(item)
    signs = [
        sign
        for name, sign in (("detect_positive", 1.0), ("detect_negative", -1.0))
        if item.attributes.get_int(name, 1)
    ]
    if not signs:
        return NoMatch("it detects nothing")
    found = [make("Equal", [x, scalar(sign * float("inf"), x)], x, dtype=BOOL) for sign in signs]
    return found[0] if len(found) == 1 else make("Or", found, x, dtype=BOOL)


@decomposition("Clip", always=True)
def clip(item: ir.Node) -> Result:
    """Only where a bound is computed: TensorRT 8 wants them constant."""
    x = first(item)
    low, high = optional(item, 1), optional(item, 2)
    if all(bound is None or tensor_of(bound) is not None for bound in (low, high)):
        return None
    result = x
    if low is not None:
        result = make("Max", [result, low], x)
    return result if high is None else make("Min", [result, high], x)


@decomposition("CastLike")
def cast_like(item: ir.Node) -> Result:
    """Opset 15."""
    x, like = first(item), first(item, 1)
    if like.dtype is None:
        return NoMatch("the type that it casts to is not known")
    return make("Cast", [x], x, dtype=like.dtype, to=like.dtype.value)


DECOMPOSITIONS = (reciprocal, mod, xor, is_inf, clip, cast_like)
