"""What all fusions share: when they may run, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgeopt.graph.change import Change, NoMatch, Skipped
from edgeopt.graph.names import all_nodes
from edgeopt.graph.opset import raise_opset
from edgeopt.graph.rewriting import Rule, opset, rewrite
from edgeopt.passes.base import Context, Facet, Pass
from edgeopt.platform import RuntimeVersion

CONTRIB = "com.microsoft"
"""The domain of onnxruntime's own operators."""


@dataclass(frozen=True)
class Fusion(Pass):
    """Several nodes that become one.

    A fusion into an operator of its own is worth something only where the runtime has a kernel for it:
    with a platform it runs only if the platform's rules list that kernel. One that merely makes nodes
    vanish always runs. An operator that is younger than the model's opset is had by raising the model,
    where the platform takes that opset; without a platform the model keeps its own.

    Attributes:
        patterns: The rules, in the order in which they are tried at a node.
        kernel: What the platform's ``fusions`` call the kernel that the result needs; "" for none.
        since: The opset of the operator that results; 0 where the rules see to that by themselves.
    """

    patterns: ClassVar[tuple[Rule, ...]] = ()
    kernel: ClassVar[str] = ""
    since: ClassVar[int] = 0

    @property
    def reads(self) -> frozenset[Facet]:
        """The rules, which say whether the runtime has the kernel."""
        return frozenset({"rules"}) if self.kernel else frozenset()

    def rules_for(self, platform: RuntimeVersion | None) -> Sequence[Rule]:
        """The rules that suit a platform; ``None`` stands for any runtime."""
        return self.patterns

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Edits the model in place."""
        platform = context.rules if self.kernel else None
        if platform is not None and self.kernel not in platform.fusions:
            reason = f"the runtime has no kernel {self.kernel}"
            return Change(summary="none", skipped=[Skipped(self.name, "", reason)])
        rules, added = self.rules_for(platform), CONTRIB not in model.opset_imports
        if platform is not None and rules is self.patterns:
            takes = platform.highest_opset(item.op_type for item in all_nodes(model))
            if takes < self.since:
                reason = f"it needs opset {self.since}, and the runtime takes this file at {takes}"
                return Change(summary="none", skipped=[Skipped(self.name, "", reason)])
        if platform is not None and added and platform.operators.get(CONTRIB):
            model.opset_imports[CONTRIB] = 1
        change = rewrite(model, rules, context)
        if platform is not None and _wants(change, self.since):
            change = self._raised(model, rules, context, change)
        if added and not any(item.domain == CONTRIB for item in all_nodes(model)):
            model.opset_imports.pop(CONTRIB, None)
        change.summary = f"{len(change.rewrites)} fused" if change.rewrites else "none"
        return change

    def _raised(self, model: ir.Model, rules: Sequence[Rule], context: Context, first: Change) -> Change:
        """Raises the model to the operator's opset and tries again; it stays where that gains nothing."""
        before = model.opset_imports.get("", 0)
        raised, reason = raise_opset(model, self.since, context.seed)
        if reason is not None:
            first.notes.append(reason)
            return first
        change = rewrite(raised, rules, context)
        if not change.rewrites:
            return first
        model.graph, model.ir_version = raised.graph, raised.ir_version
        model.opset_imports.update(raised.opset_imports)
        change.rewrites[:0] = first.rewrites
        change.notes = list(dict.fromkeys([*first.notes, *change.notes]))
        change.details["opset"] = [before, self.since]
        return change


def too_old(item: ir.Node, operator: str, since: int) -> NoMatch | None:
    """Why an operator cannot stand where a node stands, by the model's opset; ``None`` where it can."""
    have = opset(item)
    return None if have >= since else NoMatch(f"{operator} needs opset {since}, the model has {have}")


def _wants(change: Change, since: int) -> bool:
    return bool(since) and any(f"needs opset {since}," in item.reason for item in change.skipped)
