"""What a pass did to a model, and what it left undone and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class NoMatch:
    """Why a rule did not fire."""

    reason: str


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One rewrite that was made.

    Attributes:
        rule: The rule's name.
        site: The original name of the node it was anchored at.
        replaced: The original names of all nodes it replaced.
        error: The largest deviation seen by the proof, relative to the largest output; ``None``
            when it was not proved by running.
    """

    rule: str
    site: str
    replaced: tuple[str, ...] = ()
    error: float | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A place where a rule was tried and did not fire, or was left out because its proof failed."""

    rule: str
    site: str
    reason: str


@dataclass(slots=True)
class Change:
    """What a pass did.

    Attributes:
        summary: What a person wants to know, in a few words: ``212 -> 148 nodes``.
        rewrites: Every rewrite, in order.
        skipped: Every rule that did not fire where it might have.
        details: Further plain JSON data of the pass: the scheme chosen, layers kept in float, ...
        notes: Sentences a user must see: a lint of the calibration, a rewrite left out.
    """

    summary: str = ""
    rewrites: list[Rewrite] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __add__(self, other: Change) -> Change:
        """Joins two changes of one pass."""
        return Change(
            summary=", ".join(part for part in (self.summary, other.summary) if part),
            rewrites=self.rewrites + other.rewrites,
            skipped=self.skipped + other.skipped,
            details={**self.details, **other.details},
            notes=self.notes + other.notes,
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the change as plain JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Change:
        """Restores a change from the data that ``to_json`` returned."""
        return cls(
            summary=data["summary"],
            rewrites=[
                Rewrite(item["rule"], item["site"], tuple(item["replaced"]), item["error"])
                for item in data["rewrites"]
            ],
            skipped=[Skipped(**item) for item in data["skipped"]],
            details=dict(data["details"]),
            notes=list(data["notes"]),
        )
