"""Fuse a product of two matrices and the bias added to it into Gemm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgeopt.graph.change import NoMatch
from edgeopt.graph.rewriting import Result, constant, node, opset, rule
from edgeopt.graph.shapes import dims, static_dims
from edgeopt.passes._fusion import Fusion


@rule("MatMul -> Add")
def fuse_bias(product: ir.Node, add: ir.Node) -> Result:
    """Gemm(A, B, C) with a constant bias C that broadcasts to the product."""
    bias = add.inputs[1] if add.inputs[0] is product.outputs[0] else add.inputs[0]
    if bias is None or constant(bias) is None:
        return None
    left, right = dims(product.inputs[0]), dims(product.inputs[1])
    if left is None or right is None:
        return NoMatch("the rank of an operand is not known")
    if len(left) != 2 or len(right) != 2:
        return NoMatch(f"Gemm multiplies matrices, not tensors of rank {len(left)} and {len(right)}")
    if opset(add) < 7:
        return NoMatch(f"a bias that broadcasts needs opset 7, the model has {opset(add)}")
    shape, columns = static_dims(bias), right[1]
    if shape is None or len(shape) > 2 or (len(shape) == 2 and shape[0] != 1):
        return NoMatch("the bias is not one row")
    if shape and shape[-1] not in (1, columns):
        return NoMatch(f"the bias has {shape[-1]} columns, the product {columns}")
    if bias.dtype is None or bias.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
        return NoMatch("Gemm computes floats")
    return node("Gemm", [product.inputs[0], product.inputs[1], bias])


@dataclass(frozen=True)
class FuseGemm(Fusion):
    """Fuse MatMul and the bias added to it into Gemm, where both operands are matrices."""

    name: ClassVar[str] = "fuse-gemm"
    kernel = "matmul-add"
    patterns = (fuse_bias,)
