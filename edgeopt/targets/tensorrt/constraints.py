"""What TensorRT's parser wants of the operators that its table holds.

The sources are the column "Restrictions" of onnx-tensorrt's ``docs/operators.md`` and the assertions of
its ``builtin_op_importers.cpp``, releases 8.2 to 10.1. One function per kind of operator; each returns the
reason and what would work, or ``None``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from edgeopt.graph.rewriting import constant, tensor_of
from edgeopt.platform import RuntimeVersion
from edgeopt.targets.base import Problem

Reason = tuple[str, str] | None

FIXED_SHAPE = "fix the shape with --shape NAME=1,3,224,224, so that it becomes constant"
PROCESSOR = "--target onnxruntime runs it on the device's processor"

CONSTANT_INPUTS = {
    "BatchNormalization": {1: "scale", 2: "bias", 3: "mean", 4: "variance"},
    "CumSum": {1: "axis"},
    "NonMaxSuppression": {2: "max_output_boxes_per_class", 3: "iou_threshold", 4: "score_threshold"},
    "Pad": {3: "axes"},
    "Slice": {3: "axes"},
    "Squeeze": {1: "axes"},
    "TopK": {1: "K"},
    "Unsqueeze": {1: "axes"},
    **{
        f"Reduce{name}": {1: "axes"}
        for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
}
"""Inputs that must be constant."""

COORDINATES = ("align_corners", "asymmetric", "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn")
"""Resize's modes of coordinates."""


def problems(model: ir.Model, rules: RuntimeVersion, version: str) -> Iterator[Problem]:
    """Lists the nodes of a model that the parser refuses, though it knows the operator."""
    for item in model.graph.all_nodes():
        if item.domain not in ("", "ai.onnx") or not rules.runs(item.op_type):
            continue
        found = _types(item, rules, version) or _constants(item)
        own = OWN.get(item.op_type)
        if found is None and own is not None:
            found = own(item)
        if found is not None:
            yield Problem(item.name or "", item.op_type, *found)


def on_integers(model: ir.Model, rules: RuntimeVersion) -> list[str]:
    """Names the nodes that compute on integers where the table lists floats alone.

    The parser may take them all the same (TensorRT's own layers take more than the table says), so they
    are no problem but a doubt.
    """
    return [
        f"{item.name} ({item.op_type})"
        for item in model.graph.all_nodes()
        if item.op_type in rules.floats_only
        and item.domain in ("", "ai.onnx")
        and (value := item.inputs[0]) is not None
        and value.dtype in (ir.DataType.INT32, ir.DataType.INT64)
    ]


def _types(item: ir.Node, rules: RuntimeVersion, version: str) -> Reason:
    for value in (*item.inputs, *item.outputs):
        if value is None or value.dtype is None:
            continue
        if (name := _type_name(value.dtype)) not in rules.data_types:
            return f"{version} does not compute in {name}, the type of {value.name!r}", PROCESSOR
    return None


def _type_name(dtype: ir.DataType) -> str:
    known = {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}
    return known.get(dtype, dtype.name.lower())


def _constants(item: ir.Node) -> Reason:
    for index, name in CONSTANT_INPUTS.get(item.op_type, {}).items():
        value = item.inputs[index] if index < len(item.inputs) else None
        if value is not None and tensor_of(value) is None:
            return f"its input {name} is computed", FIXED_SHAPE
    return None


def _stored(value: ir.Value | None) -> bool:
    """Whether a value is a constant, perhaps behind QuantizeLinear and DequantizeLinear."""
    while value is not None and tensor_of(value) is None:
        maker = value.producer()
        if maker is None or maker.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            return False
        value = maker.inputs[0]
    return value is not None


def _spatial(item: ir.Node) -> Reason:
    """1 to 3 spatial axes; the parser runs a single one as two."""
    value = item.inputs[0]
    if value is None or value.shape is None or 3 <= len(value.shape) <= 5:
        return None
    return f"its input has {len(value.shape)} axes", "1 to 3 spatial axes run"


def _convolution(item: ir.Node) -> Reason:
    if reason := _spatial(item):
        return reason
    if len(item.inputs) > 2 and item.inputs[2] is not None and tensor_of(item.inputs[2]) is None:
        return "its bias is computed or quantized", "keep the bias constant, in float"
    if not _stored(item.inputs[1]):
        return "its weights are computed", PROCESSOR
    return None


def _pooling(item: ir.Node) -> Reason:
    if reason := _spatial(item):
        return reason
    if len(item.outputs) > 1 and item.outputs[1].uses():
        return "its output of indices is read", PROCESSOR
    if any(step != 1 for step in item.attributes.get_ints("dilations", []) or []):
        return "its dilations are not 1", PROCESSOR
    return None


def _resize(item: ir.Node) -> Reason:
    mode = item.attributes.get_string("mode", "nearest")
    if mode not in ("nearest", "linear"):
        return f"its mode is {mode}", "nearest and linear run"
    where = item.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if where not in COORDINATES:
        return f"its coordinates are {where}", f"one of {', '.join(COORDINATES)}"
    rounding = item.attributes.get_string("nearest_mode", "round_prefer_floor")
    if where == "tf_half_pixel_for_nn" and rounding != "round_prefer_floor":
        return f"its coordinates {where} round by {rounding}", "round_prefer_floor runs"
    scales = item.inputs[2] if len(item.inputs) > 2 else None
    target = item.inputs[3] if len(item.inputs) > 3 else None
    if target is None and tensor_of(scales) is None:
        return "its scales are computed", FIXED_SHAPE
    return None


def _recurrent(item: ir.Node) -> Reason:
    if item.attributes.get_int("layout", 0):
        return "its layout is 1", "export with the sequence as the first axis"
    if item.attributes.get_int("input_forget", 0):
        return "it couples its input and forget gates", PROCESSOR
    given = list(item.attributes.get_strings("activations", []) or [])
    half = len(given) // 2
    if item.attributes.get_string("direction", "forward") == "bidirectional" and given[:half] != given[half:]:
        return "its two directions have different activations", PROCESSOR
    return None


def _scatter(item: ir.Node) -> Reason:
    if item.attributes.get_string("reduction", "none") != "none":
        return "it reduces what it scatters", PROCESSOR
    return None


def _einsum(item: ir.Node) -> Reason:
    equation = item.attributes.get_string("equation", "") or ""
    terms = equation.replace(" ", "").split("->")[0].split(",")
    if "." in equation:
        return "its equation has an ellipsis", "name all axes"
    if any(len(set(term)) < len(term) for term in terms):
        return "its equation takes a diagonal", PROCESSOR
    if equation != equation.lower():
        return "its equation has capital letters", "use small letters"
    return None


def _quantize(item: ir.Node) -> Reason:
    zero = item.inputs[2] if len(item.inputs) > 2 else None
    numbers = constant(zero)
    if zero is None or numbers is None:
        return "it has no constant zero point", "give zeros in int8"
    if zero.dtype != ir.DataType.INT8:
        return f"it quantizes to {_type_name(zero.dtype or ir.DataType.UNDEFINED)}", "quantize to int8"
    if numbers.any():
        return "its zero point is not 0", "quantize with symmetric ranges"
    return None


def _batch_normalization(item: ir.Node) -> Reason:
    if any(output.uses() for output in item.outputs[1:]) or item.attributes.get_int("training_mode"):
        return "it is in training mode", "export the model in eval mode"
    return None


def _dropout(item: ir.Node) -> Reason:
    mode = item.inputs[2] if len(item.inputs) > 2 else None
    if mode is None or ((known := constant(mode)) is not None and not known.any()):
        return None
    return "it is in training mode", "export the model in eval mode"


def _layer_normalization(item: ir.Node) -> Reason:
    if any(output.uses() or output.is_graph_output() for output in item.outputs[1:]):
        return "its further outputs are read", PROCESSOR
    return None


OWN: dict[str, Callable[[ir.Node], Reason]] = {
    "AveragePool": _pooling,
    "BatchNormalization": _batch_normalization,
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "DequantizeLinear": _quantize,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "LayerNormalization": _layer_normalization,
    "LpPool": _pooling,
    "MaxPool": _pooling,
    "QuantizeLinear": _quantize,
    "RNN": _recurrent,
    "Resize": _resize,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
}
