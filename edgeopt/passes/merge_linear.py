"""Merge linear operators that follow each other, where one is cheaper than two.

    B·(A·x + a) + b = (B·A)·x + (B·a + b)

for a MatMul or Gemm after another, and for a convolution of one element that follows another convolution:
with k elements, C channels read, M between and N made, it pays where C·N·k takes no more
multiply-accumulates and no more weights than C·M·k + M·N. Nothing may stand or read between the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.graph.change import NoMatch
from edgeopt.graph.linear import Linear, linear
from edgeopt.graph.rewriting import Replacement, Result, constant, initializer, node, rule
from edgeopt.graph.shapes import dims
from edgeopt.passes._fusion import Fusion


@rule("Conv -> Conv", name="convolution and a convolution of one element")
def merge_convolutions(first: ir.Node, second: ir.Node) -> Result:
    """The second may have any stride: it picks of what the first makes."""
    one, two = linear(first), linear(second)
    if isinstance(one, NoMatch):
        return one
    if isinstance(two, NoMatch):
        return two
    if prod(two.weight.shape[2:]) != 1:
        return None
    if first.attributes.get_int("group", 1) != 1 or second.attributes.get_int("group", 1) != 1:
        return NoMatch("it has groups")
    if any(second.attributes.get_ints("pads", ())):
        return NoMatch("the second pads")
    strides = second.attributes.get_ints("strides", ())
    if any(step != 1 for step in strides):
        return NoMatch("the second leaves out elements")
    kernel = prod(one.weight.shape[2:])
    if reason := _costs(one.weight.shape[1], one.channels, two.channels, kernel):
        return NoMatch(reason)
    left = two.weight.astype(np.float64).reshape(two.channels, one.channels)
    right = one.weight.astype(np.float64).reshape(one.channels, -1)
    weight = (left @ right).reshape(two.channels, *one.weight.shape[1:])
    return one.with_numbers(weight, left @ one.bias + two.bias)


@rule("Gemm -> Gemm", name="product of a product")
def merge_gemms(first: ir.Node, second: ir.Node) -> Result:
    """Two Gemm."""
    if second.inputs[0] is not first.outputs[0]:
        return None
    one, two = linear(first), linear(second)
    if isinstance(one, NoMatch):
        return one
    if isinstance(two, NoMatch):
        return two
    if first.attributes.get_int("transA", 0) or second.attributes.get_int("transA", 0):
        return NoMatch("it transposes what it reads")
    left, right = _matrix(one), _matrix(two)
    if reason := _costs(left.shape[0], left.shape[1], right.shape[1], 1):
        return NoMatch(reason)
    dtype = one.weight.dtype
    weight = initializer(f"{first.name}.weight", (left @ right).astype(dtype))
    bias = initializer(f"{first.name}.bias", (one.bias @ right + two.bias).astype(dtype))
    return node("Gemm", [first.inputs[0], weight, bias])


@rule("MatMul -> MatMul", name="product of a product")
def merge_products(first: ir.Node, second: ir.Node) -> Result:
    """Two MatMul by constant matrices."""
    left, right = constant(first.inputs[1]), constant(second.inputs[1])
    if left is None or right is None or second.inputs[0] is not first.outputs[0]:
        return None
    if left.ndim != 2 or right.ndim != 2 or left.dtype.kind != "f" or len(dims(first.inputs[0]) or ()) < 2:
        return None
    if reason := _costs(left.shape[0], left.shape[1], right.shape[1], 1):
        return NoMatch(reason)
    whole = (left.astype(np.float64) @ right.astype(np.float64)).astype(left.dtype)
    fused = node("MatMul", [first.inputs[0], initializer(f"{first.name}.weight", whole)])
    return Replacement({second.outputs[0]: fused.outputs[0]}, [first, second])


def _costs(read: int, between: int, made: int, kernel: int) -> str:
    """Why one operator would cost more than two, or ""."""
    one, two = read * made * kernel, read * between * kernel + between * made
    return "" if one <= two else f"one takes {one} multiply-accumulates an element, the two take {two}"


def _matrix(layer: Linear) -> np.ndarray:
    """The weight of a Gemm as [read, made], with its factor alpha."""
    weight = layer.weight.astype(np.float64) * layer.node.attributes.get_float("alpha", 1.0)
    return weight.T if layer.node.attributes.get_int("transB", 0) else weight


@dataclass(frozen=True)
class MergeLinear(Fusion):
    """Merge products and convolutions that follow each other, where one is cheaper than two."""

    name: ClassVar[str] = "merge-linear"
    patterns = (merge_convolutions, merge_gemms, merge_products)
