"""Rewriting: small rules that return what to put in place, or why they do not fire.

A rule is a function of the nodes that its pattern matches, first to last along the data:

    @rule("Conv -> BatchNormalization")
    def fold(conv: ir.Node, norm: ir.Node) -> ir.Node | NoMatch: ...

It builds new nodes aside (``graph/building.py``), on the values of the graph, and returns the node or value
that takes the place of the last matched node's output, a ``Replacement`` where that is not all, ``NoMatch``
with the reason where it might have fired, or ``None`` where the pattern merely looked like it. ``rewrite``
walks the main graph and every subgraph (of If, Loop, Scan) in order, asks whether the rewrite is allowed,
proves it (``graph/proof.py``) and splices it in (``graph/splice.py``). A tensor is replaced, never written
into.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import onnx_ir as ir

from edgeopt.errors import RuntimeFailure
from edgeopt.graph import proof, shape_values, shapes
from edgeopt.graph.building import (
    another_reader,
    constant,
    initializer,
    is_new_constant,
    node,
    opset,
    sole_reader,
    tensor_of,
)
from edgeopt.graph.change import Change, NoMatch, Rewrite, Skipped
from edgeopt.graph.names import carry_names, name_nodes, original_names, site_of, unique
from edgeopt.graph.rule import Replacement, Result, Rule, by_operator, replacement, rule
from edgeopt.graph.splice import Splice, built_for, inner_value_is_read, not_spliceable, remove_dead
from edgeopt.graph.traversal import all_nodes, graphs, read_by

__all__ = [
    "NoMatch",
    "Replacement",
    "Result",
    "Rewriter",
    "Rule",
    "another_reader",
    "constant",
    "initializer",
    "name_nodes",
    "node",
    "opset",
    "original_names",
    "prepare",
    "remove_unused_initializers",
    "rewrite",
    "rule",
    "sole_reader",
    "tensor_of",
]

MAX_SWEEPS = 20
"""A sound set of rules settles in a handful of sweeps over the graph; this only bounds a bad one."""


class Surroundings(Protocol):
    """What rewriting needs of a pass's context."""

    seed: int
    verify: Literal["fast", "full", "off"]

    @property
    def log(self) -> logging.Logger:
        """Where progress is told."""
        ...

    def allow(self, rule: str, site: str) -> bool:
        """Asks whether one rewrite may be made."""
        ...


@dataclass
class Rewriter:
    """Makes rewrites in one model, each asked for, proved and recorded.

    Attributes:
        model: The model, edited in place.
        context: Whom to ask, and how to prove.
        change: What was done so far.
    """

    model: ir.Model
    context: Surroundings
    change: Change = field(default_factory=Change)
    refused: set[tuple[str, str]] = field(default_factory=set)
    skipped: dict[tuple[str, str, str], None] = field(default_factory=dict)
    taken: set[str] | None = None
    named: set[ir.Value] = field(default_factory=set)

    def sweep(self, rules: Mapping[str, Sequence[Rule]]) -> bool:
        """Tries every rule at every node once; says whether one fired."""
        changed = False
        for graph in graphs(self.model):
            for anchor in [item for item in graph if item.op_type in rules]:
                for candidate in rules.get(anchor.op_type, ()):
                    if anchor.graph is not graph:
                        break
                    for nodes in candidate.matches(anchor):
                        if self.attempt(candidate, nodes):
                            changed = True
                            break
        return changed

    def attempt(self, candidate: Rule, nodes: Sequence[ir.Node]) -> bool:
        """Tries a rule on nodes that it matches, first to last; says whether it fired."""
        anchor = nodes[-1]
        if self.refused and (candidate.name, anchor.name or "") in self.refused:
            return False
        result = candidate(*nodes)
        if result is None:
            return False
        site = site_of(anchor)
        if isinstance(result, NoMatch):
            self._skip(candidate, site, result.reason)
            return False
        new = replacement(result, nodes)
        replaced = list(dict.fromkeys(new.nodes or nodes))
        reason = "" if candidate.shared else inner_value_is_read(replaced, new)
        if reason := reason or not_spliceable(new):
            self._skip(candidate, site, reason)
            return False
        if not self.context.allow(candidate.name, site):
            self.refused.add((candidate.name, anchor.name or ""))
            return False
        built = built_for(new)
        self._name(built, replaced)
        for value in new.values.values():
            self._name_constant(value)
        for old, made in new.values.items():
            settled = old.type is not None and not shapes.unsettled([old], self.model.graph.inputs)
            if made.shape is None and settled:  # nothing more can be inferred
                made.shape, made.type = old.shape, old.type
        shapes.infer_nodes(built, self.model)
        error: float | None = None
        splice = Splice(anchor, new, built)
        if self.context.verify != "off":
            region = proof.Region(replaced, built, list(new.values.items()), self.model)
            shown = proof.prove(region, f"{candidate.name} at {site}", self.context.seed)
            if not shown.proved and not shown.refuted:
                shown = self._prove_whole(splice, shown)
            if not shown.proved:
                self._leave_out(candidate, anchor, shown)
                return False
            error = shown.error
        names = tuple(dict.fromkeys(name for item in replaced for name in original_names(item)))
        splice.make()
        remove_dead(replaced)
        _take_over_names(built, replaced)
        self.change.rewrites.append(Rewrite(candidate.name, site, names, error))
        return True

    def _name(self, built: Sequence[ir.Node], replaced: Sequence[ir.Node]) -> None:
        """Names new nodes after what they replace, and makes the names of their values unique."""
        for item in built:
            item.name = self._unique(f"{replaced[-1].name}/{item.op_type}")
            carry_names(replaced, item)
            for number, output in enumerate(item.outputs):
                output.name = self._unique(output.name or f"{item.name}:{number}")
            for value in read_by(item):
                self._name_constant(value)

    def _name_constant(self, value: ir.Value) -> None:
        if is_new_constant(value) and value not in self.named:
            self.named.add(value)
            value.name = self._unique(value.name or "constant")

    def _unique(self, name: str) -> str:
        if self.taken is None:
            self.taken = _names(self.model)
        name = unique(name, self.taken)
        self.taken.add(name)
        return name

    def _prove_whole(self, splice: Splice, local: proof.Proof) -> proof.Proof:
        """Compares the whole model without and with the rewrite, where its region cannot be run."""
        if proof.model_bytes(self.model) > proof.WHOLE_MODEL:
            return local
        before = self.model.clone()
        splice.make()
        try:
            difference = proof.compare_models(before, self.model, self.context.seed)
        except RuntimeFailure:
            return local
        finally:
            splice.undo()
        if difference.reason:
            return proof.Proof(False, reason=difference.reason, refuted=True)
        return proof.Proof(True, difference.error)

    def _skip(self, candidate: Rule, site: str, reason: str) -> None:
        self.skipped[(candidate.name, site, reason)] = None

    def _leave_out(self, candidate: Rule, anchor: ir.Node, shown: proof.Proof) -> None:
        site = site_of(anchor)
        self.refused.add((candidate.name, anchor.name or ""))
        self.change.skipped.append(Skipped(candidate.name, site, shown.reason))
        kept = f"; reproducer in {shown.reproducer}" if shown.reproducer else ""
        why = f"its proof failed: {shown.reason}" if shown.refuted else shown.reason
        self.change.notes.append(f"the rewrite {candidate.name!r} at {site!r} was left out, {why}{kept}")


def rewrite(
    model: ir.Model, rules: Sequence[Rule], context: Surroundings, *, prepared: bool = False
) -> Change:
    """Applies rules until none fires, proving every rewrite.

    Functions of the model are inlined first, so that shapes are known in them too. Where ``verify`` is
    ``full`` the whole model is compared as well, and left as it was when it differs.

    Args:
        model: The model, edited in place.
        rules: Tried in this order at every node.
        context: Whom to ask, and how to prove.
        prepared: ``prepare`` was called, and every node made since has a name and what is known of its shape.

    Returns:
        Every rewrite made, and every place where a rule might have fired, with the reason.
    """
    anchored = by_operator(rules)
    if not model.functions and not any(item.op_type in anchored for item in all_nodes(model)):
        return Change()
    notes = [] if prepared else prepare(model)
    before = model.clone() if context.verify == "full" else None
    walk = Rewriter(model, context)
    for _ in range(MAX_SWEEPS):
        walk.skipped.clear()
        with shape_values.remembered():
            if not walk.sweep(anchored):
                break
    change = walk.change
    change.notes[:0] = notes
    change.skipped += [Skipped(*key) for key in walk.skipped]
    if change.rewrites:
        remove_unused_initializers(model)
        if before is not None:
            _compare_whole(model, before, change, context)
    return change


def prepare(model: ir.Model) -> list[str]:
    """Inlines functions, names all nodes and infers shapes where some are missing, in place.

    Returns:
        Sentences for the user.
    """
    notes = []
    if model.functions:
        from onnx_ir.passes.common import InlinePass

        notes.append(f"{len(model.functions)} functions were inlined")
        InlinePass()(model)
    inner = graphs(model)
    for graph in inner[1:]:
        graph.opset_imports.update(model.opset_imports)  # a subgraph has none of its own
    nodes = [item for graph in inner for item in graph]
    if not all(item.name for item in nodes):
        name_nodes(model)
    if any(value.shape is None for item in nodes for value in item.outputs if value.name):
        shapes.infer_shapes(model)
    return notes


def remove_unused_initializers(model: ir.Model) -> None:
    """Drops initializers that nothing reads, in place."""
    for graph in graphs(model):
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del graph.initializers[name]


def _compare_whole(model: ir.Model, before: ir.Model, change: Change, context: Surroundings) -> None:
    if proof.model_bytes(before) > proof.WHOLE_MODEL:
        change.notes.append("the whole model is above 1 GiB: only the single rewrites were proved")
        return
    try:
        difference = proof.compare_models(before, model, context.seed)
    except RuntimeFailure as failure:
        change.notes.append(f"the whole model could not be compared: {failure.message}")
        return
    if difference.reason:
        model.graph = before.graph
        change.notes.append(f"all rewrites were taken back: the whole model differs ({difference.reason})")
        change.rewrites.clear()


def _take_over_names(built: Sequence[ir.Node], replaced: Sequence[ir.Node]) -> None:
    """A new node is called as the last one of its type that it replaced, where that one is gone."""
    free = {item.op_type: item.name for item in replaced if item.name and item.graph is None}
    for item in built:
        if name := free.pop(item.op_type, None):
            item.name = name


def _names(model: ir.Model) -> set[str]:
    taken = {item.name for item in all_nodes(model) if item.name}
    for graph in graphs(model):
        taken.update(value.name for value in graph.inputs if value.name)
        taken.update(graph.initializers)
    taken.update(out.name for item in all_nodes(model) for out in item.outputs if out.name)
    return taken
