"""Fuse a product of two matrices and the bias added to it into Gemm, and find products in convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.graph.change import NoMatch
from edgeopt.graph.rewriting import Result, constant, initializer, node, opset, rule, sole_reader
from edgeopt.graph.shapes import dims, static_dims
from edgeopt.passes._fusion import Fusion


@rule("MatMul -> Add")
def fuse_bias(product: ir.Node, add: ir.Node) -> Result:
    """Gemm(A, B, C) with a bias C that broadcasts to the product, or any C of the product's own shape."""
    bias = add.inputs[1] if add.inputs[0] is product.outputs[0] else add.inputs[0]
    if bias is None or bias is product.outputs[0]:
        return None
    left, right = dims(product.inputs[0]), dims(product.inputs[1])
    if left is None or right is None:
        return NoMatch("the rank of an operand is not known")
    if len(left) != 2 or len(right) != 2:
        return NoMatch(f"Gemm multiplies matrices, not tensors of rank {len(left)} and {len(right)}")
    if opset(add) < 7:
        return NoMatch(f"a bias that broadcasts needs opset 7, the model has {opset(add)}")
    if reason := _not_a_bias(bias, left[0], right[1]):
        return NoMatch(reason)
    following = sole_reader(add.outputs[0])
    shifted = (
        following is not None and following.op_type == "Add" and any(map(_is_constant, following.inputs))
    )
    if shifted and constant(bias) is None:
        return None  # the constant comes first, see below
    if bias.dtype is None or bias.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
        return NoMatch("Gemm computes floats")
    return node("Gemm", [product.inputs[0], product.inputs[1], bias])


@rule("MatMul -> Add -> Add", name="MatMul + computed + constant")
def bias_first(product: ir.Node, add: ir.Node, last: ir.Node) -> Result:
    """(A·B + y) + c = (A·B + c) + y, so that the constant becomes the bias."""
    computed = add.inputs[1] if add.inputs[0] is product.outputs[0] else add.inputs[0]
    bias = last.inputs[1] if last.inputs[0] is add.outputs[0] else last.inputs[0]
    left, right = dims(product.inputs[0]), dims(product.inputs[1])
    if constant(bias) is None or computed is None or constant(computed) is not None or bias is None:
        return None
    if left is None or right is None or len(left) != 2 or len(right) != 2 or opset(add) < 7:
        return None
    if _not_a_bias(bias, left[0], right[1]) or bias.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return None
    shifted = node("Gemm", [product.inputs[0], product.inputs[1], bias])
    shifted.outputs[0].shape, shifted.outputs[0].type = add.outputs[0].shape, add.outputs[0].type
    return node("Add", [shifted.outputs[0], computed])


@rule("Reshape -> MatMul -> Add -> Reshape", name="MatMul + Add between Reshapes")
def fuse_between(first: ir.Node, product: ir.Node, add: ir.Node, last: ir.Node) -> Result:
    """A product of more than two axes is one of matrices to those who reshape it anyway."""
    bias = add.inputs[1] if add.inputs[0] is product.outputs[0] else add.inputs[0]
    weight, shape, wanted = product.inputs[1], constant(product.inputs[1]), static_dims(last.outputs[0])
    if product.inputs[0] is not first.outputs[0] or bias is None or constant(bias) is None or weight is None:
        return None
    rank = len(dims(product.inputs[0]) or ())
    if shape is None or shape.ndim != 2 or rank <= 2 or wanted is None or 0 in wanted or opset(add) < 7:
        return None
    if _not_a_bias(bias, None, shape.shape[1]) or weight.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return None
    rows = initializer(f"{first.name}.rows", np.array([-1, shape.shape[0]], np.int64))
    matrix = node("Reshape", [first.inputs[0], rows])
    gemm = node("Gemm", [matrix.outputs[0], weight, bias])
    target = initializer(f"{last.name}.shape", np.array(wanted, np.int64))
    return node("Reshape", [gemm.outputs[0], target])


@rule("Transpose -> Conv -> Transpose", name="Conv of one position with channels last")
def one_position(first: ir.Node, convolution: ir.Node, last: ir.Node) -> Result:
    """A convolution of one step along one axis, as recurrent models compute frame by frame, is MatMul."""
    if convolution.inputs[0] is not first.outputs[0]:
        return None
    given, weight = dims(first.outputs[0]), constant(convolution.inputs[1])
    if (
        given is None
        or weight is None
        or len(given) != 3
        or given[2] != 1
        or weight.shape[1:] != (given[1], 1)
    ):
        return None
    if any(move.attributes.get_ints("perm", ()) != (0, 2, 1) for move in (first, last)):
        return None
    if any(convolution.attributes.get_ints("pads", ())) or any(
        step != 1 for step in convolution.attributes.get_ints("strides", ())
    ):
        return None
    matrix = initializer(f"{convolution.name}.matrix", np.ascontiguousarray(weight[:, :, 0].T))
    product = node("MatMul", [first.inputs[0], matrix])
    bias = convolution.inputs[2] if len(convolution.inputs) > 2 else None
    if bias is None:
        return product
    product.outputs[0].shape, product.outputs[0].type = last.outputs[0].shape, last.outputs[0].type
    return node("Add", [product.outputs[0], bias])


def _is_constant(value: ir.Value | None) -> bool:
    return constant(value) is not None


def _not_a_bias(bias: ir.Value, rows: int | str | None, columns: int | str | None) -> str:
    """Why a value cannot be added to a product of so many rows and columns by Gemm; "" where it can."""
    shape = dims(bias)
    if constant(bias) is None:
        same = shape is not None and shape == (rows, columns) and None not in shape
        return "" if same else "the value added is computed and not of the product's shape"
    if shape is None or len(shape) > 2 or (len(shape) == 2 and shape[0] != 1):
        return "the bias is not one row"
    if shape and shape[-1] not in (1, columns):
        return f"the bias has {shape[-1]} columns, the product {columns}"
    return ""


@dataclass(frozen=True)
class FuseGemm(Fusion):
    """Fuse MatMul and the bias added to it into Gemm, where both operands are matrices."""

    name: ClassVar[str] = "fuse-gemm"
    kernel = "matmul-add"
    patterns = (bias_first, fuse_bias, fuse_between, one_position)
