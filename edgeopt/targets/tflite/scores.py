"""Scores that are means, left in float at the graph's outputs.

A classifier that ends in a mean over an image has its scores rounded to 255 steps once more by an int8
output, and of many classes the best two then often lie on one step. The mean of integers in float has no
such ties, and costs a DEQUANTIZE of what it reads.
"""

from __future__ import annotations

import onnx_ir as ir

from edgeopt.graph.change import Change, Rewrite
from edgeopt.graph.names import original_names
from edgeopt.targets.tflite.steps import only_reader

MEANS = {"GlobalAveragePool", "ReduceMean"}
SHAPES = {"Flatten", "Reshape", "Squeeze", "Identity"}


def keep_scores(model: ir.Model) -> Change:
    """Drops the quantization between a mean and a graph output, in place."""
    change = Change()
    for output in list(model.graph.outputs):
        mean, pairs = _chain(output)
        if mean is None or not pairs:
            continue
        for quantize, back in pairs:
            _drop(model.graph, quantize, back)
        names = original_names(mean)
        change.rewrites.append(Rewrite("keep-scores", names[0] if names else "", names))
    return change


def _chain(output: ir.Value) -> tuple[ir.Node | None, list[tuple[ir.Node, ir.Node]]]:
    """The mean behind an output, if only changes of shape lie between, and the quantizations on the way."""
    pairs: list[tuple[ir.Node, ir.Node]] = []
    value: ir.Value | None = output
    while value is not None and (node := value.producer()) is not None:
        if list(value.uses()) if value is output else only_reader(value) is None:
            return None, []
        if node.op_type in MEANS:
            return node, pairs
        quantize = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if node.op_type == "DequantizeLinear" and quantize is not None:
            if quantize.op_type != "QuantizeLinear" or only_reader(quantize.outputs[0]) is not node:
                return None, []
            pairs.append((quantize, node))
            value = quantize.inputs[0]
        elif node.op_type in SHAPES:
            value = node.inputs[0]
        else:
            return None, []
    return None, []


def _drop(graph: ir.Graph, quantize: ir.Node, back: ir.Node) -> None:
    source, result = quantize.inputs[0], back.outputs[0]
    if source is None:
        return
    if result.is_graph_output():
        name = result.name
        result.name, source.name = f"{name}/quantized", name
    result.replace_all_uses_with(source, replace_graph_outputs=True)
    graph.remove(back, safe=True)
    graph.remove(quantize, safe=True)
