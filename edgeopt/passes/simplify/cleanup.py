"""What is stored or computed twice, or never read."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from edgeopt.graph import names, region, traversal
from edgeopt.graph.change import Change
from edgeopt.graph.rewriting import Replacement, Rewriter, Rule
from edgeopt.passes.base import Context
from edgeopt.passes.simplify.folding import RANDOM

_KNOWN = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
"""Domains whose operators give the same result each time, but for those in ``RANDOM``."""

_SMALL = 2**20
"""Constants of up to this many bytes are copied out of their protos once: a copy each time costs more."""

_GLANCE = 64
"""Bytes of a constant that are looked at first."""


def own_constants(model: ir.Model) -> Change:
    """Turns Constant nodes into initializers, and inputs with a default value into plain initializers."""
    change = Change()
    inner = traversal.graphs(model)
    for graph in inner:
        for node in [node for node in graph if node.op_type == "Constant"]:
            _lift(graph, node)
    if any(node.op_type == "Constant" for graph in inner for node in graph):
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for graph in inner:
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.nbytes <= _SMALL:
                _take_out(value)
    graph = model.graph
    overridable = [value for value in graph.inputs if value.name in graph.initializers]
    if overridable:
        kept = [value for value in graph.inputs if value.name not in graph.initializers]
        graph.inputs.clear()
        graph.inputs.extend(kept)
        model.ir_version = max(4, model.ir_version)
        change.notes.append(f"{len(overridable)} inputs that held weights are constants now")
    return change


def _lift(graph: ir.Graph, node: ir.Node) -> None:
    """Turns a Constant node that holds a tensor into an initializer of the same name."""
    given, output = node.attributes.get("value"), node.outputs[0]
    if given is None or given.is_ref() or node.domain not in ("", "ai.onnx") or output.is_graph_output():
        return
    tensor, name = given.value, output.name
    if not name or name in graph.initializers:
        return
    shape = ir.Shape(tensor.shape.numpy())
    lifted = ir.Value(name=None, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    output.replace_all_uses_with(lifted)
    graph.remove(node, safe=True)
    output.name, lifted.name = None, name
    graph.register_initializer(lifted)


def _take_out(value: ir.Value) -> None:
    """Takes a constant out of its proto, which decodes it anew each time it is asked."""
    tensor = value.const_value
    if isinstance(tensor, ir.serde.TensorProtoTensor) and region.is_plain(tensor.dtype):
        value.const_value = ir.Tensor(tensor.numpy(), name=value.name)


def remove_unused(model: ir.Model) -> None:
    """Drops nodes, optional outputs and initializers that nothing reads, subgraphs included."""
    inner = traversal.graphs(model)
    if any(_has_unread(node) for graph in inner for node in graph):
        RemoveUnusedNodesPass()(model)
    for graph in inner:
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del graph.initializers[name]


def _has_unread(node: ir.Node) -> bool:
    return any(value.name and not value.uses() and not value.is_graph_output() for value in node.outputs)


def merge_equal(model: ir.Model, context: Context) -> Change:
    """Keeps one of several equal initializers and of several equal nodes of one graph, in place.

    Initializers are equal byte by byte, which is its own proof; nodes are proved as any rewrite is.
    """
    rewriter = Rewriter(model, context)
    for graph in traversal.graphs(model):
        _merge_initializers(graph)
        _merge_nodes(graph, rewriter)
    return rewriter.change


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
        first: dict[bytes, list[ir.Value]] = {}
        for value in candidates:
            some = first.setdefault(_glance(value), [])
            kept = next((other for other in some if _equal(other, value)), None)
            if kept is None:
                some.append(value)
            else:
                value.replace_all_uses_with(kept)
                del graph.initializers[value.name or ""]


def _bytes(value: ir.Value) -> np.ndarray:
    tensor = value.const_value
    assert tensor is not None
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)


def _glance(value: ir.Value) -> bytes:
    """A few of a constant's bytes: where these differ, nothing else need be read."""
    numbers = _bytes(value)
    if numbers.size <= _GLANCE:
        return numbers.tobytes()
    return numbers[:_GLANCE].tobytes() + numbers[:: numbers.size // _GLANCE].tobytes()


def _equal(one: ir.Value, two: ir.Value) -> bool:
    left, right = _bytes(one), _bytes(two)
    return left.size <= _GLANCE or np.array_equal(left, right)


def _merge_nodes(graph: ir.Graph, rewriter: Rewriter) -> None:
    alike: dict[tuple[object, ...], list[ir.Node]] = {}
    for node in list(graph):
        if node.graph is not graph:  # it went with one that only it was read by
            continue
        if node.op_type in RANDOM or node.op_type == "Dropout" or node.domain not in _KNOWN:
            continue
        if any(output.is_graph_output() for output in node.outputs) or traversal.subgraphs(node):
            continue
        key = (node.op_type, node.domain, node.overload, node.inputs, _present(node))
        some = alike.setdefault(key, [])
        kept = next((it for it in some if it.graph is graph and _same_attributes(it, node)), None)
        if kept is None:
            some.append(node)
            continue
        both = dict.fromkeys([*names.original_names(kept), *names.original_names(node)])
        if rewriter.attempt(_EQUAL_NODES, [kept, node]):
            kept.metadata_props[names.ORIGINAL_NAMES] = json.dumps(list(both))


def _keep_first(kept: ir.Node, node: ir.Node) -> Replacement:
    """Readers of the second of two equal nodes read the first."""
    pairs = zip(node.outputs, kept.outputs, strict=True)
    return Replacement({one: other for one, other in pairs if one.name}, [kept, node])


_EQUAL_NODES = Rule("equal nodes", (frozenset(),), _keep_first, shared=True)


def _same_attributes(one: ir.Node, two: ir.Node) -> bool:
    return _attributes(one) == _attributes(two)


def _attributes(node: ir.Node) -> list[tuple[str, bytes]]:
    return sorted(
        (key, ir.serde.serialize_attribute(item).SerializeToString()) for key, item in node.attributes.items()
    )


def _present(node: ir.Node) -> tuple[bool, ...]:
    return tuple(bool(output.name) for output in node.outputs)
