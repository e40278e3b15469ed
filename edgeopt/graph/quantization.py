"""Quantization parameters, and where they stand in a model.

A quantized value is followed by QuantizeLinear and DequantizeLinear, and nowhere else is it
recorded that a value is quantized. ``read`` collects the parameters of all such pairs, ``write``
inserts pairs for given parameters; ``strip`` removes every pair. ``read(write(strip(m), p)) == p``,
and ``write(strip(m), read(m))`` equals ``m`` up to the names of inserted nodes.

Three forms are known. A *pair* is QuantizeLinear and DequantizeLinear with the same constant
parameters; pairs that follow each other directly are a chain. A *dynamic* value (``scale=None``) is
followed by DynamicQuantizeLinear, which computes uint8 parameters at every call, and DequantizeLinear.
A *folded* constant is DequantizeLinear on an integer initializer, which ``prepare`` of a target leaves;
``read`` takes it like a pair on a float constant of the same name, which ``strip`` restores. int32 has
no QuantizeLinear, so ``write`` folds it.

The pairs stand in the main graph. A value that a subgraph (If, Loop, Scan) captures can be quantized
for it, but values computed inside subgraphs or functions are never read or written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeopt.errors import ModelError
from edgeopt.graph.names import name_nodes

FIRST_OPSET = 13
"""The first opset whose QuantizeLinear has an axis of channels."""


@dataclass(frozen=True, slots=True)
class Site:
    """The place of one quantized value.

    Attributes:
        value: The value's name.
        readers: The node inputs, as (node name, input index), that read the value quantized;
            ``None`` for all readers and the graph's outputs. Other readers keep the float. The
            graph's output of index i is the reader ``("", i)``.
    """

    value: str
    readers: tuple[tuple[str, int], ...] | None = None


@dataclass(frozen=True, eq=False)
class QuantParams:
    """Parameters of one quantization, q = saturate(round(x / scale) + zero_point).

    Attributes:
        dtype: The integer type.
        scale: float32: shape () per tensor, [channels] along ``axis`` per channel, and for blocks the
            value's shape with ``axis`` divided by ``block``. ``None`` is dynamic: computed per call.
        zero_point: Integers of ``dtype``, shaped as the scale; ``None`` for zero.
        axis: The axis of channels or blocks; ``None`` per tensor.
        block: The block size along ``axis``; 0 for none.
    """

    dtype: ir.DataType
    scale: np.ndarray | None
    zero_point: np.ndarray | None = None
    axis: int | None = None
    block: int = 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QuantParams):
            return NotImplemented
        return (
            (self.dtype, self.axis, self.block) == (other.dtype, other.axis, other.block)
            and _same(self.scale, other.scale)
            and _same(self.zero_point, other.zero_point)
        )


Parameters = Mapping[Site, list[QuantParams]]
"""All quantization of a model; a list of two or more is a chain of requantizations."""


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and np.array_equal(one, other)


def quantize_array(array: np.ndarray, params: QuantParams) -> np.ndarray:
    """Computes QuantizeLinear: integers of ``params.dtype``, halves rounded to even."""
    scale, zero_point = spread(params, array.shape)
    low, high = integer_range(params.dtype)
    grid = np.rint(array.astype(np.float32) / scale) + zero_point
    integers: np.ndarray = np.clip(grid, low, high).astype(params.dtype.numpy())
    return integers


def dequantize_array(integers: np.ndarray, params: QuantParams) -> np.ndarray:
    """Computes DequantizeLinear, in float32."""
    scale, zero_point = spread(params, integers.shape)
    wide = integers.astype(np.int64) if params.dtype == ir.DataType.INT32 else integers.astype(np.float32)
    values: np.ndarray = ((wide - zero_point).astype(np.float32) * scale).astype(np.float32)
    return values


def spread(params: QuantParams, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale and zero point, both shaped to broadcast with an array of ``shape``."""
    assert params.scale is not None
    zero_point = np.zeros_like(params.scale) if params.zero_point is None else params.zero_point
    scale, zero_point = params.scale.astype(np.float32), zero_point.astype(np.float32)
    if params.axis is None:
        return scale, zero_point
    axis = params.axis % len(shape)
    if params.block:
        repeated = (np.repeat(item, params.block, axis) for item in (scale, zero_point))
        index = tuple(slice(0, shape[i]) if i == axis else slice(None) for i in range(len(shape)))
        scale, zero_point = (item[index] for item in repeated)
        return scale, zero_point
    aligned = [-1 if i == axis else 1 for i in range(len(shape))]
    return scale.reshape(aligned), zero_point.reshape(aligned)


def integer_range(dtype: ir.DataType) -> tuple[int, int]:
    """Returns the smallest and largest integer of a type."""
    bits = dtype.bitwidth
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dtype.is_signed() else (0, 2**bits - 1)


# ---- reading


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

    Integer initializers become float ones of the same name.
    """
    graph = model.graph
    for value, links in list(_heads(graph)):
        name = _stripped_name(graph, value, links)
        folded = value.is_initializer() and value.dtype is not None and value.dtype.is_integer()
        source = _float_initializer(graph, value, links[0].params) if folded else value
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


def _float_initializer(graph: ir.Graph, value: ir.Value, params: QuantParams) -> ir.Value:
    """Puts a float initializer of the same name in the place of an integer one."""
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
    value.name = f"{name}_quantized"
    return add_initializer(graph, name, lazy)


# ---- writing


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
