"""Lowering a model to an older opset, where its operators computed the same then."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from edgeopt.targets.base import Problem

SAME = {
    *("AveragePool", "Cast", "CastLike", "Constant", "ConstantOfShape", "Conv", "ConvTranspose"),
    *("DequantizeLinear", "Elu", "Equal", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "GRU"),
    *("GridSample", "HardSigmoid", "HardSwish", "Identity", "If", "InstanceNormalization", "LSTM", "Loop"),
    *("LpNormalization", "MaxPool", "Pad", "QuantizeLinear", "Reshape", "Resize", "RNN", "Round", "Scan"),
    *("ScatterElements", "ScatterND", "Selu", "Shape", "Size", "Softplus", "Softsign", "Squeeze"),
    *("ThresholdedRelu", "Transpose", "Unsqueeze", "Where", "BatchNormalization", "Relu", "LeakyRelu"),
    *("PRelu", "Split", "Add", "Sub", "Mul", "Div", "Pow", "CumSum", "Less", "Greater", "Not", "And", "Or"),
    *("GreaterOrEqual", "LessOrEqual", "IsInf", "IsNaN", "TopK", "LpPool", "GlobalLpPool", "Mish", "EyeLike"),
    *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cos", "Cosh", "Sin", "Sinh", "Tan", "Dropout"),
}
"""Operators whose later versions, between opset 13 and 23, added types or attributes to the earlier."""

ADDED = {
    "AveragePool": {"dilations": 19},
    "BatchNormalization": {"training_mode": 14},
    "Cast": {"saturate": 19},
    "DequantizeLinear": {"axis": 13, "block_size": 21},
    "GRU": {"layout": 14},
    "LSTM": {"layout": 14},
    "LpPool": {"ceil_mode": 18, "dilations": 18},
    "QuantizeLinear": {"axis": 13, "block_size": 21, "output_dtype": 21, "saturate": 19},
    "Reshape": {"allowzero": 14},
    "Resize": {"antialias": 18, "axes": 18, "keep_aspect_ratio_policy": 18},
    "RNN": {"layout": 14},
    "ScatterElements": {"reduction": 16},
    "ScatterND": {"reduction": 16},
    "Shape": {"start": 15, "end": 15},
    "Split": {"num_outputs": 18},
}
"""Attributes and the opset that they came with."""

NEUTRAL = {
    "block_size": 0,
    "saturate": 1,
    "allowzero": 0,
    "start": 0,
    "antialias": 0,
    "output_dtype": 0,
    "training_mode": 0,
    "layout": 0,
    "ceil_mode": 0,
    "reduction": "none",
    "keep_aspect_ratio_policy": "stretch",
}
"""Attributes that may be dropped where they have these values; dilations where all are 1."""

VALUES = {
    ("Pad", "mode", "wrap"): 19,
    ("Resize", "coordinate_transformation_mode", "half_pixel_symmetric"): 19,
    ("ScatterElements", "reduction", "max"): 18,
    ("ScatterElements", "reduction", "min"): 18,
    ("ScatterND", "reduction", "max"): 18,
    ("ScatterND", "reduction", "min"): 18,
}
"""Values of older attributes and the opset that they came with."""

GRID_MODES = {"linear": "bilinear", "cubic": "bicubic"}
"""GridSample's modes by their names before opset 20."""

REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
    *("ReduceProd", "ReduceSumSquare"),
)
"""Operators whose axes became an input with opset 18."""


def ir_version(opset: int) -> int:
    """Returns the IR version that was current with an opset."""
    for first, version in ((23, 11), (21, 10), (19, 9), (15, 8)):
        if opset >= first:
            return version
    return 7


def lower(model: ir.Model, opset: int) -> list[Problem]:
    """Lowers a model's opset in place, or lists the nodes that stand against it and changes nothing more."""
    current = model.opset_imports.get("", 0)
    if current <= opset:
        return []
    problems = []
    for node in list(model.graph.all_nodes()):
        if node.domain not in ("", "ai.onnx"):
            continue
        if reason := _lower(node, current, opset):
            problems.append(Problem(node.name or "", node.op_type, reason))
    if not problems:
        model.opset_imports[""] = opset
    return problems


def _lower(node: ir.Node, current: int, opset: int) -> str:
    """Lowers one node; returns why that cannot be done."""
    try:
        now = onnx.defs.get_schema(node.op_type, current).since_version
    except onnx.defs.SchemaError:
        return f"opset {current} does not have it"
    try:
        then = onnx.defs.get_schema(node.op_type, opset).since_version
    except onnx.defs.SchemaError:
        return f"it came with opset {now}, and the runtime takes this file at {opset}"
    if now == then:
        return ""
    if node.op_type in REDUCTIONS and then < 18 <= now:
        return _axes_to_attribute(node)
    if node.op_type not in SAME or opset < 13:
        return f"its version of opset {now} cannot be expressed in opset {opset}"
    for (operator, name, value), since in VALUES.items():
        if operator == node.op_type and since > opset and node.attributes.get_string(name) == value:
            return f"its {name} {value!r} came with opset {since}"
    if node.op_type == "GridSample" and then < 20 <= now:
        _older_grid_mode(node)
    for name, since in ADDED.get(node.op_type, {}).items():
        attribute = node.attributes.get(name)
        if attribute is None or since <= opset:
            continue
        if name == "num_outputs":
            if reason := _split_sizes(node):
                return reason
        elif name == "dilations" and all(step == 1 for step in attribute.as_ints()):
            pass
        elif attribute.value != NEUTRAL.get(name):
            return f"its attribute {name} came with opset {since}"
        node.attributes.pop(name)
    if node.op_type == "Pad" and len(node.inputs) > 3 and node.inputs[3] is not None and opset < 18:
        return "its input axes came with opset 18"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and opset < 21:
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        known = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32)
        if zero is not None and zero.dtype not in (None, *known):
            return f"its type {zero.dtype} came with opset 21"
    return ""


def _axes_to_attribute(node: ir.Node) -> str:
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is None:
        if node.attributes.get_int("noop_with_empty_axes", 0):
            return "it reduces no axis at all, which came with opset 18"
        node.attributes.pop("noop_with_empty_axes", None)
        return ""
    if axes.const_value is None:
        return "its axes are computed, which came with opset 18"
    node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes.const_value.numpy()])
    node.resize_inputs(1)
    node.attributes.pop("noop_with_empty_axes", None)
    return ""


def _older_grid_mode(node: ir.Node) -> None:
    mode = node.attributes.get_string("mode", "linear") or "linear"
    node.attributes["mode"] = ir.AttrString("mode", GRID_MODES.get(mode, mode))


def _split_sizes(node: ir.Node) -> str:
    value = node.inputs[0]
    axis = node.attributes.get_int("axis", 0) or 0
    size = None if value is None or value.shape is None else value.shape[axis]
    if not isinstance(size, int) or node.graph is None:
        return "it splits an axis of unknown size into equal parts, which came with opset 18"
    part = -(-size // len(node.outputs))
    sizes = np.full(len(node.outputs), part, np.int64)
    sizes[-1] = size - part * (len(node.outputs) - 1)
    name = f"{node.outputs[0].name}_split"
    constant = ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape([len(sizes)]),
        const_value=ir.tensor(sizes, name=name),
    )
    node.graph.register_initializer(constant)
    node.resize_inputs(2)
    node.replace_input_with(1, constant)
    return ""
