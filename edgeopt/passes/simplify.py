"""Simplify: the same numbers from fewer nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgeopt.graph.change import Change
from edgeopt.graph.names import all_nodes
from edgeopt.graph.rewriting import Result, rewrite, rule
from edgeopt.passes.base import Context, Pass


@rule("Identity", shared=True)
def drop_identity(identity: ir.Node) -> Result:
    """Identity(x) is x."""
    return identity.inputs[0]


RULES = (drop_identity,)


@dataclass(frozen=True)
class Simplify(Pass):
    """Simplify the graph without changing what it computes."""

    name: ClassVar[str] = "simplify"

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Edits the model in place."""
        before = sum(1 for _ in all_nodes(model))
        change = rewrite(model, RULES, context)
        change.summary = f"{before} -> {sum(1 for _ in all_nodes(model))} nodes"
        return change
