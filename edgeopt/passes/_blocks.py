"""The blocks of a network that are trained together: from one bottleneck to the next.

A bottleneck is a place in the graph's order where all that was computed by products so far and is still
needed is one value, quantized or not. Between two of them lies a residual block, an attention block, a
squeeze-and-excite block, or a single layer of a plain chain. Where that holds too many products, as
between the branches of a detection head, it is cut behind each product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import onnx_ir as ir

from edgeopt.graph.autograd.running import read
from edgeopt.graph.placement import is_constant

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"})

MOST_PRODUCTS = 8
"""A block with more products than this is cut behind each of them."""


@dataclass(frozen=True, slots=True)
class Block:
    """Nodes that stand next to each other in the graph's order.

    Attributes:
        nodes: The nodes that depend on the model's inputs.
        inputs: Values made before it that it reads, by name.
        outputs: Values it makes that are read behind it or are outputs of the model.
    """

    nodes: tuple[ir.Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def layers(self) -> list[ir.Node]:
        """Its products with constant weights."""
        return [node for node in self.nodes if has_weights(node)]


def has_weights(node: ir.Node) -> bool:
    """Whether a node is a product with a weight that is constant, quantized or not."""
    return node.op_type in PRODUCTS and any(_is_weight(value) for value in node.inputs[1:])


def _is_weight(value: ir.Value | None) -> bool:
    while value is not None and not is_constant(value):
        node = value.producer()
        if node is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            return False
        value = node.inputs[0]
    return value is not None


def varying(graph: ir.Graph) -> list[ir.Node]:
    """Lists the nodes that depend on the inputs of the graph, in order."""
    known = {value for value in graph.inputs if not value.is_initializer()}
    nodes = []
    for node in graph:
        if any(value in known for value in read(node)):
            known.update(node.outputs)
            nodes.append(node)
    return nodes


def find_blocks(graph: ir.Graph, most: int = MOST_PRODUCTS, least: int = 1) -> list[Block]:
    """Parts a graph into blocks, in order; every node that depends on the inputs is in one.

    Args:
        graph: The graph.
        most: Products in a block, beyond which it is cut behind each.
        least: Products in a block, below which it is joined with the next.
    """
    nodes = varying(graph)
    if not nodes:
        return []
    cuts = _cuts(graph, nodes)
    layers = [index for index, node in enumerate(nodes) if has_weights(node)]
    ends = _ends(layers, cuts, lambda live: live <= 1, len(nodes))
    fine: list[int] = []
    start = 0
    for end in ends:
        inside = [index for index in layers if start <= index < end]
        if len(inside) > most:
            fine += [item for item in _ends(inside, cuts, lambda live: True, end) if item > start]
        fine.append(end)
        start = end
    joined: list[int] = []
    start = 0
    for end in sorted(set(fine)):
        count = sum(start <= index < end for index in layers)
        if count >= least or end == len(nodes):
            joined.append(end)
            start = end
    return _made(graph, nodes, joined)


def _cuts(graph: ir.Graph, nodes: Sequence[ir.Node]) -> dict[int, int]:
    """Returns per place where the order may be cut how many values that products made are live there.

    The place is the index of the node behind it. None is between a value and its quantization.
    """
    deep: set[ir.Value] = set()
    last: dict[ir.Value, int] = {}
    for index, node in enumerate(nodes):
        if has_weights(node) or any(value in deep for value in read(node)):
            deep.update(node.outputs)
        for value in read(node):
            last[value] = index
    last.update(dict.fromkeys((value for value in graph.outputs if value in deep), len(nodes)))
    live: set[ir.Value] = set()
    cuts = {}
    for index, node in enumerate(nodes[:-1]):
        live.update(value for value in node.outputs if value in last)
        live = {value for value in live if last[value] > index}
        following = nodes[index + 1]
        torn = following.op_type == "QuantizeLinear" and following.inputs[0] in live
        half = any(_maker(value) in ("QuantizeLinear", "DynamicQuantizeLinear") for value in live)
        if not torn and not half:
            cuts[index + 1] = len({_origin(value) for value in live if value in deep})
    return cuts


def _maker(value: ir.Value) -> str:
    node = value.producer()
    return "" if node is None else node.op_type


def _origin(value: ir.Value) -> ir.Value:
    """The value that this one is the quantized form of."""
    while _maker(value) in ("DequantizeLinear", "QuantizeLinear"):
        node = value.producer()
        source = None if node is None else node.inputs[0]
        if source is None:
            break
        value = source
    return value


def _ends(layers: Sequence[int], cuts: dict[int, int], fits: Callable[[int], bool], end: int) -> list[int]:
    """Returns the last fitting cut behind each layer and before the next, and the end."""
    ends = []
    for layer, following in pairwise(layers):
        places = [place for place in range(layer + 1, following + 1) if place in cuts and fits(cuts[place])]
        if places:
            ends.append(places[-1])
    return [*ends, end]


def _made(graph: ir.Graph, nodes: Sequence[ir.Node], ends: Sequence[int]) -> list[Block]:
    blocks = []
    start = 0
    outputs = set(graph.outputs)
    for end in ends:
        part = tuple(nodes[start:end])
        made = {output for node in part for output in node.outputs}
        behind = {value for node in nodes[end:] for value in read(node)}
        varies = {output for node in nodes[:start] for output in node.outputs} | set(graph.inputs)
        reads = dict.fromkeys(value for node in part for value in read(node) if value in varies)
        leaves = [value for node in part for value in node.outputs if value in behind or value in outputs]
        blocks.append(
            Block(
                part,
                tuple(value.name or "" for value in reads),
                tuple(value.name or "" for value in leaves if value in made),
            )
        )
        start = end
    return blocks
