"""Record that a plan ends before its last steps, and why; the model stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgeopt.graph.change import Change, Skipped
from edgeopt.passes.base import Context, Keeps, Pass, Stage


@dataclass(frozen=True)
class EndPlan(Pass):
    """Change nothing, but say in the ledger which steps a plan left out.

    Attributes:
        left_out: The passes that would have come.
        reason: Why they do not.
    """

    name: ClassVar[str] = "end-plan"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "exact"

    left_out: tuple[str, ...] = ()
    reason: str = "the plan ends"

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Returns a change without rewrites."""
        if not self.left_out:
            return Change(summary=self.reason)
        listed = f"{', '.join(self.left_out)} left out"
        sentence = f"{self.reason}: {listed}"
        context.log.info(sentence)
        return Change(
            summary=listed,
            skipped=[Skipped(self.name, step, self.reason) for step in self.left_out],
            details={"left_out": list(self.left_out)},
            notes=[sentence],
        )
