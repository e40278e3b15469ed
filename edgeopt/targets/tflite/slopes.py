"""Scales and slopes of LeakyRelu that its fast kernel says exactly.

XNNPACK multiplies by a factor of 8 fraction bits on either side of zero: k = 256 · input scale / output
scale where positive, m = k · slope where negative. For other numbers than whole k and m that costs up to
a quarter of a step at every element, which the layers behind amplify. Static int8
quantization chooses such scales already; here, before biases become integers, what is left is fitted: the
input's scale, which nothing but the LeakyRelu sees, is widened to the next k that has an m / k close to
the slope, and that is the slope from then on. The kernel rounds halves upwards where the graph rounds them
to even: scale and slope are off whole factors by less than a millionth, to the side where both agree.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.change import Change, Rewrite
from edgeopt.graph.names import original_names
from edgeopt.graph.slopes import NUDGE, fitted_scale, fitting
from edgeopt.targets.tflite.integers import ELEMENTWISE, WEIGHTED, initializer
from edgeopt.targets.tflite.steps import Parameters, attribute, only_reader, parameters

FACTOR = 256
"""What the kernel's factors are whole numbers over; ``slope_factor`` of the runtime's rules says it too."""


def fit_slopes(model: ir.Model) -> Change:
    """Fits every quantized LeakyRelu of the main graph, in place."""
    change = Change()
    for node in list(model.graph):
        if node.op_type == "LeakyRelu" and node.domain in ("", "ai.onnx") and _fit(model.graph, node):
            names = original_names(node)
            change.rewrites.append(Rewrite("fit-slope", names[0] if names else "", names))
    return change


def _fit(graph: ir.Graph, node: ir.Node) -> bool:
    pair = _own_pair(node)
    reader = only_reader(node.outputs[0])
    made = None if reader is None or reader.op_type != "QuantizeLinear" else parameters(reader.outputs[0])
    if pair is None or made is None:
        return False
    given = parameters(pair[0].outputs[0])
    if given is None or given.dtype != "int8" or made.dtype != "int8":
        return False
    alpha = float(attribute(node, "alpha", 0.01))
    found = fitting(given.scale / made.scale, alpha, FACTOR)
    if found is None:
        return False
    k, m = found
    wanted = Parameters("int8", fitted_scale(made.scale, k, FACTOR), given.zero_point)
    slope = float(np.float32(m / k * (1 - 3 * NUDGE)))
    if wanted.same(given) and slope == alpha:
        return False
    scale = initializer(graph, np.array(wanted.scale, np.float32), f"{node.name}/fitted_scale")
    for part in pair:
        part.replace_input_with(1, scale)
    node.attributes["alpha"] = ir.AttrFloat32("alpha", slope)
    return True


def _own_pair(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """QuantizeLinear and DequantizeLinear before a node, if they serve it alone and their scale is free."""
    back = node.inputs[0].producer() if node.inputs[0] is not None else None
    if back is None or back.op_type != "DequantizeLinear" or only_reader(back.outputs[0]) is not node:
        return None
    there = back.inputs[0].producer() if back.inputs[0] is not None else None
    if there is None or there.op_type != "QuantizeLinear" or only_reader(there.outputs[0]) is not back:
        return None
    source = there.inputs[0]
    producer = source.producer() if source is not None else None
    if source is None or producer is None or producer.op_type not in WEIGHTED | ELEMENTWISE:
        return None
    return (there, back) if only_reader(source) is there else None
