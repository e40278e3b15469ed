"""Which nodes of a quantized graph run in integers, and which values never exist as floats.

In the graph a quantized value is a pair of QuantizeLinear and DequantizeLinear around a float operator.
A runtime with integer kernels runs DequantizeLinear, operator, QuantizeLinear as one kernel and keeps
only the integers between two kernels. This module says where that is so; cost, memory and prediction
count such values at their integer width and such pairs as free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators whose integer kernels can also give a float result."""

ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid"})
"""Activations that runtimes compute inside the layer before."""


@dataclass(slots=True)
class Integers:
    """How a quantized graph is run.

    Attributes:
        nodes: The nodes that run in integers.
        absorbed: The QuantizeLinear, DequantizeLinear and activation nodes that run inside a neighbour.
        held: Per float value the integer value in whose form it is kept instead.
    """

    nodes: set[ir.Node] = field(default_factory=set)
    absorbed: set[ir.Node] = field(default_factory=set)
    held: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def as_read(self, node: ir.Node, value: ir.Value) -> ir.Value:
        """Returns the value that a node reads from memory when it names ``value`` as its input."""
        producer = value.producer()
        quantized = producer is not None and producer.op_type == "DequantizeLinear"
        if quantized and node in self.nodes and producer is not None and producer.inputs[0] is not None:
            return producer.inputs[0]
        return self.held.get(value, value)


def integers(nodes: Iterable[ir.Node]) -> Integers:
    """Finds the integer part of a graph given as its nodes in order."""
    result = Integers()
    listed = list(nodes)
    for node in listed:
        if _runs_in_integers(node):
            result.nodes.add(node)
            activation = fused_activation(node)
            if activation is not None:
                result.nodes.add(activation)
    for node in listed:
        if node.op_type == "DequantizeLinear":
            readers = node.outputs[0].consumers()
            source = node.inputs[0]
            if source is not None and (is_constant(source) or _only(readers, result.nodes, node.outputs[0])):
                result.absorbed.add(node)
                result.held[node.outputs[0]] = source
    for node in result.nodes:
        for output in node.outputs:
            quantizer = _sole_quantizer(output)
            if quantizer is not None:
                result.held[output] = quantizer.outputs[0]
                result.absorbed.add(quantizer)
        activation = fused_activation(node)
        if activation is not None and (quantizer := _sole_quantizer(activation.outputs[0])) is not None:
            result.held[node.outputs[0]] = quantizer.outputs[0]
            result.absorbed.add(activation)
    for node in listed:  # weights that are quantized in the graph are stored quantized
        if node.op_type == "QuantizeLinear" and node.inputs[0] is not None and is_constant(node.inputs[0]):
            result.absorbed.add(node)
    return result


def fused_activation(node: ir.Node) -> ir.Node | None:
    """Returns the activation that alone reads a weighted node's output, where there is one."""
    if node.op_type not in WEIGHTED and node.op_type != "BatchNormalization":
        return None
    output = node.outputs[0]
    readers = output.consumers()
    if output.is_graph_output() or len(readers) != 1 or readers[0].op_type not in ACTIVATIONS:
        return None
    return readers[0]


def is_constant(value: ir.Value) -> bool:
    """Whether a value is an initializer, made by a Constant node, or one of these (de)quantized."""
    if value.const_value is not None or value.is_initializer():
        return True
    producer = value.producer()
    if producer is None:
        return False
    if producer.op_type == "Constant":
        return True
    source = producer.inputs[0] if producer.inputs else None
    return (
        producer.op_type in ("QuantizeLinear", "DequantizeLinear")
        and source is not None
        and is_constant(source)
    )


def _runs_in_integers(node: ir.Node) -> bool:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return False
    quantized = 0
    for value in node.inputs:
        if value is None:
            continue
        producer = value.producer()
        if producer is not None and producer.op_type == "DequantizeLinear":
            quantized += not is_constant(value)
        elif not is_constant(value):
            return False
    if not quantized:
        return False
    if node.op_type in WEIGHTED:
        weight = node.inputs[1]
        producer = None if weight is None else weight.producer()
        return producer is not None and producer.op_type == "DequantizeLinear"
    return all(_sole_quantizer(output) is not None for output in node.outputs if output.consumers())


def _sole_quantizer(value: ir.Value) -> ir.Node | None:
    readers = value.consumers()
    if value.is_graph_output() or len(readers) != 1 or readers[0].op_type != "QuantizeLinear":
        return None
    return readers[0] if readers[0].inputs[0] is value else None


def _only(readers: Iterable[ir.Node], allowed: set[ir.Node], value: ir.Value) -> bool:
    return not value.is_graph_output() and all(reader in allowed for reader in readers)
