"""What was seen of a board while it was timed: temperature, clock, throttling, governor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Observed:
    """Collects what the agent says of the board's state."""

    def __init__(self) -> None:
        self._states: list[Mapping[str, Any]] = []
        self._versions: set[tuple[str, str]] = set()

    def add(self, state: Mapping[str, Any]) -> None:
        """Keeps a state, as the agent's ``state`` and ``block`` give it."""
        self._states.append(state)

    def other_version(self, made_for: str, has: str) -> None:
        """Keeps that an artifact runs on another version of its runtime than it was made for."""
        self._versions.add((made_for, has))

    def detail(self) -> dict[str, Any]:
        """Temperature in degrees Celsius, clocks in Hz, and what held the clock down."""
        found: dict[str, Any] = {}
        temperatures = [state["temperature"] for state in self._states if "temperature" in state]
        if temperatures:
            found["temperature"] = {"first": temperatures[0], "highest": max(temperatures)}
        clocks = [clock for state in self._states for clock in state.get("clock", ())]
        if clocks:
            found["clock"] = {"lowest": min(clocks), "highest": max(clocks)}
        told = [state["throttled"] for state in self._states if "throttled" in state]
        if told:
            found["throttled"] = sorted({reason for reasons in told for reason in reasons})
        return found

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures should know."""
        found = []
        if reasons := sorted({reason for state in self._states for reason in state.get("throttled", ())}):
            found.append(f"the board held its clock down while it was timed: {', '.join(reasons)}")
        governors = {name for state in self._states for name in state.get("governor", ())}
        if governors - {"performance"}:
            found.append(f"the board's governor is {', '.join(sorted(governors))}: its clock may vary")
        for made_for, has in sorted(self._versions):
            found.append(f"the artifact was compiled for version {made_for}, the board has {has}")
        return found
