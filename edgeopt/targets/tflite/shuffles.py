"""Channel shuffles that move no data: weights are reordered instead.

A network of ShuffleNet's kind joins the channels of two branches, shuffles them and splits them again, so
that half of them go through the next block and the other half pass it by. Which channels a block gets is
what counts; in which order, its first convolution's weight decides, and the order in which they come out of
the convolution before is that one's weight's to decide. So a region of Concat, shuffle (Reshape, Transpose,
Reshape), Split, Slice and Gather along the channels becomes, for every value that leaves it, one Concat of
the pieces that it consists of: each convolution that feeds the region puts channels that leave by the same
way side by side, and each convolution that reads a value takes its weight's columns in the order that they
come in. Nothing but the order of sums changes.

It holds for float graphs; where values are quantized on their way, none of it fires.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.change import Change, Rewrite
from edgeopt.graph.layout import shape_of
from edgeopt.graph.names import carry_names, original_names
from edgeopt.targets.tflite.channels import CALL, Region, copying, regions
from edgeopt.targets.tflite.legalize import Splice
from edgeopt.targets.tflite.reordering import maker_of, rename, reorder, takers_of

WIDEST = 5
"""XNNPACK joins so many values at once; a wider CONCATENATION would cut what it runs in two."""

MOST = 4
"""XNNPACK splits into so many parts at once."""


def order_channels(model: ir.Model) -> Change:
    """Orders weights instead of shuffling channels, in place, where that moves less.

    Args:
        model: A model of static shapes.
    """
    change = Change()
    for region in regions(model.graph):
        names = dict.fromkeys(name for node in region.moves for name in original_names(node))
        if region.shuffles and Rerouted(model.graph, region).apply():
            change.rewrites.append(Rewrite("order-channels", next(iter(names), ""), tuple(names)))
    return change


class Rerouted:
    """A region said by pieces of what enters it."""

    def __init__(self, graph: ir.Graph, region: Region) -> None:
        self.graph, self.region = graph, region
        self.inside = set(region.moves)
        self.splices: dict[ir.Node, Splice] = {}
        self.made: dict[tuple[ir.Value, int, int], ir.Value] = {}
        self.leaving = [
            value
            for value in region.origins
            if value.is_graph_output() or any(use.node not in self.inside for use in value.uses())
        ]
        self.takers = {value: takers_of(value, self.inside) for value in self.leaving}
        entering = dict.fromkeys(source for v in self.leaving for source, _ in region.origins[v])
        self.makers = {source: self._free_maker(source) for source in entering}
        self.order = {source: self._order(source) for source in entering}
        self.pieces = {value: self._pieces(value) for value in self.leaving}

    def _free_maker(self, source: ir.Value) -> ir.Node | None:
        others = any(use.node not in self.inside for use in source.uses())
        return None if others or source.is_graph_output() else maker_of(source)

    def _order(self, source: ir.Value) -> list[int]:
        """A source's channels in their new order: those that leave by the same ways side by side, as they
        are wanted where the order counts."""
        count = shape_of(source)[1]
        if self.makers[source] is None:
            return list(range(count))
        ways: list[tuple[list[int], list[int]]] = [([], []) for _ in range(count)]
        for way, value in enumerate(self.leaving):
            for place, (origin, index) in enumerate(self.region.origins[value]):
                if origin is source:
                    ways[index][0].append(way)
                    if self.takers[value] is None:
                        ways[index][1].append(place)
        return sorted(range(count), key=ways.__getitem__)

    def _pieces(self, value: ir.Value) -> list[tuple[ir.Value, int, int]]:
        """Sources with the first and last position (exclusive) of the runs that a value consists of."""
        places = {
            (source, index): place
            for source, order in self.order.items()
            for place, index in enumerate(order)
        }
        rank = {source: number for number, source in enumerate(self.order)}
        wanted = [(source, places[source, index]) for source, index in self.region.origins[value]]
        if self.takers[value] is not None:
            wanted.sort(key=lambda item: (rank[item[0]], item[1]))
        runs: list[tuple[ir.Value, int, int]] = []
        for source, place in wanted:
            if runs and runs[-1][0] is source and runs[-1][2] == place:
                runs[-1] = (source, runs[-1][1], place + 1)
            else:
                runs.append((source, place, place + 1))
        return runs

    def _cost(self) -> int:
        """About how many instructions moving in the new way takes."""
        total = 0
        for value, runs in self.pieces.items():
            cut = [last - first for source, first, last in runs if last - first < shape_of(source)[1]]
            total += sum(CALL + copying(value, length) for length in cut)
            if len(runs) > 1:
                joined = CALL + sum(copying(value, last - first) for _, first, last in runs)
                # The first of many are joined twice; they are the oldest, of which the least is left.
                total += joined * (1 + (len(runs) > WIDEST))
        return total

    def apply(self) -> bool:
        """Rewrites the graph, unless a channel is wanted twice or nothing is won."""
        origins = [self.region.origins[value] for value in self.leaving]
        if any(len(set(channels)) < len(channels) for channels in origins):
            return False
        if not self.leaving or self._cost() >= self.region.cost:
            return False
        for source, conv in self.makers.items():
            if conv is not None and self.order[source] != sorted(self.order[source]):
                reorder(self._splice(conv), conv, "rows", self.order[source])
                rename(conv.outputs[0], source)
        for source in self.order:
            self._cut(source)
        for value in self.leaving:
            self._lead(value)
        for node in reversed(self.region.moves):
            if not any(list(output.uses()) or output.is_graph_output() for output in node.outputs):
                self.graph.remove(node, safe=True)
        return True

    def _splice(self, node: ir.Node) -> Splice:
        return self.splices.setdefault(node, Splice(self.graph, node))

    def _cut(self, source: ir.Value) -> None:
        """Cuts a source into the pieces that are wanted, where it comes into being."""
        shape = shape_of(source)
        wanted = sorted({run[1:] for runs in self.pieces.values() for run in runs if run[0] is source})
        anchor = source.producer()
        splice = self._splice(anchor if anchor is not None else self.region.moves[0])
        before = len(splice.made)
        sizes = [last - first for first, last in wanted]
        even = len(set(sizes)) == 1 and len(sizes) <= MOST
        whole = even and [0, *(last for _, last in wanted)] == [
            *(first for first, _ in wanted),
            shape[1],
        ]
        if sizes == [shape[1]]:
            self.made[source, 0, shape[1]] = source
            return
        if whole:
            splice.op("Split", source, np.array(sizes, np.int64), outputs=len(sizes), axis=1)
            parts = list(splice.made[-1].outputs)
        else:
            bounds = [[np.array([item], np.int64) for item in (first, last, 1)] for first, last in wanted]
            parts = [splice.op("Slice", source, *items) for items in bounds]
        for (first, last), part in zip(wanted, parts, strict=True):
            part.shape, part.type = ir.Shape((shape[0], last - first, *shape[2:])), source.type
            self.made[source, first, last] = part
        new = splice.made[before:]
        if anchor is not None:
            self.graph.insert_after(anchor, new)
        else:
            self.graph.insert_before(self.region.moves[0], new)

    def _lead(self, value: ir.Value) -> None:
        """Lets a value's readers outside of the region read its pieces."""
        anchor = value.producer()
        if anchor is None:
            return
        parts = [self.made[run] for run in self.pieces[value]]
        new = parts[0]
        splice, moves = self._splice(anchor), self._moves_of(value)
        while len(parts) > 1:
            several = len(parts) if len(parts) <= WIDEST else min(len(parts) - WIDEST + 1, WIDEST)
            shape = list(shape_of(value))
            shape[1] = sum(shape_of(part)[1] for part in parts[:several])
            new = splice.op("Concat", *parts[:several], shape=shape, axis=1)
            parts = [new, *parts[several:]]
            self._place(splice, anchor, moves)
        if len(self.pieces[value]) == 1 and value.is_graph_output():
            new = splice.op("Identity", new, shape=shape_of(value))
            self._place(splice, anchor, moves)
        self._order_takers(value)
        for use in list(value.uses()):
            if use.node not in self.inside:
                use.node.replace_input_with(use.idx, new)
        if value.is_graph_output():
            name = value.name
            value.name = f"{name}/before"
            value.replace_all_uses_with(new, replace_graph_outputs=True)
            new.name = name

    def _place(self, splice: Splice, anchor: ir.Node, moves: list[ir.Node]) -> None:
        made = splice.made[-1]
        made.outputs[0].dtype = ir.DataType.FLOAT
        carry_names(moves, made)
        self.graph.insert_before(anchor, made)

    def _order_takers(self, value: ir.Value) -> None:
        """Reorders the weights that a value's new order concerns."""
        given = {channel: place for place, channel in enumerate(self.region.origins[value])}
        new = [
            given[source, self.order[source][place]]
            for source, first, last in self.pieces[value]
            for place in range(first, last)
        ]
        if new == sorted(new):
            return
        for node, side in self.takers[value] or ():
            if side != "nothing":
                reorder(self._splice(node), node, side, new)
            if side != "columns":
                rename(node.outputs[0], node.outputs[0])

    def _moves_of(self, value: ir.Value) -> list[ir.Node]:
        """The moves that a value comes by, in the order of the graph."""
        stack, seen = [value.producer()], set[ir.Node]()
        while stack:
            node = stack.pop()
            if node is not None and node not in seen and (node in self.inside or not seen):
                seen.add(node)
                stack.extend(item.producer() for item in node.inputs if item is not None)
        return [node for node in self.region.moves if node in seen]
