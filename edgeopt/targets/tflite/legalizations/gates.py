"""HardSigmoid and HardSwish between integers as a depthwise convolution.

TFLite has no int8 kernel for HardSigmoid, and the one for HARD_SWISH is a builtin that rounds four times
on the way and that XNNPACK does not take, so every one of them cuts the part that XNNPACK runs in two.
x / 6 + 1/2, saturated at the ends of a grid that reaches just from 0 to 1, is a depthwise convolution of
one weight a channel: one of XNNPACK's kernels, exact but for the result's own rounding. HardSwish is that
times x.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.layout import shape_of
from edgeopt.targets.tflite.integers import grid
from edgeopt.targets.tflite.legalize import Splice, legalizes
from edgeopt.targets.tflite.steps import Parameters, attribute, only_reader, parameters

GATE = Parameters("int8", float(np.float32(1 / 255)), -128)
"""All of its integers together reach from 0 to 1."""


@legalizes("HardSigmoid", "HardSwish", first=True)
def spell_gate(splice: Splice, node: ir.Node) -> bool:
    """A gate of four axes between integers."""
    source, output = node.inputs[0], node.outputs[0]
    given = grid(source)
    if source is None or given is None or given.dtype != "int8" or len(shape_of(source)) != 4:
        return False
    reader = only_reader(output)
    if reader is None or reader.op_type != "QuantizeLinear" or parameters(reader.outputs[0]) is None:
        return False
    if node.op_type == "HardSwish":
        gate = splice.grid(_line(splice, source), GATE)
        return splice.replace(splice.op("Mul", source, gate, shape=shape_of(source)))
    usual = abs(attribute(node, "alpha", 0.2) - 1 / 6) < 1e-6 and attribute(node, "beta", 0.5) == 0.5
    back = only_reader(reader.outputs[0])
    if not usual or back is None or back.op_type != "DequantizeLinear" or back.outputs[0].is_graph_output():
        return False
    gate = splice.grid(_line(splice, source), GATE)
    splice.graph.insert_before(node, splice.made)
    back.outputs[0].replace_all_uses_with(gate)
    for gone in (back, reader, node):
        splice.graph.remove(gone, safe=True)
    return True


def _line(splice: Splice, source: ir.Value) -> ir.Value:
    """x / 6 + 1/2 for every channel."""
    channels = shape_of(source)[1]
    weight = splice.op(
        "DequantizeLinear",
        np.full((channels, 1, 1, 1), 127, np.int8),
        np.full(channels, 1 / (6 * 127), np.float32),
        np.zeros(channels, np.int8),
        shape=(channels, 1, 1, 1),
        axis=0,
    )
    weight.type = source.type
    half = np.full(channels, 0.5, np.float32)
    made = splice.op("Conv", source, weight, half, shape=shape_of(source), group=channels)
    made.type = source.type
    return made
