"""Legalizations that save operators: neighbours that TFLite says as one, or not at all.

They hold for float graphs; where a value between the neighbours is quantized it must be computed, and
none of them fires.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.layout import shape_of
from edgeopt.graph.names import carry_names
from edgeopt.targets.tflite.legalize import Splice, legalizes, plain_attributes
from edgeopt.targets.tflite.steps import attribute, only_reader, plain


@legalizes("HardSigmoid", first=True)
def fold_hard_sigmoid(splice: Splice, node: ir.Node) -> bool:
    """Conv → HardSigmoid → Mul → Conv, the gate of a squeeze-and-excitation, without an operator of its own.

    HardSigmoid of slope 1/6 is Clip(x + 3, 0, 6) / 6. The 3 goes into the bias of the convolution before
    it, the Clip runs in that convolution's kernel, and the 1/6 goes into the weight of the convolution
    that reads the product.
    """
    source = node.inputs[0]
    conv = source.producer() if source is not None else None
    usual = abs(attribute(node, "alpha", 0.2) - 1 / 6) < 1e-6 and attribute(node, "beta", 0.5) == 0.5
    if source is None or conv is None or not usual or only_reader(source) is not node:
        return False
    bias = _bias(conv)
    product = only_reader(node.outputs[0])
    after = only_reader(product.outputs[0]) if product is not None and product.op_type == "Mul" else None
    if bias is None or product is None or after is None or after.op_type != "Conv":
        return False
    weight = plain(after.inputs[1])
    if weight is None or after.inputs[0] is not product.outputs[0]:
        return False
    out = splice.op(
        "Conv",
        *conv.inputs[:2],
        (bias + 3).astype(np.float32),
        shape=shape_of(source),
        **plain_attributes(conv),
    )
    carry_names([conv, node], splice.made[-1])
    bounds = np.array(0, np.float32), np.array(6, np.float32)
    scaled = splice.array((weight / np.float32(6)).astype(np.float32), f"{after.name}/weight_of_sixths")
    after.replace_input_with(1, scaled)
    splice.replace(splice.op("Clip", out, *bounds, shape=shape_of(source)))
    splice.graph.remove(conv, safe=True)
    return True


def _bias(conv: ir.Node) -> np.ndarray | None:
    """The bias of a convolution of constant float weight, zeros where it has none."""
    if conv.op_type != "Conv" or (weight := plain(conv.inputs[1])) is None or weight.dtype != np.float32:
        return None
    if len(conv.inputs) < 3 or conv.inputs[2] is None:
        return np.zeros(weight.shape[0], np.float32)
    return plain(conv.inputs[2])


@legalizes("Slice")
def join_slices(splice: Splice, node: ir.Node) -> bool:
    """Slices that together are all of one value, along one axis and of one size, as one Split.

    XNNPACK has a kernel for up to four equal parts; others as one SPLIT_V would cut what it runs in two.
    """
    source = node.inputs[0]
    if source is None:
        return False
    parts: list[tuple[int, int, int, ir.Node]] = []
    for reader, index in source.uses():
        bounds = _bounds(reader) if index == 0 else None
        if bounds is None:
            return False
        parts.append((*bounds, reader))
    parts.sort(key=lambda item: item[:3])
    axes = {axis for axis, *_ in parts}
    ends = [end for _, _, end, _ in parts]
    starts = [start for _, start, _, _ in parts]
    if len(parts) < 2 or len(axes) != 1 or starts != [0, *ends[:-1]] or source.is_graph_output():
        return False
    axis = axes.pop()
    shape = shape_of(source)
    if ends[-1] != shape[axis] or len(parts) > 4 or len({end - start for _, start, end, _ in parts}) > 1:
        return False
    sizes = np.array([end - start for _, start, end, _ in parts], np.int64)
    splice.op("Split", source, sizes, outputs=len(parts), axis=axis)
    split = splice.made[-1]
    carry_names([part for *_, part in parts], split)
    for output, (_, _, _, part) in zip(split.outputs, parts, strict=True):
        output.shape, output.type = part.outputs[0].shape, part.outputs[0].type
    first = min((part for *_, part in parts), key=list(splice.graph).index)
    splice.graph.insert_before(first, split)
    for output, (_, _, _, part) in zip(split.outputs, parts, strict=True):
        old, name = part.outputs[0], part.outputs[0].name
        old.name = f"{name}/before"
        old.replace_all_uses_with(output, replace_graph_outputs=True)
        output.name = name
        splice.graph.remove(part, safe=True)
    return True


def _bounds(node: ir.Node) -> tuple[int, int, int] | None:
    """Axis, start and end of a Slice along one axis in steps of one, if these are known."""
    if node.op_type != "Slice" or node.inputs[0] is None or len(node.inputs) < 4:
        return None
    arrays = [plain(value) for value in node.inputs[1:]]
    if any(array is None or array.size != 1 for array in arrays):
        return None
    start, end, axis, *step = (int(array.reshape(())) for array in arrays if array is not None)
    shape = shape_of(node.inputs[0])
    if step not in ([], [1]):
        return None
    first, last, _ = slice(start, end).indices(shape[axis])
    return axis % len(shape), first, last
