"""Computing constants ahead of time, where the file does not grow by it, or hardly.

Nodes that depend on constants alone and compute from each other are folded together. Where the results
take more bytes than what they replace, the cheapest such parts are folded all the same while the model
grows by no more than a hundredth of its weights; of the others the worst nodes are taken back.
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import onnx_ir as ir

from edgeopt.errors import RuntimeFailure
from edgeopt.graph import region, shapes, traversal
from edgeopt.graph.change import Change, Rewrite, Skipped
from edgeopt.graph.names import original_names, unique
from edgeopt.graph.rewriting import tensor_of
from edgeopt.graph.splice import must_stay_open
from edgeopt.passes.base import Context

RULE = "constant folding"
ALLOWANCE = 0.01
"""How much of its weights a model may grow by, for results larger than what they are made from."""

SMALLEST_ALLOWANCE = 4096
"""As much, in bytes, where the weights are small."""

LARGEST = 2**26
"""Results above this many bytes are never computed ahead."""

RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
"""Operators that give another result each time."""

_KEPT = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Constant", "Dropout"}


def fold(model: ir.Model, context: Context) -> Change:
    """Folds the constants of the main graph and of every subgraph, in place."""
    change = Change()
    inner = traversal.graphs(model)
    taken = {name for graph in inner for name in graph.initializers}
    for graph in inner:
        _fold_graph(model, graph, context, change, taken)
    return change


def _fold_graph(model: ir.Model, graph: ir.Graph, context: Context, change: Change, taken: set[str]) -> None:
    nodes = _foldable(graph)
    if not nodes:
        return
    allowance = max(SMALLEST_ALLOWANCE, int(_weights(model) * ALLOWANCE))
    taken_back: dict[ir.Node, None] = {}
    for part in sorted(_parts(nodes), key=lambda part: sum(_cost(part).values()) / len(part)):
        allowance = _take_back(part, allowance, taken_back)
    for heavy in taken_back:
        del nodes[heavy]
        change.skipped.append(Skipped(RULE, _site(heavy), "its result is larger than what it is made from"))
    frontier = [
        output
        for node in nodes
        for output in node.outputs
        if any(use.node not in nodes for use in output.uses()) and not output.is_graph_output()
    ]
    frontier = [value for value in frontier if context.allow(RULE, _site_of(value))]
    numbers = _evaluate(frontier, list(nodes), model)
    for value in frontier:
        node = value.producer()
        assert node is not None
        if must_stay_open(value, len(value.shape or ())):
            change.skipped.append(Skipped(RULE, _site(node), "a Range reads it, or what it decides"))
            continue
        if value not in numbers:
            change.skipped.append(Skipped(RULE, _site(node), "onnxruntime cannot compute it"))
            continue
        names = [name for item in region.ordered([value], list(nodes)) for name in original_names(item)]
        name = unique(f"{value.name}", taken)
        taken.add(name)
        _replace(graph, value, numbers[value], name)
        change.rewrites.append(Rewrite(RULE, _site(node), tuple(dict.fromkeys(names)), 0.0))
    for node in reversed(nodes):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)


def _foldable(graph: ir.Graph) -> dict[ir.Node, None]:
    """The nodes that depend on constants alone and give the same result each time."""
    found: dict[ir.Node, None] = {}
    made: set[ir.Value] = set()
    for node in graph:
        if node.domain not in ("", "ai.onnx") or node.op_type in RANDOM | _KEPT:
            continue
        if traversal.subgraphs(node):
            continue
        inputs = [value for value in node.inputs if value is not None]
        if not all(value in made or tensor_of(value) is not None for value in inputs):
            continue
        if any(output.dtype is None or not region.is_plain(output.dtype) for output in node.outputs):
            continue
        sizes = [_bytes(output) for output in node.outputs]
        if any(size is None or size > LARGEST for size in sizes):
            continue
        found[node] = None
        made.update(node.outputs)
    return found


def _parts(nodes: dict[ir.Node, None]) -> list[dict[ir.Node, None]]:
    """Divides the nodes into those that compute from each other, in order."""
    part_of: dict[ir.Node, dict[ir.Node, None]] = {}
    for node in nodes:
        part = {node: None}
        for value in node.inputs:
            maker = None if value is None else value.producer()
            if maker is not None and maker in part_of and (other := part_of[maker]) is not part:
                large, small = (other, part) if len(other) >= len(part) else (part, other)
                large.update(small)
                part_of.update(dict.fromkeys(small, large))
                part = large
        part_of[node] = part
    order = {node: number for number, node in enumerate(nodes)}
    distinct = {id(part): part for part in part_of.values()}.values()
    return [dict.fromkeys(sorted(part, key=order.__getitem__)) for part in distinct]


def _take_back(part: dict[ir.Node, None], allowance: int, taken_back: dict[ir.Node, None]) -> int:
    """Takes back the worst nodes until the rest fits into the allowance; returns what is left of that."""
    while part:
        cost = _cost(part)
        excess = sum(cost.values()) - _gain(part)
        if excess <= allowance:
            return allowance - max(0, excess)
        worst = max(cost, key=lambda node: cost[node] - sum(_bytes(v) or 0 for v in node.inputs if v))
        del part[worst]
        taken_back[worst] = None
    return allowance


def _gain(nodes: dict[ir.Node, None]) -> int:
    """The bytes of a file that go with the nodes and with the constants that only they read."""
    gain = sum(_node_bytes(node) for node in nodes)
    for value in dict.fromkeys(value for node in nodes for value in node.inputs if value is not None):
        tensor = tensor_of(value)
        if tensor is not None and value.producer() is None and _only_read_by(value, nodes):
            gain += tensor.nbytes
    return gain


def _cost(nodes: dict[ir.Node, None]) -> dict[ir.Node, int]:
    """The bytes of the results that others read, by node."""
    outside = {node: [out for out in node.outputs if not _only_read_by(out, nodes)] for node in nodes}
    return {node: sum(_bytes(out) or 0 for out in outputs) for node, outputs in outside.items() if outputs}


def _node_bytes(node: ir.Node) -> int:
    """What a node takes in a file: its operator and names, each with a tag and a length."""
    names = [node.op_type, node.name, *(value.name for value in (*node.inputs, *node.outputs) if value)]
    return 4 + sum(2 + len(name or "") for name in names) + 8 * len(node.attributes)


def _weights(model: ir.Model) -> int:
    return sum(
        value.const_value.nbytes
        for graph in traversal.graphs(model)
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def _only_read_by(value: ir.Value, nodes: Container[ir.Node]) -> bool:
    return not value.is_graph_output() and all(use.node in nodes for use in value.uses())


def _bytes(value: ir.Value) -> int | None:
    tensor = tensor_of(value)
    if tensor is not None:
        return tensor.nbytes
    shape = shapes.static_dims(value)
    if shape is None or value.dtype is None:
        return None
    return int(np.prod(shape, dtype=np.int64)) * value.dtype.bitwidth // 8


def _evaluate(values: list[ir.Value], nodes: list[ir.Node], model: ir.Model) -> dict[ir.Value, np.ndarray]:
    """Computes all values at once, or one by one where onnxruntime fails on some."""
    if not values:
        return {}
    try:
        return region.evaluate(values, nodes, model)
    except RuntimeFailure:
        if len(values) == 1:
            return {}
    half = len(values) // 2
    return _evaluate(values[:half], nodes, model) | _evaluate(values[half:], nodes, model)


def _replace(graph: ir.Graph, value: ir.Value, numbers: np.ndarray, name: str) -> None:
    tensor = ir.Tensor(np.asarray(numbers, order="C"), name=name)
    old_name = value.name
    value.name = f"{old_name}.computed"
    folded = ir.Value(
        name=name, shape=ir.Shape(numbers.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(folded)
    value.replace_all_uses_with(folded)


def _site(node: ir.Node) -> str:
    return original_names(node)[-1] if original_names(node) else node.op_type


def _site_of(value: ir.Value) -> str:
    node = value.producer()
    return _site(node) if node is not None else value.name or ""
