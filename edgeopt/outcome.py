"""What a compilation ended with: ledger, evidence, verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt import budget
from edgeopt.budget import Verdict
from edgeopt.evidence import Evidence
from edgeopt.graph.change import Change


@dataclass(frozen=True)
class StepRecord:
    """One line of the ledger: what a step did, and what the model was worth after it.

    Attributes:
        part: The part of the model it was applied to; ``model`` where there is one.
        name: The pass.
        options: Its options that differ from their defaults.
        change: What it did.
        cpu_seconds: Processor time when it was computed, on this machine.
        cached: It came from the store.
        figures: Size, latency, peak memory and fidelity after it, by quantity.
    """

    part: str
    name: str
    options: Mapping[str, Any]
    change: Change
    cpu_seconds: float
    cached: bool
    figures: Mapping[str, Evidence]

    @property
    def idle(self) -> bool:
        """Whether the step found nothing to do."""
        return self.change.summary in ("", "none") and not self.change.rewrites

    def to_json(self) -> dict[str, Any]:
        """Returns the record as plain JSON data."""
        return {
            "part": self.part,
            "pass": self.name,
            "options": dict(self.options),
            "summary": self.change.summary,
            "change": self.change.to_json(),
            "cpu_seconds": self.cpu_seconds,
            "cached": self.cached,
            "figures": {name: figure.to_json() for name, figure in self.figures.items()},
        }


@dataclass(frozen=True)
class Outcome:
    """What came of one model on one device with one target.

    Attributes:
        name: The model's name.
        device: The device's name.
        target: The target's name.
        path: The artifact's folder.
        digest: The artifact's identity.
        ledger: The steps, in order.
        before: The float original's figures by quantity.
        after: The artifact's figures by quantity.
        verdicts: One per budget.
        notes: Sentences that the user must see.
        cpu_seconds: Processor time of the whole run.
        strict: Inconclusive verdicts count as failures.
    """

    name: str
    device: str
    target: str
    path: Path
    digest: str
    ledger: Sequence[StepRecord]
    before: Mapping[str, Evidence]
    after: Mapping[str, Evidence]
    verdicts: Sequence[Verdict]
    notes: Sequence[str] = ()
    cpu_seconds: float = 0.0
    strict: bool = False

    @property
    def exit_code(self) -> int:
        """0 when every budget is kept, 1 when one is missed, 6 when strict and unsure."""
        return budget.exit_code(self.verdicts, self.strict)

    def to_json(self) -> dict[str, Any]:
        """Returns the outcome as plain JSON data."""
        return {
            "name": self.name,
            "device": self.device,
            "target": self.target,
            "path": str(self.path),
            "digest": self.digest,
            "exit_code": self.exit_code,
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "before": {name: figure.to_json() for name, figure in self.before.items()},
            "after": {name: figure.to_json() for name, figure in self.after.items()},
            "ledger": [step.to_json() for step in self.ledger],
            "notes": list(self.notes),
            "cpu_seconds": self.cpu_seconds,
        }


def exit_code(outcomes: Iterable[Outcome]) -> int:
    """The exit code of several outcomes: a miss decides over an inconclusive one."""
    codes = {outcome.exit_code for outcome in outcomes}
    return next((code for code in (1, 6) if code in codes), 0)
