"""Say attention and rotary embedding in products, where the runtime has no kernel of theirs.

Models come with these operators from opset 23 on. Taken apart before anything else, their products are
quantized like all others; where a kernel runs the whole, it stays, and computes in float.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgeopt.graph.change import Change
from edgeopt.graph.legalize.attention import DECOMPOSITIONS
from edgeopt.graph.rewriting import rewrite
from edgeopt.passes.base import Context, Facet, Pass

SINCE = 23
"""The opset of both operators."""


@dataclass(frozen=True)
class UnfuseAttention(Pass):
    """Take Attention and RotaryEmbedding apart for runtimes without them."""

    name: ClassVar[str] = "unfuse-attention"

    @property
    def reads(self) -> frozenset[Facet]:
        """The rules, which say what the runtime runs."""
        return frozenset({"rules"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Edits the model in place; without a platform nothing is taken apart."""
        rules, wanted = context.rules, []
        if rules is not None:
            for item in DECOMPOSITIONS:
                (operator,) = item.rule.operators[0]
                if rules.opset[1] < SINCE or not rules.runs(operator):
                    wanted.append(item.rule)
        present = {node.op_type for node in model.graph.all_nodes() if node.domain in ("", "ai.onnx")}
        if not any(present & rule.operators[0] for rule in wanted):
            return Change(summary="none")
        change = rewrite(model, wanted, context)
        change.summary = f"{len(change.rewrites)} taken apart" if change.rewrites else "none"
        return change
