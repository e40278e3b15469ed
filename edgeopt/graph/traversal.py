"""Walking graphs with their subgraphs, and what nodes read through them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

_GRAPH, _GRAPHS = ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS


_STANDARD = ("", "ai.onnx")
_HOLDERS = {"If", "Loop", "Scan", "SequenceMap"}
"""The operators of ai.onnx whose attributes are graphs."""


def graphs(model: ir.Model) -> list[ir.Graph]:
    """The main graph, then every subgraph behind the graph that holds it; functions are left out."""
    found: list[ir.Graph] = []
    _collect(model.graph, found)
    return found


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Walks the nodes of the main graph, then of the functions, each with its subgraphs, in order."""
    yield from _nodes(model.graph)
    for function in model.functions.values():
        yield from _nodes(function)


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """The graphs that a node's attributes hold, without those inside them."""
    if node.op_type not in _HOLDERS and node.domain in _STANDARD:
        return []
    found: list[ir.Graph] = []
    for attribute in node.attributes.data.values():
        if attribute.type is _GRAPH or attribute.type is _GRAPHS:
            found.extend(graphs_of(attribute))
    return found


def graphs_of(attribute: ir.Attr) -> Sequence[ir.Graph]:
    """The graphs that an attribute holds."""
    if attribute.is_ref():
        return ()
    if attribute.type == _GRAPH:
        return (attribute.as_graph(),)
    if attribute.type == _GRAPHS:
        return tuple(attribute.as_graphs())
    return ()


def read_by(node: ir.Node) -> list[ir.Value]:
    """The values that a node reads, with those that its subgraphs capture from outside."""
    values = [value for value in node.inputs if value is not None]
    return values + [value for value in captured_by(node) if value not in values]


def captured_by(node: ir.Node) -> list[ir.Value]:
    """The values that a node's subgraphs read from outside, those that it also reads itself included."""
    starts = subgraphs(node)
    inner = {graph for start in starts for graph in (start, *start.subgraphs())}
    values: dict[ir.Value, None] = {}
    for start in starts:
        candidates = [value for child in start.all_nodes() for value in child.inputs if value is not None]
        for value in [*candidates, *start.outputs]:
            if value.graph not in inner:
                values.setdefault(value)
    return list(values)


def _collect(graph: ir.Graph, found: list[ir.Graph]) -> None:
    found.append(graph)
    for node in graph:
        if node.op_type in _HOLDERS or node.domain not in _STANDARD:
            for inner in subgraphs(node):
                _collect(inner, found)


def _nodes(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    for node in graph:
        yield node
        if node.op_type in _HOLDERS or node.domain not in _STANDARD:
            for inner in subgraphs(node):
                yield from _nodes(inner)
