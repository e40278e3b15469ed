"""Batch normalization: into the convolution before it, or spelled."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.layout import shape_of
from edgeopt.graph.names import carry_names
from edgeopt.targets.tflite.legalize import Splice, legalizes, plain_attributes
from edgeopt.targets.tflite.steps import attribute, only_reader, plain


@legalizes("BatchNormalization")
def fold_batch_normalization(splice: Splice, node: ir.Node) -> bool:
    """Into the convolution before it where there is one, else Mul and Add."""
    arrays = [plain(value) for value in node.inputs[1:5]]
    if attribute(node, "training_mode", 0) or any(array is None for array in arrays):
        return False
    scale, bias, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    factor = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    offset = bias - mean * factor
    source = node.inputs[0]
    conv = source.producer() if source is not None else None
    if source is None:
        return False
    if conv is not None and conv.op_type == "Conv" and only_reader(source) is node:
        weight = plain(conv.inputs[1])
        old = conv.inputs[2] if len(conv.inputs) > 2 else None
        known = np.zeros(len(factor)) if old is None else plain(old)
        if weight is not None and known is not None:
            column = factor.reshape(-1, *[1] * (weight.ndim - 1))
            folded = (weight * column).astype(weight.dtype)
            vector = (known * factor + offset).astype(weight.dtype)
            out = splice.op("Conv", conv.inputs[0], folded, vector, **plain_attributes(conv))
            carry_names([conv, node], splice.made[-1])
            splice.replace(out)
            splice.graph.remove(conv, safe=True)
            return True
    spread = [-1] + [1] * (len(shape_of(source)) - 2)
    product = splice.op("Mul", source, factor.astype(np.float32).reshape(spread), shape=shape_of(source))
    return splice.replace(splice.op("Add", product, offset.astype(np.float32).reshape(spread)))
