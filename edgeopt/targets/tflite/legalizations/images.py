"""Convolutions and poolings of other axes, groups and pads than TFLite's kernels have."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.layout import shape_of
from edgeopt.targets.tflite.legalize import Splice, legalizes, plain_attributes
from edgeopt.targets.tflite.operators.convolution import same_pads, spatial_pads
from edgeopt.targets.tflite.steps import Step, attribute, plain


@legalizes("Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
def raise_to_images(splice: Splice, node: ir.Node) -> bool:
    """An operator over one spatial axis as one over two, the first of size 1."""
    source = node.inputs[0]
    if source is None or len(shape_of(source)) != 3:
        return False
    if any(output.name and list(output.uses()) for output in node.outputs[1:]):
        return False
    if node.op_type.startswith("Global"):
        axes = np.array([2], np.int64)
        reduction = "ReduceMean" if node.op_type == "GlobalAveragePool" else "ReduceMax"
        return splice.replace(splice.op(reduction, source, axes, keepdims=1), *node.outputs[1:])
    attributes = plain_attributes(node)
    for name, fill in (("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("output_padding", 0)):
        if name in attributes:
            attributes[name] = [fill, *attributes[name]]
    if "output_shape" in attributes:
        attributes["output_shape"] = [1, *attributes["output_shape"]]
    if "pads" in attributes:
        attributes["pads"] = [0, attributes["pads"][0], 0, attributes["pads"][1]]
    shape = shape_of(source)
    inputs: list[ir.Value | np.ndarray | None] = [splice.reshape(source, (*shape[:2], 1, shape[2]))]
    if node.op_type in ("Conv", "ConvTranspose"):
        weight = node.inputs[1]
        raised = None if weight is None else _with_axis(splice, weight)
        if raised is None:
            return False
        inputs += [raised, *node.inputs[2:]]
    result = shape_of(node.outputs[0])
    wide = (*result[:2], 1, result[2])
    out = splice.op(node.op_type, *inputs, shape=wide, **attributes)
    return splice.replace(splice.reshape(out, result), *node.outputs[1:])


def _with_axis(splice: Splice, weight: ir.Value) -> ir.Value | np.ndarray | None:
    """A weight with a spatial axis of size 1 before its last, integers staying integers."""
    if (array := plain(weight)) is not None:
        return np.ascontiguousarray(array[:, :, None])
    node = weight.producer()
    if node is None or node.op_type != "DequantizeLinear" or (array := plain(node.inputs[0])) is None:
        return None
    return splice.op(
        "DequantizeLinear",
        np.ascontiguousarray(array[:, :, None]),
        *node.inputs[1:],
        **plain_attributes(node),
    )


@legalizes("ConvTranspose")
def split_groups(splice: Splice, node: ir.Node) -> bool:
    """A grouped transposed convolution as one per group."""
    group = attribute(node, "group", 1)
    weight, source = plain(node.inputs[1]), node.inputs[0]
    bias = plain(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if group == 1 or group > 64 or weight is None or source is None:
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None and bias is None:
        return False
    shape = shape_of(source)
    each = shape[1] // group
    attributes = plain_attributes(node) | {"group": 1}
    splice.op("Split", source, np.full(group, each, np.int64), outputs=group, axis=1)
    parts = list(splice.made[-1].outputs)
    made = []
    for index, part in enumerate(parts):
        part.shape = ir.Shape((shape[0], each, *shape[2:]))
        inputs: list[ir.Value | np.ndarray | None] = [part, weight[index * each : (index + 1) * each]]
        if bias is not None:
            width = len(bias) // group
            inputs.append(bias[index * width : (index + 1) * width])
        made.append(splice.op("ConvTranspose", *inputs, **attributes))
    return splice.replace(splice.op("Concat", *made, axis=1))


@legalizes("AveragePool")
def count_windows(splice: Splice, node: ir.Node) -> bool:
    """Pads that do not count, and that are not SAME's: the sum with zeros, times one over each count."""
    source = node.inputs[0]
    if source is None or len(shape_of(source)) != 4 or any(d != 1 for d in attribute(node, "dilations", [1])):
        return False
    step = Step(node, list(node.inputs), list(node.outputs))
    kernel, strides = attribute(node, "kernel_shape"), attribute(node, "strides", [1, 1])
    sizes, outs = shape_of(source)[2:], shape_of(node.outputs[0])[2:]
    pads = spatial_pads(step, sizes, kernel, strides, [1, 1])
    ends = [
        max((out - 1) * s + k - n - before, 0)
        for n, out, k, s, (before, _) in zip(sizes, outs, kernel, strides, pads, strict=True)
    ]
    include = bool(attribute(node, "count_include_pad", 0))
    spans = [(before, end) for (before, _), end in zip(pads, ends, strict=True)]
    sames = [same_pads(n, k, s) for n, k, s in zip(sizes, kernel, strides, strict=True)]
    if not any(map(any, spans)) or (not include and spans == sames):
        return False
    if include and all(end <= after for end, (_, after) in zip(ends, pads, strict=True)):
        return False
    counts = []
    for n, out, k, s, (before, after), end in zip(sizes, outs, kernel, strides, pads, ends, strict=True):
        counted = np.zeros(before + n + max(after, end))
        counted[before : before + n] = 1
        if include:
            counted[: before + n + after] = 1
        counts.append(np.array([counted[i * s : i * s + k].sum() for i in range(out)]))
    correction = np.prod(kernel) / np.outer(*counts)
    padded = splice.op(
        "Pad",
        source,
        np.array([0, 0, spans[0][0], spans[1][0], 0, 0, spans[0][1], spans[1][1]], np.int64),
        shape=(*shape_of(source)[:2], *(n + sum(span) for n, span in zip(sizes, spans, strict=True))),
    )
    mean = splice.op(
        "AveragePool", padded, shape=shape_of(node.outputs[0]), kernel_shape=kernel, strides=strides
    )
    return splice.replace(splice.op("Mul", mean, correction.astype(np.float32)[None, None]))
