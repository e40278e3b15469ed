"""Regions of a graph that only move channels: which channel of what enters becomes which of what leaves.

Moves are Concat, Split, Slice and Gather along the axis of channels, and the channel shuffle, which is
spelled as a Reshape to groups, a Transpose of groups and members and a Reshape back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgeopt.graph.layout import shape_of
from edgeopt.targets.tflite.steps import attribute, only_reader, plain

Channel = tuple[ir.Value, int]
"""A channel of a value that enters a region."""

CALL, ROW, FOUR, TORN = 2000, 40, 1, 12
"""Instructions of an operator, of a pixel's run of channels, of four floats in it, and of a shuffled float
(counted on x86-64 by callgrind, and rounded)."""


@dataclass(eq=False)
class Region:
    """Moves of channels that are connected.

    Attributes:
        moves: The nodes, in the order of the graph.
        origins: For every value made in it, the channels that it consists of.
        cost: About how many instructions moving as the graph says takes.
        shuffles: How many of the moves tear neighbours apart.
    """

    moves: list[ir.Node] = field(default_factory=list)
    origins: dict[ir.Value, list[Channel]] = field(default_factory=dict)
    cost: int = 0
    shuffles: int = 0

    def take(self, other: Region) -> None:
        """Joins another region to this one."""
        self.moves += other.moves
        self.origins |= other.origins
        self.cost += other.cost
        self.shuffles += other.shuffles


def copying(value: ir.Value, channels: int | None = None) -> int:
    """About how many instructions it takes to copy a value, or only so many of its channels in a row."""
    shape = shape_of(value)
    pixels = math.prod(shape) // max(shape[1], 1)
    return pixels * (ROW + FOUR * (shape[1] if channels is None else channels) // 4)


def regions(graph: ir.Graph) -> list[Region]:
    """Finds what moves channels, each connected part of it as a region."""
    found: dict[ir.Value, Region] = {}
    for node in graph:
        moved = _moved(node)
        if moved is None:
            continue
        nodes, inputs, outputs = moved
        region = Region(list(nodes))
        for source in inputs:
            if source in found and found[source] is not region:
                region, other = found[source], region
                region.take(other)
                for value in other.origins:
                    found[value] = region
        origin: dict[ir.Value, list[Channel]] = {
            source: region.origins.get(source, [(source, index) for index in range(shape_of(source)[1])])
            for source in inputs
        }
        for value, channels in outputs.items():
            region.origins[value] = [origin[source][index] for source, index in channels]
            found[value] = region
        torn = node.op_type in ("Reshape", "Gather")
        region.shuffles += torn
        parts = inputs if node.op_type == "Concat" else list(outputs)
        region.cost += CALL + sum(torn * TORN * math.prod(shape_of(part)) + copying(part) for part in parts)
    places = {node: place for place, node in enumerate(graph)}
    distinct = list({id(region): region for region in found.values()}.values())
    for region in distinct:
        region.moves.sort(key=places.__getitem__)
        made = [output for node in region.moves for output in node.outputs if output in region.origins]
        region.origins = {value: region.origins[value] for value in made}
    return distinct


def _moved(node: ir.Node) -> tuple[list[ir.Node], list[ir.Value], dict[ir.Value, list[Channel]]] | None:
    """The nodes of a move that ends in a node, what they read, and what each output consists of."""
    first = node.inputs[0] if node.inputs else None
    if first is None or len(shape_of(node.outputs[0])) < 3 or node.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    if node.op_type == "Concat" and attribute(node, "axis") in (1, 1 - len(shape_of(first))):
        inputs = [value for value in node.inputs if value is not None]
        if any(plain(value) is not None for value in inputs):
            return None
        channels = [(value, index) for value in inputs for index in range(shape_of(value)[1])]
        return [node], inputs, {node.outputs[0]: channels}
    if node.op_type == "Split" and attribute(node, "axis", 0) in (1, 1 - len(shape_of(first))):
        ends = np.cumsum([shape_of(output)[1] for output in node.outputs])
        parts = np.split(np.arange(ends[-1]), ends[:-1])
        made = {
            output: [(first, int(index)) for index in part]
            for output, part in zip(node.outputs, parts, strict=True)
        }
        return [node], [first], made
    picked = _slice(node) if node.op_type == "Slice" else _gather(node) if node.op_type == "Gather" else None
    nodes = [node]
    if picked is None and node.op_type == "Reshape":
        shuffle = _shuffle(node)
        if shuffle is None:
            return None
        nodes, first, picked = shuffle
    if picked is None:
        return None
    return nodes, [first], {node.outputs[0]: [(first, int(index)) for index in picked]}


def _slice(node: ir.Node) -> np.ndarray | None:
    arrays = [plain(value) for value in node.inputs[1:]]
    if len(arrays) < 3 or any(array is None or array.size != 1 for array in arrays):
        return None
    start, end, axis, *step = (int(array.reshape(())) for array in arrays if array is not None)
    shape = shape_of(node.inputs[0])  # type: ignore[arg-type]
    if axis % len(shape) != 1:
        return None
    picked: np.ndarray = np.arange(shape[1])[slice(start, end, step[0] if step else 1)]
    return picked


def _gather(node: ir.Node) -> np.ndarray | None:
    source, indices = node.inputs[0], plain(node.inputs[1])
    if source is None or indices is None or indices.ndim != 1 or attribute(node, "axis", 0) != 1:
        return None
    picked: np.ndarray = np.arange(shape_of(source)[1])[indices]
    return picked


def _shuffle(node: ir.Node) -> tuple[list[ir.Node], ir.Value, np.ndarray] | None:
    """Reshape to groups, Transpose of groups and members, Reshape back."""
    middle = node.inputs[0].producer() if node.inputs[0] is not None else None
    if middle is None or middle.op_type != "Transpose" or only_reader(middle.outputs[0]) is not node:
        return None
    first = middle.inputs[0].producer() if middle.inputs[0] is not None else None
    if first is None or first.op_type != "Reshape" or only_reader(first.outputs[0]) is not middle:
        return None
    source = first.inputs[0]
    if source is None:
        return None
    shape, grouped = shape_of(source), shape_of(first.outputs[0])
    swapped = [0, 2, 1, *range(3, len(grouped))]
    if len(shape) < 3 or shape_of(node.outputs[0]) != shape or attribute(middle, "perm") != swapped:
        return None
    if (grouped[0], *grouped[3:]) != (shape[0], *shape[2:]):
        return None
    order = np.arange(shape[1]).reshape(grouped[1], grouped[2]).T.reshape(-1)
    return [first, middle, node], source, order
