"""What is stored or computed twice, or never read."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from edgeopt.graph import names, region
from edgeopt.graph.change import Change, Rewrite
from edgeopt.passes.base import Context
from edgeopt.passes.simplify.folding import RANDOM


def own_constants(model: ir.Model) -> Change:
    """Turns Constant nodes into initializers, and inputs with a default value into plain initializers."""
    change = Change()
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    graph = model.graph
    overridable = [value for value in graph.inputs if value.name in graph.initializers]
    if overridable:
        kept = [value for value in graph.inputs if value.name not in graph.initializers]
        graph.inputs.clear()
        graph.inputs.extend(kept)
        model.ir_version = max(4, model.ir_version)
        change.notes.append(f"{len(overridable)} inputs that held weights are constants now")
    return change


def remove_unused(model: ir.Model) -> None:
    """Drops nodes, optional outputs and initializers that nothing reads, subgraphs included."""
    RemoveUnusedNodesPass()(model)
    for graph in list(model.graphs()):
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del graph.initializers[name]


def merge_equal(model: ir.Model, context: Context) -> Change:
    """Keeps one of several equal initializers and of several equal nodes of one graph, in place."""
    change = Change()
    for graph in list(model.graphs()):
        _merge_initializers(graph)
        _merge_nodes(graph, context, change)
    return change


def _merge_initializers(graph: ir.Graph) -> None:
    alike: dict[tuple[object, ...], list[ir.Value]] = {}
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output() or not value.uses():
            continue
        if tensor.dtype == ir.DataType.STRING:
            continue
        alike.setdefault((tensor.dtype, tuple(tensor.shape.numpy())), []).append(value)
    for candidates in alike.values():
        if len(candidates) < 2:
            continue
        first: dict[bytes, ir.Value] = {}
        for value in candidates:
            kept = first.setdefault(_digest(value), value)
            if kept is not value:
                value.replace_all_uses_with(kept)
                del graph.initializers[value.name or ""]


def _digest(value: ir.Value) -> bytes:
    tensor = value.const_value
    assert tensor is not None
    numbers = np.ascontiguousarray(tensor.numpy())
    return hashlib.sha256(numbers.reshape(-1).view(np.uint8).data).digest()


def _merge_nodes(graph: ir.Graph, context: Context, change: Change) -> None:
    rule = "equal nodes"
    first: dict[tuple[object, ...], ir.Node] = {}
    for node in list(graph):
        if node.op_type in RANDOM or any(region.graphs_of(item) for item in node.attributes.values()):
            continue
        if node.op_type == "Dropout" or any(output.is_graph_output() for output in node.outputs):
            continue
        attributes = tuple(
            sorted((key, ir.to_proto(item).SerializeToString()) for key, item in node.attributes.items())
        )
        key = (node.op_identifier(), tuple(node.inputs), attributes, _present(node))
        kept = first.setdefault(key, node)
        if kept is node or not context.allow(rule, names.original_names(node)[-1]):
            continue
        for one, other in zip(node.outputs, kept.outputs, strict=True):
            one.replace_all_uses_with(other)
        replaced = names.original_names(node)
        both = dict.fromkeys([*names.original_names(kept), *replaced])
        kept.metadata_props[names.ORIGINAL_NAMES] = json.dumps(list(both))
        graph.remove(node, safe=True)
        change.rewrites.append(Rewrite(rule, replaced[-1], replaced, 0.0))


def _present(node: ir.Node) -> tuple[bool, ...]:
    return tuple(bool(output.name) for output in node.outputs)
