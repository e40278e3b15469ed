"""Matrix products: what FULLY_CONNECTED and BATCH_MATMUL have no field for, as nodes of its own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.layout import shape_of
from edgeopt.targets.tflite.legalize import Splice, legalizes
from edgeopt.targets.tflite.steps import attribute, constant


@legalizes("Gemm")
def normalize_gemm(splice: Splice, node: ir.Node) -> bool:
    """alpha, beta, transA and computed operands out of Gemm: into constants, or as nodes of their own."""
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    first, second = node.inputs[0], node.inputs[1]
    third = node.inputs[2] if len(node.inputs) > 2 else None
    units = shape_of(node.outputs[0])[-1]
    weight, bias = constant(second), constant(third)
    vector = third is None or (bias is not None and bias.data.size in (1, units) and bias.data.ndim < 3)
    if vector and bias is not None and bias.data.ndim == 2 and bias.data.shape[0] != 1:
        vector = False
    if (alpha, beta) == (1.0, 1.0) and not attribute(node, "transA", 0) and weight is not None and vector:
        return False
    if first is None or second is None:
        return False
    if attribute(node, "transA", 0):
        first = splice.op("Transpose", first, perm=[1, 0])
    if attribute(node, "transB", 0):
        second = splice.op("Transpose", second, perm=[1, 0])
    out = splice.op("MatMul", first, second)
    if alpha != 1.0:
        out = splice.op("Mul", out, np.array(alpha, np.float32))
    if third is not None:
        scaled = third if beta == 1.0 else splice.op("Mul", third, np.array(beta, np.float32))
        out = splice.op("Add", out, scaled)
    return splice.replace(out)


@legalizes("MatMul")
def raise_vectors(splice: Splice, node: ir.Node) -> bool:
    """A product with a vector as one with a matrix of one row or column."""
    first, second = node.inputs
    if first is None or second is None:
        return False
    one, two = shape_of(first), shape_of(second)
    if min(len(one), len(two)) > 1 or not one or not two:
        return False
    left = splice.reshape(first, (1, *one)) if len(one) == 1 else first
    right = splice.reshape(second, (*two, 1)) if len(two) == 1 else second
    product = splice.op("MatMul", left, right)
    return splice.replace(splice.reshape(product, shape_of(node.outputs[0])))
