"""What the counting plugin writes, as figures of one call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt.errors import RuntimeFailure

CLASSES = {
    "int": "integer arithmetic",
    "branch": "branches",
    "load": "loads of general registers",
    "store": "stores of general registers",
    "load_simd": "vector loads",
    "store_simd": "vector stores",
    "fmla": "float multiply-accumulates (FMLA)",
    "dot": "dot products (SDOT, UDOT, BFDOT)",
    "matmul": "matrix products (SMMLA, BFMMLA)",
    "mla": "integer multiplies (SMLAL, MLA)",
    "simd": "other vector instructions",
    "float": "scalar floats",
    "sve": "SVE",
    "system": "system",
    "other": "not told apart",
}
"""The plugin's classes, and what people call them; those of 32-bit guests are not told apart."""

_MEMORY = ("bytes_read", "bytes_written", "accesses", "misses_1", "misses_2", "misses_3")


@dataclass(frozen=True, slots=True)
class Counts:
    """What one call took.

    Attributes:
        classes: Instructions by class.
        memory: ``bytes_read`` and ``bytes_written`` by the instructions, ``accesses`` to cache lines, and
            ``misses_1`` and further per level of the modelled caches; empty without the model.
        spread: How far the calls that were counted lie apart, as a share of the figure.
        calls: How many they were.
    """

    classes: Mapping[str, int]
    memory: Mapping[str, int] = field(default_factory=dict)
    spread: float = 0.0
    calls: int = 1

    @property
    def total(self) -> int:
        """All instructions."""
        return sum(self.classes.values())

    def minus(self, other: Counts) -> Counts:
        """What is left of every figure, none below zero."""

        def left(mine: Mapping[str, int], theirs: Mapping[str, int]) -> dict[str, int]:
            return {key: max(0, value - theirs.get(key, 0)) for key, value in mine.items()}

        return Counts(
            left(self.classes, other.classes), left(self.memory, other.memory), self.spread, self.calls
        )

    def plus(self, other: Counts) -> Counts:
        """The sums of both."""

        def both(mine: Mapping[str, int], theirs: Mapping[str, int]) -> dict[str, int]:
            return {key: mine.get(key, 0) + theirs.get(key, 0) for key in [*mine, *(set(theirs) - set(mine))]}

        return Counts(both(self.classes, other.classes), both(self.memory, other.memory))

    def detail(self) -> dict[str, Any]:
        """As evidence holds it: classes that occur, memory, and misses by level."""
        found: dict[str, Any] = {"by_class": {key: value for key, value in self.classes.items() if value}}
        if self.memory:
            found["memory"] = {
                key: value for key, value in self.memory.items() if not key.startswith("misses")
            }
            found["cache_misses"] = {
                f"l{key.rpartition('_')[2]}": value
                for key, value in self.memory.items()
                if key.startswith("misses")
            }
        return found


EMPTY = 3
"""Pairs of marks with nothing between them."""


def read(path: Path, first: int, calls: int) -> Counts:
    """Reads the figures of one call from the plugin's file.

    The agent marks empty stretches and then every call, each with two marks, from ``first`` on. An empty
    stretch is what marking itself takes. The lowest of either kind stands for all: what else the process does
    meanwhile, such as answering signs of life, only ever adds to a count.

    Raises:
        RuntimeFailure: The marks are not there.
    """
    marks = {entry["mark"]: entry for entry in parse(path)}
    wanted = range(first, first + marks_of(calls))
    if any(mark not in marks for mark in wanted):
        raise RuntimeFailure("the emulator counted nothing: its plugin did not see the marks")
    found = [_between(marks[mark], marks[mark + 1]) for mark in wanted[::2]]
    empty = least(found[:EMPTY])
    return least([counts.minus(empty) for counts in found[EMPTY:]])


def marks_of(calls: int) -> int:
    """How many marks so many calls are counted with."""
    return 2 * (EMPTY + calls)


def least(found: Sequence[Counts]) -> Counts:
    """The one with the lowest total, which knows how far all of them lie apart."""
    ordered = sorted(found, key=lambda counts: counts.total)
    chosen = ordered[0]
    spread = (ordered[-1].total - chosen.total) / max(1, chosen.total)
    return Counts(chosen.classes, chosen.memory, spread, len(ordered))


def parse(path: Path) -> list[dict[str, int]]:
    """Reads the lines that are whole."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return []
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def _between(first: Mapping[str, int], second: Mapping[str, int]) -> Counts:
    delta = {key: second[key] - first[key] for key in second if key != "mark"}
    return Counts({key: delta[key] for key in CLASSES}, {key: delta[key] for key in _MEMORY if key in delta})
