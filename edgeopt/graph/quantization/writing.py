"""Inserting quantization into a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.errors import ModelError
from edgeopt.graph.names import name_nodes
from edgeopt.graph.quantization.naming import Names, add_initializer
from edgeopt.graph.quantization.parameters import Parameters, QuantParams, quantize_array

FIRST_OPSET = 13
"""The first opset whose QuantizeLinear has an axis of channels."""


def write(model: ir.Model, params: Parameters) -> None:
    """Inserts the quantization that ``params`` describes, in place.

    Sites of one value share the pairs that their chains have in common. A graph's output keeps its
    name when it is quantized: the float value before it is renamed.

    Raises:
        ModelError: The main graph has no value or reader of a name, or the model's opset cannot express
            a type.
    """
    name_nodes(model)
    graph = model.graph
    names = Names(model)
    values = {value.name: value for value in (*graph.inputs, *graph.initializers.values())}
    values.update((output.name, output) for node in graph for output in node.outputs)
    nodes = {node.name: node for node in graph.all_nodes()}
    by_value: dict[str, dict[tuple[tuple[str, int], ...] | None, list[QuantParams]]] = {}
    for site, chain in params.items():
        by_value.setdefault(site.value, {})[site.readers] = list(chain)
    for name, leaves in by_value.items():
        if (value := values.get(name)) is None:
            raise ModelError(f"the model has no value {name!r} to quantize")
        uses = [(use.node, use.idx) for use in value.uses()]
        outputs = [index for index, output in enumerate(graph.outputs) if output is value]
        written: dict[ir.Value, list[tuple[QuantParams, ir.Value]]] = {}
        for readers, chain in leaves.items():
            last = value
            for link in chain:
                known = written.setdefault(last, [])
                following = next((result for other, result in known if other == link), None)
                if following is None:
                    following = _insert(model, last, link, names)
                    known.append((link, following))
                last = following
            if readers is None:
                chosen, quantized_outputs = uses, outputs
            else:
                if missing := [reader for reader, _ in readers if reader and reader not in nodes]:
                    raise ModelError(f"the model has no node {missing[0]!r}")
                chosen = [(nodes[reader], index) for reader, index in readers if reader]
                quantized_outputs = [index for reader, index in readers if not reader]
            for node, index in chosen:
                node.replace_input_with(index, last)
            for index in quantized_outputs:
                _take_output(graph, index, value, last, names)


def _insert(model: ir.Model, value: ir.Value, params: QuantParams, names: Names) -> ir.Value:
    """Inserts one quantization after a value and returns the dequantized result."""
    if params.dtype == ir.DataType.INT32:
        return fold(model, value, params, names)
    opset = model.opset_imports.get("", 0)
    if opset < FIRST_OPSET:
        raise ModelError(f"quantizing needs opset {FIRST_OPSET}, the model has {opset}")
    if opset < 21 and (params.dtype not in (ir.DataType.INT8, ir.DataType.UINT8) or params.block):
        kind = params.dtype.name.lower() + (" in blocks" if params.block else "")
        raise ModelError(f"quantizing to {kind} needs opset 21, the model has {opset}")
    graph, stem = model.graph, value.name or ""
    name = names.node(f"{stem}_quantize")
    if params.scale is None:
        first = ir.Node("", "DynamicQuantizeLinear", [value], num_outputs=3, name=name)
        for output, part in zip(first.outputs, ("quantized", "scale", "zero_point"), strict=True):
            output.name = names.value(f"{stem}_{part}")
        parameters: list[ir.Value] = list(first.outputs[1:])
        attributes: list[ir.Attr] = []
    else:
        parameters = _parameter_values(graph, stem, params, value.dtype, names)
        attributes = _attributes(params)
        first = ir.Node("", "QuantizeLinear", [value, *parameters], attributes, name=name)
        first.outputs[0].name = names.value(f"{stem}_quantized")
    integers = first.outputs[0]
    integers.type, integers.shape = ir.TensorType(params.dtype), value.shape
    second = ir.Node(
        "",
        "DequantizeLinear",
        [integers, *parameters],
        _attributes(params),
        name=names.node(f"{stem}_dequantize"),
    )
    result = second.outputs[0]
    result.name, result.type, result.shape = names.value(f"{stem}_dequantized"), value.type, value.shape
    _place(graph, value, (first, second))
    return result


def fold(model: ir.Model, value: ir.Value, params: QuantParams, names: Names) -> ir.Value:
    """Adds an integer initializer behind DequantizeLinear for a float one, and takes its name.

    Whoever read the float initializer still does, under another name. The integers are computed when
    they are asked for, so a large model is not held in memory.

    Returns:
        The dequantized value.

    Raises:
        ModelError: The value is no initializer.
    """
    graph, tensor, name = model.graph, value.const_value, value.name or ""
    if tensor is None or not value.is_initializer():
        raise ModelError(f"{name!r} is no constant, so it cannot be folded to {params.dtype.name.lower()}")
    graph.initializers.pop(name)
    value.name = names.value(f"{name}_float")
    graph.register_initializer(value)
    lazy = ir.LazyTensor(
        lambda: ir.Tensor(quantize_array(tensor.numpy(), params), dtype=params.dtype, name=name),
        dtype=params.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=name,
    )
    integers = add_initializer(graph, name, lazy)
    parameters = _parameter_values(graph, name, params, ir.DataType.FLOAT, names)
    node = ir.Node(
        "",
        "DequantizeLinear",
        [integers, *parameters],
        _attributes(params),
        name=names.node(f"{name}_dequantize"),
    )
    result = node.outputs[0]
    result.name, result.type, result.shape = names.value(f"{name}_dequantized"), value.type, value.shape
    _place(graph, integers, (node,))
    return result


def _parameter_values(
    graph: ir.Graph, stem: str, params: QuantParams, dtype: ir.DataType | None, names: Names
) -> list[ir.Value]:
    assert params.scale is not None
    scale = params.scale.astype((dtype or ir.DataType.FLOAT).numpy())
    zero_point = np.zeros(scale.shape) if params.zero_point is None else params.zero_point
    integers = zero_point.astype(params.dtype.numpy())
    return [
        add_initializer(graph, names.value(f"{stem}_scale"), ir.Tensor(scale)),
        add_initializer(graph, names.value(f"{stem}_zero_point"), ir.Tensor(integers, dtype=params.dtype)),
    ]


def _attributes(params: QuantParams) -> list[ir.Attr]:
    attributes = []
    if params.axis is not None:
        attributes.append(ir.AttrInt64("axis", params.axis))
    if params.block:
        attributes.append(ir.AttrInt64("block_size", params.block))
    return attributes


def _place(graph: ir.Graph, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, nodes)
    elif len(graph):
        graph.insert_before(graph[0], nodes)
    else:
        graph.extend(nodes)


def _take_output(graph: ir.Graph, index: int, value: ir.Value, result: ir.Value, names: Names) -> None:
    """Makes a dequantized value the graph's output, under the name that the output had."""
    graph.outputs[index] = result
    if not (value.is_graph_input() or value.is_initializer() or value.is_graph_output()):
        name = value.name or ""
        value.name = names.value(f"{name}_float")
        result.name = name
