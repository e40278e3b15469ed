"""Integers carried through operators that only move or select values.

onnxruntime moves a DequantizeLinear behind MaxPool, Reshape and their like, and puts a QuantizeLinear of its
own before it. From opset 21 on that node has the attribute ``output_dtype`` (pull request 28144;
seen with 1.32.0, not with 1.23.0). On x86 int8 zero points then become uint8 and the attribute stays, so the
same file runs on ARM and does not load on x86. Where a pair stands already, none is put. No number changes,
because the values are on its grid, and on ARM onnxruntime would have put the same one.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeopt.graph.quantization import Parameters, QuantParams, Site, write

OPERATORS = ("MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
"""Operators that onnxruntime moves a DequantizeLinear behind."""

FIRST_OPSET = 21
"""The first opset whose QuantizeLinear has ``output_dtype``."""


def carry_integers(model: ir.Model) -> int:
    """Quantizes what operators make that only move or select int8 values, in place.

    Returns:
        How many values were quantized.
    """
    if model.opset_imports.get("", 0) < FIRST_OPSET:
        return 0
    carried: dict[ir.Value, QuantParams] = {}
    for node in model.graph:
        if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
            continue
        value, output = node.inputs[0], node.outputs[0]
        link = None if value is None else carried.get(value) or _int8(value.producer())
        if link is not None and all(use.node.op_type != "QuantizeLinear" for use in output.uses()):
            carried[output] = link
    params: Parameters = {Site(value.name or ""): [link] for value, link in carried.items()}
    write(model, params)
    return len(params)


def _int8(node: ir.Node | None) -> QuantParams | None:
    """Returns the parameters of a DequantizeLinear that has one int8 zero point and one scale."""
    if node is None or node.op_type != "DequantizeLinear" or node.domain not in ("", "ai.onnx"):
        return None
    constants = [value.const_value for value in node.inputs[1:] if value is not None]
    if len(constants) < 2 or constants[0] is None or constants[1] is None:
        return None
    scale, zero_point = constants[0].numpy(), constants[1].numpy()
    if scale.ndim or constants[1].dtype != ir.DataType.INT8:
        return None
    return QuantParams(ir.DataType.INT8, scale, zero_point if zero_point.any() else None)
