"""Legalizations of poolings and resizings that TFLite has no kernel for, as sums, maxima and products.

Pooling over a box is pooling over one axis after another, and linear resizing is a matrix product along
one axis after another; both hold for any number of axes, any dilation and any mode.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import onnx_ir as ir

from edgeopt.graph.layout import shape_of
from edgeopt.targets.tflite.legalize import Splice, legalizes
from edgeopt.targets.tflite.operators.convolution import spatial_pads
from edgeopt.targets.tflite.operators.pooling import same_ratio
from edgeopt.targets.tflite.steps import Step, attribute, plain

LARGEST = 64
"""What would take more operators than this is not written out."""


class Window:
    """The geometry of a pooling, with the pads that its last windows reach."""

    def __init__(self, node: ir.Node, source: ir.Value) -> None:
        self.sizes = shape_of(source)[2:]
        self.outs = shape_of(node.outputs[0])[2:]
        rank = len(self.sizes)
        self.kernel = attribute(node, "kernel_shape")
        self.strides = attribute(node, "strides", [1] * rank)
        self.dilations = attribute(node, "dilations", [1] * rank)
        step = Step(node, list(node.inputs), list(node.outputs))
        self.pads = spatial_pads(step, self.sizes, self.kernel, self.strides, self.dilations)
        self.ends = [
            max((out - 1) * s + (k - 1) * d + 1 - n - before, 0)
            for n, out, k, s, d, (before, _) in zip(
                self.sizes, self.outs, self.kernel, self.strides, self.dilations, self.pads, strict=True
            )
        ]

    def padded(self, splice: Splice, source: ir.Value, value: float) -> ir.Value:
        """The input with all pads written out."""
        befores = [before for before, _ in self.pads]
        if not any(befores) and not any(self.ends):
            return source
        amounts = np.array([0, 0, *befores, 0, 0, *self.ends], np.int64)
        shape = [n + b + e for n, b, e in zip(self.sizes, befores, self.ends, strict=True)]
        fill = np.array(value, np.float32)
        return splice.op("Pad", source, amounts, fill, shape=(*shape_of(source)[:2], *shape))

    def taken(self, splice: Splice, source: ir.Value, axis: int, offset: int) -> ir.Value:
        """What lies at one offset of the window along one axis, for every output."""
        start = offset * self.dilations[axis]
        end = start + (self.outs[axis] - 1) * self.strides[axis] + 1
        bounds = [np.array([item], np.int64) for item in (start, end, axis + 2, self.strides[axis])]
        shape = list(shape_of(source))
        shape[axis + 2] = self.outs[axis]
        return splice.op("Slice", source, *bounds, shape=shape)


def _needs_writing_out(node: ir.Node, source: ir.Value | None) -> bool:
    if source is None or source.dtype != ir.DataType.FLOAT or len(shape_of(source)) not in (4, 5):
        return False
    if sum(attribute(node, "kernel_shape")) > LARGEST:
        return False
    return len(shape_of(source)) == 5 or any(d != 1 for d in attribute(node, "dilations", [1]))


@legalizes("MaxPool", "AveragePool")
def pool_by_axis(splice: Splice, node: ir.Node) -> bool:
    """Dilated pooling, and pooling over three axes: one axis after another."""
    source = node.inputs[0]
    if not _needs_writing_out(node, source) or source is None:
        return False
    if any(output.name and (list(output.uses()) or output.is_graph_output()) for output in node.outputs[1:]):
        return False
    window = Window(node, source)
    largest = node.op_type == "MaxPool"
    value = window.padded(splice, source, float(np.finfo(np.float32).min) if largest else 0.0)
    for axis, size in enumerate(window.kernel):
        parts = [window.taken(splice, value, axis, offset) for offset in range(size)]
        shape = shape_of(parts[0])
        value = parts[0] if size == 1 else splice.op("Max" if largest else "Sum", *parts, shape=shape)
    if not largest:
        share = _shares(node, window)
        value = splice.op("Mul", value, share.astype(np.float32)[None, None], shape=shape_of(node.outputs[0]))
    return splice.replace(value, *node.outputs[1:])


def _shares(node: ir.Node, window: Window) -> np.ndarray:
    """One over the elements that count, for every output."""
    include = bool(attribute(node, "count_include_pad", 0))
    shares = np.ones(())
    for axis, (before, after) in enumerate(window.pads):
        size = window.sizes[axis]
        counted = np.zeros(before + size + max(after, window.ends[axis]))
        counted[before : before + size] = 1
        if include:
            counted[: before + size + after] = 1
        steps = range(0, window.kernel[axis] * window.dilations[axis], window.dilations[axis])
        starts = range(0, window.outs[axis] * window.strides[axis], window.strides[axis])
        counts = np.array([sum(counted[start + step] for step in steps) for start in starts])
        shares = shares[..., None] / counts
    return shares


@legalizes("MaxPool")
def find_positions(splice: Splice, node: ir.Node) -> bool:
    """The positions of the largest elements: the window's offsets stacked, and where the largest is."""
    source = node.inputs[0]
    if source is None or len(node.outputs) < 2 or not node.outputs[1].name or len(shape_of(source)) != 4:
        return False
    if not (list(node.outputs[1].uses()) or node.outputs[1].is_graph_output()):
        return False
    window = Window(node, source)
    if math.prod(window.kernel) > LARGEST or source.dtype != ir.DataType.FLOAT:
        return False
    value = window.padded(splice, source, float(np.finfo(np.float32).min))
    shape = shape_of(node.outputs[0])
    parts = []
    for offsets in product(*map(range, window.kernel)):
        part = value
        for axis, offset in enumerate(offsets):
            part = window.taken(splice, part, axis, offset)
        parts.append(splice.reshape(part, (*shape, 1)))
    stacked = splice.op("Concat", *parts, axis=4, shape=(*shape, len(parts)))
    best = splice.op("ReduceMax", stacked, np.array([4], np.int64), keepdims=0, shape=shape)
    chosen = splice.op("ArgMax", stacked, axis=4, keepdims=0, shape=shape)
    chosen.dtype = ir.DataType.INT64
    rows = [
        np.arange(out) * s - b for out, s, (b, _) in zip(shape[2:], window.strides, window.pads, strict=True)
    ]
    weights = (1, window.sizes[0]) if attribute(node, "storage_order", 0) else (window.sizes[1], 1)
    offsets_of = [
        sum(offset * d * w for offset, d, w in zip(offsets, window.dilations, weights, strict=True))
        for offsets in product(*map(range, window.kernel))
    ]
    planes = np.arange(shape[0] * shape[1]).reshape(shape[0], shape[1], 1, 1) * math.prod(window.sizes)
    base = planes + rows[0][:, None] * weights[0] + rows[1] * weights[1]
    table = splice.array(np.array(offsets_of, np.int64), f"{node.name}/offsets")
    within = splice.op("Gather", table, chosen, axis=0, shape=shape)
    positions = splice.op("Add", within, base.astype(np.int64), shape=shape)
    return splice.replace(best, positions)


@legalizes("Resize")
def resize_by_products(splice: Splice, node: ir.Node) -> bool:
    """Linear resizing whose scales or coordinates no kernel has: a matrix product along each axis."""
    source = node.inputs[0]
    if source is None or attribute(node, "mode", "nearest") != "linear" or attribute(node, "antialias", 0):
        return False
    shape, result = shape_of(source), shape_of(node.outputs[0])
    scales = plain(node.inputs[2]) if len(node.inputs) > 2 else None
    coordinates = attribute(node, "coordinate_transformation_mode", "half_pixel")
    if len(shape) != 4 or shape[:2] != result[:2] or attribute(node, "axes") is not None:
        return False
    by_size = [out / size for size, out in zip(shape, result, strict=True)]
    given = by_size if scales is None or scales.size == 0 else [float(item) for item in scales]
    if coordinates == "tf_crop_and_resize" or same_ratio(coordinates, given[2:], shape[2:], result[2:]):
        return False
    value = source
    for axis in (3, 2):
        matrix = _interpolation(coordinates, shape[axis], result[axis], given[axis])
        kept = shape_of(value)
        value = splice.op("MatMul", value, matrix.T.astype(np.float32), shape=(*kept[:3], result[axis]))
        swapped = shape_of(value)
        value = splice.op("Transpose", value, perm=[0, 1, 3, 2], shape=(*swapped[:2], swapped[3], swapped[2]))
    return splice.replace(value)


def _interpolation(mode: str, size: int, out: int, scale: float) -> np.ndarray:
    """The weights, [out, size], of linear interpolation by ONNX's Resize-19."""
    x = np.arange(out, dtype=np.float64)
    where = {
        "half_pixel": (x + 0.5) / scale - 0.5,
        "pytorch_half_pixel": (x + 0.5) / scale - 0.5 if out > 1 else np.zeros(1),
        "align_corners": x * (size - 1) / (size * scale - 1) if size * scale > 1 else np.zeros(out),
        "asymmetric": x / scale,
        "half_pixel_symmetric": size / 2 * (1 - out / (size * scale)) + (x + 0.5) / scale - 0.5,
    }[mode]
    where = np.clip(where, 0, size - 1)
    low = np.minimum(np.floor(where).astype(int), size - 1)
    high = np.minimum(low + 1, size - 1)
    weights = np.zeros((out, size))
    weights[np.arange(out), low] += 1 - (where - low)
    weights[np.arange(out), high] += where - low
    return weights
