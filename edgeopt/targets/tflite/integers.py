"""What int8 needs before it can be written: every change of numbers, still as ONNX.

A model comes here with QuantizeLinear and DequantizeLinear around its activations and weights already
folded to integers. TFLite's 8-bit specification wants more than that: biases as int32 at the product of
the scales, one scale across operators that only move or select, fixed parameters behind some
activations, constants of elementwise operators quantized. Most of it changes nothing (moving integers
and quantizing the result alike is the same); what does change numbers is counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.graph.change import Change, Rewrite
from edgeopt.graph.names import carry_names, original_names
from edgeopt.targets.tflite.steps import (
    Parameters,
    attribute,
    clip_bounds,
    constant,
    only_reader,
    parameters,
    plain,
    quantized,
)

MOVES = {
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Slice", "Split", "Gather"),
    *("Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Dropout"),
    *("MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin"),
}
"""Their outputs hold nothing but numbers of their first input."""

BLENDS = {"AveragePool", "Resize", "Pad"}
"""One scale for input and output, but the output need not lie on the input's grid."""

JOINS = {"Concat", "Max", "Min"}
"""One scale for all inputs and the output."""

FIXED = {
    "Softmax": Parameters("int8", 1 / 256, -128),
    "Sigmoid": Parameters("int8", 1 / 256, -128),
    "Tanh": Parameters("int8", 1 / 128, 0),
    "LpNormalization": Parameters("int8", 1 / 128, 0),
}
"""The only output that the kernel knows."""

WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
ELEMENTWISE = {"Add", "Sub", "Mul", "PRelu"}
FUSED_BOUNDS = {(0.0, 6.0), (-1.0, 1.0), (0.0, float("inf"))}


def lower_integers(model: ir.Model) -> Change:
    """Makes every change of numbers that int8 needs, in place, in one walk over the main graph."""
    change = Change()
    if not any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph):
        return change
    walk = _Walk(model.graph)
    for node in list(model.graph):
        if node.graph is None or node.domain not in ("", "ai.onnx"):
            continue
        for rule in (_one_scale, _join, _fix_output, _clip, _constants, _bias):
            if rule(walk, node):
                names = original_names(node)
                site = names[0] if names else ""
                change.rewrites.append(Rewrite(rule.__name__.strip("_").replace("_", "-"), site, names))
    return change


def pair(
    graph: ir.Graph,
    value: ir.Value,
    params: Parameters,
    node: ir.Node,
    readers: Sequence[tuple[ir.Node, int]] | None = None,
) -> ir.Value:
    """Puts QuantizeLinear and DequantizeLinear behind a value.

    Args:
        graph: The graph.
        value: The value.
        params: The quantization.
        node: The node that this is for; the new nodes carry its names.
        readers: Who reads the quantized value; everyone, and the graph's outputs, by default.

    Returns:
        The quantized value, dequantized.
    """
    number = sum(1 for usage in value.uses() if usage.node.op_type == "QuantizeLinear")
    base = f"{value.name}/grid{number or ''}"
    scale = initializer(graph, np.array(params.scale, np.float32), f"{base}/scale")
    zero = initializer(graph, np.array(params.zero_point, params.dtype), f"{base}/zero_point")
    everyone = list(value.uses()) if readers is None else list(readers)
    q = ir.node("QuantizeLinear", [value, scale, zero], name=f"{base}/QuantizeLinear")
    dq = ir.node("DequantizeLinear", [q.outputs[0], scale, zero], name=f"{base}/DequantizeLinear")
    q.outputs[0].name, dq.outputs[0].name = f"{base}/quantized", f"{base}/dequantized"
    q.outputs[0].type = ir.TensorType(ir.DataType.from_numpy(np.dtype(params.dtype)))
    dq.outputs[0].type = value.type
    q.outputs[0].shape = dq.outputs[0].shape = value.shape
    for made in (q, dq):
        carry_names([node], made)
    for usage in everyone:
        usage[0].replace_input_with(usage[1], dq.outputs[0])
    if readers is None and value.is_graph_output():
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = dq.outputs[0]
        value.name, dq.outputs[0].name = f"{value.name}/exact", value.name
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, [q, dq])
    else:
        graph.insert_before(graph[0], [q, dq])
    return dq.outputs[0]


def initializer(graph: ir.Graph, array: np.ndarray, name: str) -> ir.Value:
    """Makes an initializer; a number is appended to a name that is taken."""
    taken, unique = graph.initializers, name
    number = 0
    while unique in taken:
        number += 1
        unique = f"{name}{number}"
    value = ir.Value(
        name=unique,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(array, name=unique),
    )
    graph.register_initializer(value)
    return value


def grid(value: ir.Value | None) -> Parameters | None:
    """The quantization of a value that DequantizeLinear makes from one computed at run time."""
    return parameters(quantized(value))


class _Walk:
    """What the rules share: the graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph

    def quantizers(self, value: ir.Value) -> list[Parameters]:
        """The quantizations that a value is given; empty unless all its readers quantize it."""
        found = []
        for usage in value.uses():
            known = parameters(usage.node.outputs[0]) if usage.node.op_type == "QuantizeLinear" else None
            if known is None:
                return []
            found.append(known)
        return [] if value.is_graph_output() else found

    def is_quantized(self, value: ir.Value, params: Parameters) -> bool:
        """Whether a value goes into just one QuantizeLinear, of these parameters."""
        found = self.quantizers(value)
        return len(found) == 1 and params.same(found[0])


def _one_scale(walk: _Walk, node: ir.Node) -> bool:
    """The output of what moves or blends numbers gets its input's scale, then the wanted one."""
    params = grid(node.inputs[0]) if node.inputs else None
    if params is None or params.dtype != "int8" or node.op_type not in MOVES | BLENDS:
        return False
    blends = node.op_type in BLENDS and not (node.op_type == "Pad" and _pads_zero(node))
    if node.op_type == "Resize" and attribute(node, "mode", "nearest") == "nearest":
        blends = False
    done = False
    for output in node.outputs:
        if not output.name or (not list(output.uses()) and not output.is_graph_output()):
            continue
        if output.dtype != ir.DataType.FLOAT or walk.is_quantized(output, params):
            continue
        if blends and not walk.quantizers(output):
            continue
        pair(walk.graph, output, params, node)
        done = True
    return done


def _pads_zero(node: ir.Node) -> bool:
    if attribute(node, "mode", "constant") != "constant":
        return True
    value = plain(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    return value is None or value.size == 0 or float(value.reshape(-1)[0]) == 0.0


def _join(walk: _Walk, node: ir.Node) -> bool:
    """Inputs that are joined are brought to the output's scale first."""
    if node.op_type not in JOINS:
        return False
    known = [grid(value) for value in node.inputs]
    if any(item is None and constant(value) is None for item, value in zip(known, node.inputs, strict=True)):
        return False
    wanted = walk.quantizers(node.outputs[0])
    first = next((item for item in known if item is not None), None)
    done = False
    if len(wanted) != 1:
        if first is None or not all(item is None or first.same(item) for item in known):
            return False
        pair(walk.graph, node.outputs[0], first, node)
        wanted, done = [first], True
    target = wanted[0]
    if target.dtype != "int8":
        return done
    for index, (value, item) in enumerate(zip(node.inputs, known, strict=True)):
        if value is None:
            continue
        if item is None:
            fixed = constant(value)
            if fixed is not None and not _has(fixed.scale, fixed.zero_point, target):
                _fold(walk.graph, node, index, fixed.real(), target)
                done = True
        elif not target.same(item):
            pair(walk.graph, value, target, node, [usage for usage in value.uses() if usage == (node, index)])
            done = True
    return done


def _has(scale: np.ndarray | None, zero: np.ndarray | None, params: Parameters) -> bool:
    return (
        scale is not None
        and zero is not None
        and scale.size == 1
        and float(scale.reshape(())) == params.scale
        and int(zero.reshape(())) == params.zero_point
    )


def _fix_output(walk: _Walk, node: ir.Node) -> bool:
    """A fixed output scale comes before the wanted one."""
    params = FIXED.get(node.op_type)
    if params is None or grid(node.inputs[0]) is None:
        return False
    output = node.outputs[0]
    if not walk.quantizers(output) or walk.is_quantized(output, params):
        return False
    pair(walk.graph, output, params, node)
    return True


def _clip(walk: _Walk, node: ir.Node) -> bool:
    """Bounds that no kernel takes in become an operator of its own, between equal scales."""
    if node.op_type != "Clip" or clip_bounds(node) in FUSED_BOUNDS or node.inputs[0] is None:
        return False
    wanted = walk.quantizers(node.outputs[0])
    if len(wanted) != 1 or wanted[0].dtype != "int8" or wanted[0].same(grid(node.inputs[0])):
        return False
    source = node.inputs[0]
    producer = source.producer()
    runs = grid(source) is not None or (producer is not None and producer.op_type in WEIGHTED | ELEMENTWISE)
    if not runs:
        return False
    readers = [usage for usage in source.uses() if usage == (node, 0)]
    pair(walk.graph, source, wanted[0], node, readers)
    return True


def _constants(walk: _Walk, node: ir.Node) -> bool:
    """Float constants of elementwise operators between integers are quantized over their own range."""
    if node.op_type not in ELEMENTWISE or not any(grid(value) is not None for value in node.inputs):
        return False
    if not _wants_integers(walk, node.outputs[0]):
        return False
    done = False
    for index, value in enumerate(node.inputs):
        fixed = constant(value)
        if fixed is None or fixed.scale is not None or fixed.data.dtype != np.float32 or not fixed.data.size:
            continue
        low, high = min(float(fixed.data.min()), 0.0), max(float(fixed.data.max()), 0.0)
        scale = float(np.float32((high - low) / 255)) or 1.0
        zero = round(float(np.clip(-128 - low / scale, -128, 127)))
        _fold(walk.graph, node, index, fixed.data, Parameters("int8", scale, zero))
        done = True
    return done


def _wants_integers(walk: _Walk, output: ir.Value) -> bool:
    if walk.quantizers(output):
        return True
    reader = only_reader(output)
    if reader is None or reader.op_type not in ("Relu", "Clip"):
        return False
    return bool(walk.quantizers(reader.outputs[0]))


def _fold(graph: ir.Graph, node: ir.Node, index: int, array: np.ndarray, params: Parameters) -> None:
    """Lets a dequantized integer initializer stand for a constant input."""
    value = node.inputs[index]
    base = f"{value.name if value is not None else node.name}/{node.name}/{index}"
    integers = np.clip(np.rint(array / np.float32(params.scale)) + params.zero_point, -128, 127).astype(
        np.int8
    )
    scale = initializer(graph, np.array(params.scale, np.float32), f"{base}/scale")
    zero = initializer(graph, np.array(params.zero_point, np.int8), f"{base}/zero_point")
    _dequantized(graph, node, index, initializer(graph, integers, f"{base}/quantized"), [scale, zero], None)


def _dequantized(
    graph: ir.Graph, node: ir.Node, index: int, integers: ir.Value, params: list[ir.Value], axis: int | None
) -> None:
    attributes = {} if axis is None else {"axis": axis}
    made = ir.node(
        "DequantizeLinear", [integers, *params], attributes, name=f"{integers.name}/DequantizeLinear"
    )
    made.outputs[0].name = f"{integers.name}/real"
    made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    made.outputs[0].shape = integers.shape
    carry_names([node], made)
    graph.insert_before(node, made)
    node.replace_input_with(index, made.outputs[0])


def _bias(walk: _Walk, node: ir.Node) -> bool:
    """A bias becomes int32 at the product of input and weight scale, as the accumulator is."""
    if node.op_type not in WEIGHTED or len(node.inputs) < 2:
        return False
    given, weight = grid(node.inputs[0]), constant(node.inputs[1])
    if given is None or given.dtype != "int8" or weight is None or weight.scale is None:
        return False
    holder, index = node, 2
    if node.op_type == "MatMul":
        add = only_reader(node.outputs[0])
        if add is None or add.op_type != "Add" or weight.data.ndim != 2:
            return False
        holder, index = add, 1 if add.inputs[0] is node.outputs[0] else 0
    value = holder.inputs[index] if len(holder.inputs) > index else None
    bias = constant(value)
    if bias is None or value is None:
        return False
    scale = np.float32(given.scale) * weight.scale.reshape(-1)
    if (
        bias.data.dtype == np.int32
        and bias.scale is not None
        and np.array_equal(bias.scale.reshape(-1), scale)
    ):
        return False
    real = bias.real().astype(np.float64).reshape(-1)
    if real.size == 1 and weight.scale.size > 1:
        real = np.full(scale.size, real[0])
    info = np.iinfo(np.int32)
    integers = np.clip(np.rint(real / scale.astype(np.float64)), info.min, info.max).astype(np.int32)
    name = f"{value.name}/{node.name}"
    if scale.size == 1:
        scale = scale.reshape(())
    stored = initializer(walk.graph, integers, f"{name}/int32")
    params = [
        initializer(walk.graph, scale, f"{name}/scale"),
        initializer(walk.graph, np.zeros(scale.shape, np.int32), f"{name}/zero_point"),
    ]
    _dequantized(walk.graph, holder, index, stored, params, 0 if scale.ndim else None)
    return True
