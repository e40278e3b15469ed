"""Simplify: the same numbers from fewer nodes.

In rounds, until nothing changes: constants are computed (``folding``), shapes that are known before the
graph runs become constants (``shape_rules``), nodes that do nothing vanish and what follows each other is
merged (``rules``, ``axes``, ``pieces``), and what is computed or stored twice or never read goes
(``cleanup``).

A constant computed ahead is what onnxruntime computes of the same nodes, and equal initializers are equal
byte by byte: these are proved by how they are made. Every other step is proved by its region.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgeopt.errors import RuntimeFailure
from edgeopt.graph import proof, shapes
from edgeopt.graph.change import Change
from edgeopt.graph.names import all_nodes
from edgeopt.graph.rewriting import prepare, rewrite
from edgeopt.passes.base import Context, Pass
from edgeopt.passes.simplify import axes, cleanup, folding, pieces, rules, shape_rules

_ROUNDS = 16


@dataclass(frozen=True)
class Simplify(Pass):
    """Simplify the graph without changing what it computes.

    Attributes:
        fold: Compute constants ahead, where the file does not grow by it.
    """

    name: ClassVar[str] = "simplify"
    fold: bool = True

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Edits the model in place."""
        count = sum(1 for _ in all_nodes(model))
        change = Change(notes=prepare(model))
        original = model.clone() if context.verify == "full" else None
        change += cleanup.own_constants(model)
        every_rule = (*shape_rules.RULES, *rules.RULES, *axes.RULES, *pieces.RULES)
        for _ in range(_ROUNDS):
            step = folding.fold(model, context) if self.fold else Change()
            step += cleanup.merge_equal(model, context)
            local = rewrite(model, every_rule, context, prepared=True)
            change.skipped = [item for item in change.skipped if item not in local.skipped]
            change = change + step + local
            cleanup.remove_unused(model)
            if not step.rewrites and not local.rewrites:
                break
            if shapes.unsettled(_computed(model), model.graph.inputs):
                shapes.infer_shapes(model)
        if change.rewrites and original is not None:
            _compare(model, original, change, context)
        change.skipped = list(dict.fromkeys(change.skipped))
        change.notes = list(dict.fromkeys(change.notes))
        change.summary = f"{count} -> {sum(1 for _ in all_nodes(model))} nodes"
        return change


def _computed(model: ir.Model) -> Iterator[ir.Value]:
    """Every value that a node makes."""
    return (value for node in all_nodes(model) for value in node.outputs if value.name)


def _compare(model: ir.Model, original: ir.Model, change: Change, context: Context) -> None:
    """Runs the whole model before and after, beside the proofs of the single rewrites."""
    if proof.model_bytes(original) > proof.WHOLE_MODEL:
        change.notes.append("the whole model is above 1 GiB: only the single rewrites were proved")
        return
    try:
        difference = proof.compare_models(original, model, context.seed)
    except RuntimeFailure as failure:
        change.notes.append(f"the whole model could not be compared: {failure.message}")
        return
    if difference.reason:
        model.graph = original.graph
        change.rewrites.clear()
        change.notes.append(f"nothing was simplified: the whole model differs ({difference.reason})")
    else:
        change.details["error"] = difference.error
