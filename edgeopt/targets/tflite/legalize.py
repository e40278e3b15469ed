"""Rewriting what TFLite has no operator for into what it has, still as ONNX.

Each function takes a node, makes the change and returns whether it did. All are exact up to float
rounding. The nodes that they make carry the original's names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.graph.change import Change, Rewrite
from edgeopt.graph.layout import shape_of
from edgeopt.graph.names import carry_names, original_names
from edgeopt.targets.tflite.constants import settle
from edgeopt.targets.tflite.steps import Parameters, attribute

Legalization = Callable[["Splice", ir.Node], bool]
RULES: dict[str, list[Legalization]] = {}


def legalizes(*op_types: str, first: bool = False) -> Callable[[Legalization], Legalization]:
    """Registers a legalization of one or several operators.

    Args:
        op_types: The operators.
        first: Try it before those registered so far.
    """

    def register(function: Legalization) -> Legalization:
        for op_type in op_types:
            rules = RULES.setdefault(op_type, [])
            rules.insert(0 if first else len(rules), function)
        return function

    return register


class Splice:
    """Builds the nodes that replace one node."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph = graph
        self.node = node
        self.made: list[ir.Node] = []

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | np.ndarray | None,
        outputs: int = 1,
        shape: Sequence[int] | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Makes a node and returns its first output; arrays become initializers."""
        number = len(self.made)
        base = f"{self.node.name}/{op_type}{number}"
        values = [
            self.array(item, f"{base}/{index}") if isinstance(item, np.ndarray) else item
            for index, item in enumerate(inputs)
        ]
        node = ir.node(op_type, values, attributes=attributes, num_outputs=outputs, name=base)
        carry_names([self.node], node)
        first = inputs[0]
        dtype = first.dtype if isinstance(first, ir.Value) else None
        for index, output in enumerate(node.outputs):
            output.name = f"{base}:{index}"
            if dtype is not None:
                output.dtype = dtype
        if shape is not None:
            node.outputs[0].shape = ir.Shape(shape)
        self.made.append(node)
        return node.outputs[0]

    def array(self, array: np.ndarray, name: str) -> ir.Value:
        """Makes an initializer."""
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            const_value=ir.tensor(array, name=name),
        )
        self.graph.register_initializer(value)
        return value

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """Makes a Reshape to a known shape."""
        return self.op("Reshape", value, np.array(shape, np.int64), shape=shape)

    def grid(self, value: ir.Value, params: Parameters) -> ir.Value:
        """Quantizes and dequantizes a value whose range is known from its formula."""
        scale, zero = np.array(params.scale, np.float32), np.array(params.zero_point, params.dtype)
        shape = shape_of(value)
        integers = self.op("QuantizeLinear", value, scale, zero, shape=shape)
        integers.type = ir.TensorType(ir.DataType.from_numpy(zero.dtype))
        real = self.op("DequantizeLinear", integers, scale, zero, shape=shape)
        real.type = value.type
        return real

    def replace(self, *results: ir.Value) -> bool:
        """Puts the nodes made into the node's place; its outputs are those values from here on."""
        self.graph.insert_before(self.node, self.made)
        for old, new in zip(self.node.outputs, results, strict=True):
            name, shape = old.name, old.shape
            old.name = f"{name}/before"
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            new.name, new.shape, new.type = name, shape, old.type
        self.graph.remove(self.node, safe=True)
        return True


def legalize(model: ir.Model) -> Change:
    """Applies every legalization to the main graph, in place, until none applies."""
    change = Change()
    for _ in range(8):
        before = len(change.rewrites)
        for node in list(model.graph):
            if node.graph is None or node.domain not in ("", "ai.onnx") or not _shapes_known(node):
                continue
            for rule in RULES.get(node.op_type, ()):
                names = original_names(node)
                if rule(Splice(model.graph, node), node):
                    site = names[0] if names else ""
                    change.rewrites.append(Rewrite(rule.__name__.replace("_", "-"), site, names))
                    break
        if len(change.rewrites) == before:
            break
        settle(model)
    return change


def _shapes_known(node: ir.Node) -> bool:
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name]
    return all(value.shape is not None for value in values)


def plain_attributes(node: ir.Node) -> dict[str, Any]:
    """A node's attributes as plain values."""
    return {name: attribute(node, name) for name in node.attributes}
