"""New names in a model, and the initializers that carry them."""

from __future__ import annotations

import onnx_ir as ir


class Names:
    """The names of a model's values and nodes, for making new ones."""

    def __init__(self, model: ir.Model) -> None:
        self._values = {value.name for graph in model.graphs() for value in graph.initializers.values()}
        self._values.update(value.name for graph in model.graphs() for value in graph.inputs)
        self._values.update(
            output.name for graph in model.graphs() for node in graph for output in node.outputs
        )
        self._nodes = {node.name for graph in model.graphs() for node in graph}

    def value(self, stem: str) -> str:
        """Returns an unused name for a value, beginning with ``stem``."""
        return _fresh(stem, self._values)

    def node(self, stem: str) -> str:
        """Returns an unused name for a node, beginning with ``stem``."""
        return _fresh(stem, self._nodes)


def _fresh(stem: str, taken: set[str | None]) -> str:
    name, count = stem, 1
    while name in taken:
        count += 1
        name = f"{stem}_{count}"
    taken.add(name)
    return name


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Adds a constant under a name that is free."""
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def drop_initializer(graph: ir.Graph, value: ir.Value) -> None:
    """Removes a constant that nothing reads any more."""
    if value.is_initializer() and not value.uses() and not value.is_graph_output():
        graph.initializers.pop(value.name or "", None)
