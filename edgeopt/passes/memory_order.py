"""Order the nodes so that the peak memory of the activations is lowest.

The order is that of ``graph/memory.py``: proved optimal on small graphs, a beam search's best on large ones,
and never worse than the order as it was. A runtime that runs a file's operators one after another, as
LiteRT's interpreter does, needs that much less memory. onnxruntime visits the graph depth first whatever the
file says, unless a session asks for ``ExecutionOrder.PRIORITY_BASED``, so the pass leaves its files alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgeopt.errors import ModelError
from edgeopt.graph.change import Change, Rewrite, Skipped
from edgeopt.graph.memory import PeakMemory, peak_activation
from edgeopt.graph.names import name_nodes
from edgeopt.graph.region import read_by
from edgeopt.passes.base import Context, Facet, Pass, Stage
from edgeopt.units import format_size

RULE = "order of the lowest peak memory"


@dataclass(frozen=True)
class MemoryOrder(Pass):
    """Order the nodes so that the peak memory of the activations is lowest."""

    name: ClassVar[str] = "memory-order"
    stage: ClassVar[Stage] = "schedule"

    @property
    def reads(self) -> frozenset[Facet]:
        """The rules, which say whether the runtime follows the file's order."""
        return frozenset({"rules"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Edits the model in place."""
        if context.rules is not None and context.rules.order != "file":
            return Change(summary="none", skipped=[Skipped(RULE, "", "the runtime orders nodes by itself")])
        name_nodes(model)
        try:
            peak = peak_activation(model)
        except ModelError as failure:
            return Change(summary="none", skipped=[Skipped(RULE, "", failure.message)])
        lowest = "lowest" if peak.optimal else "lowest found"
        if peak.bytes >= peak.given:
            return _left(peak, f"the {lowest} peak is {format_size(peak.given)}, which the order has already")
        if not context.allow(RULE, peak.at):
            return Change(summary="none", details=_details(peak, peak.given))
        before = list(model.graph)
        _arrange(model.graph, ordered(model.graph, peak.order))
        reached = peak_activation(model).given
        if reached >= peak.given:  # what the search leaves out, such as quantizers, stands in the way
            _arrange(model.graph, before)
            return _left(peak, f"the order found needs {format_size(reached)}, no less than before")
        return Change(
            summary=f"peak of activations {format_size(peak.given)} -> {format_size(reached)}",
            rewrites=[Rewrite(RULE, peak.at)],
            details=_details(peak, reached),
        )


def ordered(graph: ir.Graph, names: Sequence[str]) -> list[ir.Node]:
    """All nodes of a graph in an order that keeps that of the nodes named; the others come when needed.

    Args:
        graph: The graph; its nodes have unique names.
        names: Nodes in an order in which they can run.
    """
    known = {node.name: node for node in graph}
    done: dict[ir.Node, None] = {}
    for first in [*(known[name] for name in names if name in known), *graph]:
        stack = [(first, False)]
        while stack:
            node, ready = stack.pop()
            if node in done:
                continue
            if ready:
                done[node] = None
                continue
            stack.append((node, True))
            makers = [value.producer() for value in read_by(node)]
            stack.extend(
                (maker, False) for maker in reversed(makers) if maker is not None and maker.graph is graph
            )
    return list(done)


def _arrange(graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    graph.remove(list(nodes))
    graph.extend(nodes)


def _left(peak: PeakMemory, reason: str) -> Change:
    return Change(summary="none", details=_details(peak, peak.given), skipped=[Skipped(RULE, "", reason)])


def _details(peak: PeakMemory, reached: int) -> dict[str, object]:
    return {"before": peak.given, "after": reached, "optimal": peak.optimal, "at": peak.at}
