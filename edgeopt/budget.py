"""Budgets, and the verdict on each.

A budget is met when the whole 95 % interval of its evidence lies inside the limit, missed when the
whole interval lies outside, inconclusive otherwise. An inconclusive budget counts by its point
estimate, unless the user asked to be strict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgeopt import units
from edgeopt.errors import UserError, nearest
from edgeopt.evidence import Evidence

Status = Literal["met", "missed", "inconclusive"]

KINDS: dict[str, tuple[str, ...]] = {
    "size": ("size",),
    "latency": ("time",),
    "peak_memory": ("size",),
    "accuracy_drop": ("points", "decibel", "percent"),
    "fidelity": ("decibel",),
}
"""Per budget the kinds of unit that its limit may have. A drop without unit is a plain difference."""

_UNITS = {"size": "B", "time": "s", "points": "pp", "percent": "%", "decibel": "dB"}


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on one quantity.

    Attributes:
        quantity: A key of ``KINDS``.
        limit: The limit in ``unit``.
        unit: The base unit of the limit; "" for a plain difference of a metric.
        explicit: The user asked for it; a default budget is never an error for lack of data.
    """

    quantity: str
    limit: float
    unit: str
    explicit: bool = True

    @property
    def at_least(self) -> bool:
        """Whether the quantity must not be below the limit (fidelity) or above it (all others)."""
        return self.quantity == "fidelity"

    @classmethod
    def parse(cls, quantity: str, text: str | float) -> Budget:
        """Reads a budget as a recipe or the command line writes it.

        Raises:
            UserError: No such budget, or a limit that cannot be read.
        """
        if quantity not in KINDS:
            raise UserError(f"there is no budget {quantity!r}", nearest=nearest(quantity, KINDS))
        if quantity == "accuracy_drop":
            try:
                return cls(quantity, float(text), "")
            except ValueError:
                pass  # it has a unit, read below
        try:
            value, kind = units.parse(text, *KINDS[quantity])
        except UserError as error:
            error.message = f"the budget {quantity}: {error.message}"
            raise
        if value < 0:
            raise UserError(f"the budget {quantity} must not be negative: {text!r}")
        return cls(quantity, value, _UNITS[kind])


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the evidence says about one budget.

    Attributes:
        budget: The budget judged.
        status: Met, missed or inconclusive.
        evidence: The figure that decided, or ``None`` where there is none.
        passes: Whether the budget counts as kept: met, or inconclusive with the point estimate
            inside (or with nothing to judge by).
        note: Why it is inconclusive, or what else a reader must know.
    """

    budget: Budget
    status: Status
    evidence: Evidence | None
    passes: bool
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the verdict as plain JSON data."""
        return {
            "quantity": self.budget.quantity,
            "limit": self.budget.limit,
            "unit": self.budget.unit,
            "explicit": self.budget.explicit,
            "status": self.status,
            "passes": self.passes,
            "value": None if self.evidence is None else self.evidence.value,
            "interval": None if self.evidence is None else self.evidence.interval,
            "how": None if self.evidence is None else self.evidence.how,
            "note": self.note,
        }


def judge(budget: Budget, evidence: Evidence | None, note: str = "") -> Verdict:
    """Judges one budget by one figure.

    Without evidence the verdict is inconclusive and passes: there was nothing to judge.
    """
    if evidence is None:
        return Verdict(budget, "inconclusive", None, True, note or "nothing to judge it by")
    lower, upper = evidence.interval or (evidence.value, evidence.value)
    if budget.at_least:
        inside, outside, point = lower >= budget.limit, upper < budget.limit, evidence.value >= budget.limit
    else:
        inside, outside, point = upper <= budget.limit, lower > budget.limit, evidence.value <= budget.limit
    if inside:
        return Verdict(budget, "met", evidence, True, note)
    if outside:
        return Verdict(budget, "missed", evidence, False, note)
    return Verdict(budget, "inconclusive", evidence, point, note or "the limit lies inside the 95 % interval")


def judge_all(budgets: Iterable[Budget], evidence: Mapping[str, Evidence]) -> list[Verdict]:
    """Judges every budget by the evidence of the same quantity, where there is one."""
    return [judge(budget, evidence.get(budget.quantity)) for budget in budgets]


def exit_code(verdicts: Iterable[Verdict], strict: bool = False) -> int:
    """Returns 0 when every budget counts as kept, 1 when one is missed, 6 when strict and unsure."""
    verdicts = list(verdicts)
    if any(not verdict.passes for verdict in verdicts if verdict.status == "missed"):
        return 1
    if strict and any(verdict.status == "inconclusive" for verdict in verdicts):
        return 6
    return 0 if all(verdict.passes for verdict in verdicts) else 1
