"""A connection to an agent that is made again where it is lost.

Every request can be made twice, so what loses its connection is simply done again over the next one. Only
losses in a row without any progress are counted, and too many of them end in an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

from edgeopt.errors import EdgeoptError, UnreachableError
from edgeopt.runners.link import Link, Lost, Patience, Refused
from edgeopt.runners.refusals import refusal

Found = TypeVar("Found")

SKEW = 60.0
"""Seconds between the two clocks that are worth a note."""


class Client(Protocol):
    """What makes connections to one board: ``ssh``, ``adb``."""

    address: str

    def command(self, remote: str) -> list[str]:
        """The client that runs a command on the board with this process's stdin and stdout."""

    def explain(self, lost: Lost) -> UnreachableError | None:
        """What a failed connection means to a user; ``None`` where it may work the next time."""

    def forget(self) -> None:
        """Frees what the client shares between connections, after one was lost."""

    def remedy(self, trouble: Lost | Refused) -> bool:
        """Whether something was done about a trouble, so that it is worth trying again at once.

        Raises:
            Lost: The connection was lost on the way.
            EdgeoptError: It cannot be done.
        """


class Connection:
    """Connects when first used, and again after every loss.

    Args:
        client: Makes connections.
        start: Gives the command that starts an agent on the board.
        folder: The folder for files on the board; ``None`` leaves it to the agent.
        patience: How long things may take.

    Attributes:
        hello: What the agent said of the board; empty before the first connection.
        losses: How often the connection was lost.
        generation: Counts connections: what an agent holds is gone with its connection.
    """

    def __init__(
        self, client: Client, start: Callable[[], str], folder: str | None, patience: Patience
    ) -> None:
        self._client, self._start, self._folder, self._patience = client, start, folder, patience
        self.hello: dict[str, Any] = {}
        self.losses = 0
        self.generation = 0
        self._link: Link | None = None
        self._failures = 0
        self._skew = 0.0
        self._company = False

    def attempt(self, work: Callable[[Link], Found]) -> Found:
        """Does something over the connection, again where it is lost.

        Raises:
            UnreachableError: It is lost too often in a row without any progress.
            RuntimeFailure: The agent refuses.
        """
        while True:
            try:
                if self._link is None:
                    self._link = self._connect()
                return work(self._link)
            except Lost as lost:
                self._drop(lost)
                self._failures += 1
                if self._failures >= self._patience.attempts:
                    raise self._given_up(lost) from lost
                time.sleep(self._patience.pause * 2 ** (self._failures - 1))
            except Refused as refused:
                if not self._client.remedy(refused):
                    raise refusal(refused, self._client.address) from refused
                self._restart()

    def advanced(self) -> None:
        """Something was done that need not be done again: losses are counted anew."""
        self._failures = 0

    def tell(self, op: str, **fields: Any) -> None:
        """Makes a request whose answer matters to nobody, if the connection still stands."""
        if self._link is not None:
            try:
                self._link.request(op, patience=10.0, **fields)
            except Lost as lost:
                self._drop(lost)

    @contextmanager
    def fresh(self) -> Iterator[Link]:
        """Connects to a second agent for this alone.

        Raises:
            Lost: It does not start or does not end cleanly.
        """
        link = self._connect()
        try:
            yield link
        except BaseException:
            link.abandon()
            raise
        if not link.finish():
            raise Lost("the connection was closed")

    def close(self) -> None:
        """Ends the agent, which deletes everything that it put on the board."""
        link, self._link = self._link, None
        if link is not None and not link.finish() and self.hello:
            # The board may be there all the same: what an agent left, the next one deletes.
            # If it is not, the cleaner that the agent became deletes the folder.
            with suppress(Lost, EdgeoptError), self.fresh():
                pass
        self._client.forget()

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures should know of the connection."""
        found = []
        if abs(self._skew) > SKEW:
            side = "behind" if self._skew < 0 else "ahead of"
            found.append(
                f"the board's clock is {abs(self._skew):.0f} s {side} this machine's; no figure depends on it"
            )
        if self._company:
            found.append("another edgeopt was at work on the board: times may be longer than they are alone")
        if self.losses:
            times = "once" if self.losses == 1 else f"{self.losses} times"
            found.append(f"the connection was lost {times} and taken up again; nothing was lost with it")
        return found

    def _restart(self) -> None:
        """Ends the agent; the next request starts another."""
        link, self._link = self._link, None
        if link is not None:
            link.finish()
        self.generation += 1

    def _connect(self) -> Link:
        while True:
            try:
                return self._connect_once()
            except Lost as lost:
                if self._client.remedy(lost):
                    continue
                if (error := self._client.explain(lost)) is not None:
                    self._client.forget()
                    raise error from lost
                raise

    def _connect_once(self) -> Link:
        started = time.time()
        link = Link(self._client.command(self._start()), self._patience)
        silence = max(2 * self._patience.silence, 3 * self._patience.ping)
        try:
            answer, _ = link.request(
                "hello",
                grace=self._patience.grace,
                silence=silence,
                folder=self._folder,
                patience=self._patience.connect,
            )
        except BaseException:
            link.abandon()
            raise
        if not self.hello:
            self._company = not answer["alone"]
        self.hello = answer
        self._skew = answer["time"] - (started + time.time()) / 2
        return link

    def _drop(self, lost: Lost) -> None:
        if self._link is not None:
            self.losses += 1
            self._link.abandon()
        self._link = None
        self.generation += 1
        self._client.forget()

    def _given_up(self, lost: Lost) -> UnreachableError:
        last = lost.errors.splitlines()[-1] if lost.errors else ""
        again = f", {self._failures} times in a row" if self._failures > 1 else ""
        return UnreachableError(
            f"the connection to {self._client.address} was lost{again}: {last or lost.reason}",
            hint="look whether the board is up, and short of memory or power",
        )
