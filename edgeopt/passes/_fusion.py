"""What all fusions share: when they may run, and what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgeopt.graph.change import Change, Skipped
from edgeopt.graph.rewriting import Rule, rewrite
from edgeopt.passes.base import Context, Facet, Pass


@dataclass(frozen=True)
class Fusion(Pass):
    """Several nodes that become one.

    A fusion into an operator of its own is worth something only where the runtime has a kernel for it:
    with a platform it runs only if the platform's rules list that kernel. One that merely makes nodes
    vanish always runs.

    Attributes:
        patterns: The rules, in the order in which they are tried at a node.
        kernel: What the platform's ``fusions`` call the kernel that the result needs; "" for none.
    """

    patterns: ClassVar[tuple[Rule, ...]] = ()
    kernel: ClassVar[str] = ""

    @property
    def reads(self) -> frozenset[Facet]:
        """The rules, which say whether the runtime has the kernel."""
        return frozenset({"rules"}) if self.kernel else frozenset()

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Edits the model in place."""
        if self.kernel and context.rules is not None and self.kernel not in context.rules.fusions:
            reason = f"the runtime has no kernel {self.kernel}"
            return Change(summary="none", skipped=[Skipped(self.name, "", reason)])
        change = rewrite(model, self.patterns, context)
        change.summary = f"{len(change.rewrites)} fused" if change.rewrites else "none"
        return change
