"""Forms of operators that a model exported in training mode has."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.layout import shape_of
from edgeopt.targets.tflite.legalize import Splice, legalizes
from edgeopt.targets.tflite.steps import attribute, plain


@legalizes("Dropout")
def drop_nothing(splice: Splice, node: ir.Node) -> bool:
    """Inference keeps everything; a mask that is wanted says so."""
    training = plain(node.inputs[2]) if len(node.inputs) > 2 else None
    ratio = plain(node.inputs[1]) if len(node.inputs) > 1 else None
    random = training is not None and training.any() and (ratio is None or ratio.any())
    if len(node.outputs) < 2 or node.inputs[0] is None or random:
        return False
    mask = splice.op("Identity", np.ones(shape_of(node.outputs[0]), np.bool_))
    return splice.replace(splice.op("Identity", node.inputs[0]), mask)


@legalizes("BatchNormalization")
def spell_training_mode(splice: Splice, node: ir.Node) -> bool:
    """Statistics of the batch itself, and the running ones that come of it."""
    source = node.inputs[0]
    if not attribute(node, "training_mode", 0) or source is None or len(node.outputs) != 3:
        return False
    shape = shape_of(source)
    axes = np.array([axis for axis in range(len(shape)) if axis != 1], np.int64)
    kept, spread = (1, shape[1], *[1] * (len(shape) - 2)), [shape[1], *[1] * (len(shape) - 2)]
    scale, bias, old_mean, old_variance = node.inputs[1:5]
    if scale is None or bias is None or old_mean is None or old_variance is None:
        return False
    mean = splice.op("ReduceMean", source, axes, keepdims=1, shape=kept)
    centred = splice.op("Sub", source, mean, shape=shape)
    squares = splice.op("Mul", centred, centred, shape=shape)
    variance = splice.op("ReduceMean", squares, axes, keepdims=1, shape=kept)
    steady = splice.op("Add", variance, np.array(attribute(node, "epsilon", 1e-5), np.float32), shape=kept)
    unit = splice.op("Div", centred, splice.op("Sqrt", steady, shape=kept), shape=shape)
    scaled = splice.op("Mul", unit, splice.reshape(scale, spread), shape=shape)
    out = splice.op("Add", scaled, splice.reshape(bias, spread), shape=shape)
    momentum = attribute(node, "momentum", 0.9)
    running = []
    for old, new in ((old_mean, mean), (old_variance, variance)):
        flat = splice.reshape(new, [shape[1]])
        aged = splice.op("Mul", old, np.array(momentum, np.float32), shape=[shape[1]])
        fresh = splice.op("Mul", flat, np.array(1 - momentum, np.float32), shape=[shape[1]])
        running.append(splice.op("Add", aged, fresh, shape=[shape[1]]))
    return splice.replace(out, *running)
