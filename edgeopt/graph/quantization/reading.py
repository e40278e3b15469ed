"""Collecting and removing the quantization that a model holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeopt.graph.names import name_nodes
from edgeopt.graph.quantization.naming import Names, add_initializer, drop_initializer
from edgeopt.graph.quantization.parameters import QuantParams, Site, dequantize_array


@dataclass(slots=True)
class _Link:
    """One quantization of a value: its parameters, its nodes, and where its result is read."""

    params: QuantParams
    nodes: list[ir.Node]
    results: list[ir.Value]


def read(model: ir.Model) -> dict[Site, list[QuantParams]]:
    """Collects every quantized value of the main graph, in topological order of the values' readers.

    A QuantizeLinear whose parameters are computed in the graph, or whose integers go anywhere but to
    DequantizeLinear with the same parameters, is an operator like any other and not reported. Nodes
    without a name of their own get one.
    """
    name_nodes(model)
    found: dict[Site, list[QuantParams]] = {}
    for value, links in _heads(model.graph):
        leaves: list[tuple[tuple[tuple[str, int], ...], list[QuantParams]]] = []
        _collect(model.graph, links, [], leaves)
        leaves = _merged(leaves)
        direct = _readers(model.graph, value, links)
        whole = len(leaves) == 1 and not direct
        for readers, chain in leaves:
            found[Site(_stripped_name(model.graph, value, links), None if whole else readers)] = chain
    return found


def strip(model: ir.Model) -> None:
    """Removes all quantization from the main graph, in place; what it leaves computes in float.

    Integer initializers become float ones of the same name. Who reads the integers as such, as a Gather of
    rows that are dequantized later, still does, under another name.
    """
    graph, names = model.graph, Names(model)
    for value, links in list(_heads(graph)):
        name = _stripped_name(graph, value, links)
        folded = value.is_initializer() and value.dtype is not None and value.dtype.is_integer()
        source = _float_initializer(graph, value, links[0].params, names) if folded else value
        results, nodes = _flatten(links)
        for result in results:
            _replace(graph, result, source, set(nodes))
        if source.name != name:
            for result in results:  # the name passes from the dequantized value to this one
                if result.name == name:
                    result.name = f"{name}_dequantized"
            source.name = name
        constants = [item for node in nodes for item in node.inputs if item is not None]
        graph.remove(nodes, safe=True)
        for constant in constants:
            drop_initializer(graph, constant)


def _heads(graph: ir.Graph) -> Iterable[tuple[ir.Value, list[_Link]]]:
    """Yields each quantized value with its links, leaving out the inner ones of chains."""
    inner: set[ir.Value] = set()
    links: dict[ir.Value, list[_Link]] = {}
    for node in graph:
        if node.op_type == "DequantizeLinear" and node.domain in ("", "ai.onnx"):
            value = node.inputs[0]
            if value is None or value.const_value is None or not value.is_initializer():
                continue
            known = links.setdefault(value, [])
            if (params := _params(node, value)) is not None and all(link.params == params for link in known):
                known.append(_Link(params, [node], [node.outputs[0]]))
                inner.add(node.outputs[0])  # which may be quantized once more
            continue
        if (link := _link(node)) is None:
            continue
        value = node.inputs[0]
        assert value is not None
        links.setdefault(value, []).append(link)
        inner.update(link.results)
    yield from ((value, found) for value, found in links.items() if found and value not in inner)


def _link(node: ir.Node) -> _Link | None:
    """Reads the pair or dynamic quantization that starts at a node."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("QuantizeLinear", "DynamicQuantizeLinear"):
        return None
    integers = node.outputs[0]
    readers = [use.node for use in integers.uses()]
    if not readers or integers.is_graph_output() or node.inputs[0] is None:
        return None
    if any(reader.op_type != "DequantizeLinear" or reader.inputs[0] is not integers for reader in readers):
        return None
    if node.op_type == "DynamicQuantizeLinear":
        if any(tuple(reader.inputs[1:3]) != tuple(node.outputs[1:3]) for reader in readers):
            return None
        if any(use.node not in readers for output in node.outputs[1:3] for use in output.uses()):
            return None
        params: QuantParams | None = QuantParams(ir.DataType.UINT8, None)
    else:
        params = _params(node, node.inputs[0])
        if any(_params(reader, integers, params.dtype if params else None) != params for reader in readers):
            return None
    if params is None:
        return None
    return _Link(params, [node, *readers], [reader.outputs[0] for reader in readers])


def _params(node: ir.Node, value: ir.Value, dtype: ir.DataType | None = None) -> QuantParams | None:
    """Reads the parameters of QuantizeLinear or DequantizeLinear; ``None`` where they are computed."""
    scale = node.inputs[1].const_value if node.inputs[1] is not None else None
    if scale is None:
        return None
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is not None and zero.const_value is None:
        return None
    if zero is not None and zero.const_value is not None:
        dtype = zero.const_value.dtype
    elif node.op_type == "DequantizeLinear":
        dtype = value.dtype or dtype
    else:
        kind = node.attributes.get_int("output_dtype", 0) or 0
        dtype = ir.DataType(kind) if kind else ir.DataType.UINT8
    if dtype is None or not dtype.is_integer():
        return None
    scales = scale.numpy().astype(np.float32)
    offsets = None if zero is None or zero.const_value is None else zero.const_value.numpy()
    if offsets is not None and not np.any(offsets.astype(np.int64)):
        offsets = None
    block = node.attributes.get_int("block_size", 0) or 0
    rank = None if value.shape is None else len(value.shape)
    if scales.size == 1 and not block and (scales.ndim == 0 or rank != 1):
        return QuantParams(dtype, scales.reshape(()), None if offsets is None else offsets.reshape(()))
    if scales.ndim == 0:
        return QuantParams(dtype, scales, offsets)
    axis = node.attributes.get_int("axis", 1)
    if axis is None:
        axis = 1
    if axis < 0 and rank is not None:
        axis += rank
    return QuantParams(dtype, scales, offsets, axis, block)


def _collect(
    graph: ir.Graph,
    links: Sequence[_Link],
    before: list[QuantParams],
    leaves: list[tuple[tuple[tuple[str, int], ...], list[QuantParams]]],
) -> None:
    for link in links:
        chain = [*before, link.params]
        following = _following(link)
        readers = [reader for result in link.results for reader in _readers(graph, result, following)]
        if readers:
            leaves.append((tuple(sorted(readers)), chain))
        _collect(graph, following, chain, leaves)


def _merged(
    leaves: Sequence[tuple[tuple[tuple[str, int], ...], list[QuantParams]]],
) -> list[tuple[tuple[tuple[str, int], ...], list[QuantParams]]]:
    """Joins leaves with equal chains, as several DequantizeLinear on one value make them."""
    merged: list[tuple[tuple[tuple[str, int], ...], list[QuantParams]]] = []
    for readers, chain in leaves:
        same = next((index for index, (_, other) in enumerate(merged) if other == chain), None)
        if same is None:
            merged.append((readers, chain))
        else:
            merged[same] = (tuple(sorted({*merged[same][0], *readers})), chain)
    return merged


def _following(link: _Link) -> list[_Link]:
    """Returns the links that requantize a link's results, one per QuantizeLinear."""
    return [
        inner
        for result in link.results
        for use in result.uses()
        if use.idx == 0 and (inner := _link(use.node)) is not None
    ]


def _flatten(links: Sequence[_Link]) -> tuple[list[ir.Value], list[ir.Node]]:
    results: list[ir.Value] = []
    nodes: list[ir.Node] = []
    for link in links:
        deeper = _flatten(_following(link))
        results += link.results + deeper[0]
        nodes += link.nodes + deeper[1]
    return results, nodes


def _readers(graph: ir.Graph, value: ir.Value, links: Sequence[_Link]) -> list[tuple[str, int]]:
    """Lists who reads a value, beside the links on it."""
    own = {node for link in links for node in link.nodes}
    readers = [(use.node.name or "", use.idx) for use in value.uses() if use.node not in own]
    return readers + [("", index) for index, output in enumerate(graph.outputs) if output is value]


def _stripped_name(graph: ir.Graph, value: ir.Value, links: Sequence[_Link]) -> str:
    """Returns the name that a value has once its quantization is gone.

    A graph's output keeps its name, so a value whose dequantized form is one takes that name over.
    """
    if not (value.is_graph_input() or value.is_graph_output() or value.is_initializer()):
        results = set(_flatten(links)[0])
        for output in graph.outputs:
            if output in results:
                return output.name or ""
    return value.name or ""


def _replace(graph: ir.Graph, old: ir.Value, new: ir.Value, own: set[ir.Node]) -> None:
    """Lets every reader of one value read another; a graph's output keeps its name.

    Where the other value is an input, an initializer or an output already, an Identity carries it.
    """
    for use in tuple(old.uses()):
        if use.node not in own:
            use.node.replace_input_with(use.idx, new)
    for index, output in enumerate(graph.outputs):
        if output is not old:
            continue
        if new.is_graph_input() or new.is_graph_output() or new.is_initializer():
            name, old.name = old.name, f"{old.name}_dequantized"
            identity = ir.Node("", "Identity", [new], num_outputs=1, name=f"{name}_identity")
            identity.outputs[0].name = name
            identity.outputs[0].type, identity.outputs[0].shape = old.type, old.shape
            graph.append(identity)
            graph.outputs[index] = identity.outputs[0]
        else:
            graph.outputs[index] = new


def _float_initializer(graph: ir.Graph, value: ir.Value, params: QuantParams, names: Names) -> ir.Value:
    """Puts a float initializer of the same name in the place of an integer one, which gets another."""
    tensor = value.const_value
    assert tensor is not None
    name = value.name or ""
    lazy = ir.LazyTensor(
        lambda: ir.tensor(dequantize_array(tensor.numpy(), params), name=name),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape(tensor.shape.numpy()),
        name=name,
    )
    graph.initializers.pop(name)
    value.name = names.value(f"{name}_quantized")
    graph.register_initializer(value)
    return add_initializer(graph, name, lazy)
