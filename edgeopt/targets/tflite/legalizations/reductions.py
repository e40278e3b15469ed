"""Reductions along an axis: the last of equal elements, the 1-norm."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.layout import shape_of
from edgeopt.targets.tflite.legalize import Splice, legalizes, plain_attributes
from edgeopt.targets.tflite.steps import attribute


@legalizes("ArgMax", "ArgMin")
def find_last(splice: Splice, node: ir.Node) -> bool:
    """The last of equal elements as the first in reverse."""
    source = node.inputs[0]
    if not attribute(node, "select_last_index", 0) or source is None:
        return False
    axis = attribute(node, "axis", 0) % len(shape_of(source))
    bounds = [np.array([item], np.int64) for item in (-1, -(2**31), axis, -1)]
    reverse = splice.op("Slice", source, *bounds, shape=shape_of(source))
    first = splice.op(node.op_type, reverse, **plain_attributes(node) | {"select_last_index": 0})
    first.dtype, first.shape = ir.DataType.INT64, node.outputs[0].shape
    last = np.array(shape_of(source)[axis] - 1, np.int64)
    out = splice.op("Sub", splice.array(last, f"{node.name}/last"), first)
    out.dtype = ir.DataType.INT64
    return splice.replace(out)


@legalizes("LpNormalization")
def spell_sum_norm(splice: Splice, node: ir.Node) -> bool:
    """The 1-norm: division by the sum of absolute values, zeros staying zeros."""
    source = node.inputs[0]
    if attribute(node, "p", 2) != 1 or source is None:
        return False
    shape = shape_of(source)
    axis = attribute(node, "axis", -1) % len(shape)
    kept = tuple(1 if index == axis else size for index, size in enumerate(shape))
    total = splice.op("ReduceL1", source, np.array([axis], np.int64), keepdims=1, shape=kept)
    # Where the sum is zero so is every element; the smallest float keeps the quotient zero.
    safe = splice.op("Max", total, np.array(np.finfo(np.float32).tiny, np.float32), shape=kept)
    return splice.replace(splice.op("Div", source, safe))
