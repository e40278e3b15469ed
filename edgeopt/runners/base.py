"""The contract of a runner: where an artifact runs, and how it is measured there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeopt.session import Closing, Session


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a fresh process needs to load and run a model.

    Attributes:
        peak: Peak resident memory of the process, in bytes.
        before: Resident memory before the model was loaded: the interpreter and the runtime's code.
        load: Seconds to load it.
        first: Seconds of the first call.
    """

    peak: int
    before: int
    load: float
    first: float


class Runner(Closing, ABC):
    """Opens models and artifacts somewhere, and measures them there.

    Args:
        address: What ``--on`` says.

    Attributes:
        where: The name that its evidence bears: ``host``, or the board's own.
        how: Whether its figures are measured or emulated.
        notes: Sentences for the report, complete when the work is done.
    """

    where: str
    how: Literal["measured", "emulated"] = "measured"
    notes: list[str]

    def __init__(self, address: str) -> None:
        self.address = address

    @abstractmethod
    def open(self, source: str | Path, *, threads: int = 1) -> dict[str, Session]:
        """Opens a model or all parts of an artifact; a model of one part is ``model``.

        Raises:
            ModelError: There is none, or it is of a kind that does not run there.
            RuntimeFailure: The runtime is missing or cannot load it, or there is no room for it.
            UnreachableError: The other side cannot be reached.
        """

    def timer(self, session: Session, feeds: Mapping[str, np.ndarray]) -> Callable[[], Any]:
        """Gives what ``benchmark.measure`` takes as a candidate: one call of the session.

        A board gives one that has ``time(count)`` too, which times a block of calls over there.
        """
        return lambda: session.run(feeds)

    @abstractmethod
    def footprint(
        self, source: str | Path, *, threads: int = 1, shapes: Mapping[str, Sequence[int]] | None = None
    ) -> Footprint:
        """Loads and runs a model in a fresh process and returns what it took."""

    def conditions(self) -> dict[str, Any]:
        """What held while it ran: the machine, its governor."""
        return {}

    def detail(self) -> dict[str, Any]:
        """What was seen while it was timed: temperature, clock, throttling."""
        return {}

    def close(self) -> None:
        """Ends everything that runs on the other side and leaves nothing behind."""
