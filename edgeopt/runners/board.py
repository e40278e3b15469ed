"""A board at the end of a wire: what ``ssh`` and ``adb`` have in common.

Models are opened on the board by the agent; their sessions speak the original's inputs and outputs here.
Every request is made again after a lost connection, so a run that loses one goes on where it was: calls
that were answered are not made again, and files go on from the byte that arrived.
"""

from __future__ import annotations

import re
import shlex
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl

import numpy as np

from edgeopt.data.seeded import SeededSamples
from edgeopt.errors import UnreachableError, UserError, nearest
from edgeopt.runners.base import Footprint, Runner
from edgeopt.runners.connection import Connection
from edgeopt.runners.link import BOOT, Link, Lost, Patience, Refused
from edgeopt.runners.observed import Observed
from edgeopt.runners.remote import BlockTimer, OnnxOnBoard, TfliteOnBoard
from edgeopt.runners.shipping import Opened, Shipping, parts_of
from edgeopt.runners.supply import Supply, clean, removal, words
from edgeopt.session import Session
from edgeopt.steps import hash_file

OPTIONS = ("python", "folder", "userland")


class Board(Runner):
    """A machine that an agent is started on.

    Args:
        address: As given to ``--on``; ``?python=`` names another Python there, ``?folder=`` another folder,
            ``?userland=`` says when a userland is sent there: auto, yes, keep or no.
        patience: How long things may take.

    Raises:
        UserError: The address is not valid.
    """

    scheme: ClassVar[str]
    pythons: ClassVar[tuple[str, ...]] = ("python3",)

    def __init__(self, address: str, patience: Patience | None = None) -> None:
        plain, _, query = address.partition("?")
        super().__init__(plain)
        options = dict(parse_qsl(query, keep_blank_values=True))
        for name in options:
            if name not in OPTIONS:
                raise UserError(
                    f"the address {address!r} has no option {name!r}",
                    nearest=nearest(name, OPTIONS),
                    hint=f"{self.address}?python=/path/to/python3",
                )
        self._python, self._folder = options.get("python"), options.get("folder", self.default_folder)
        self.patience = patience or Patience()
        self.connection = Connection(self, self._start, self._folder, self.patience)
        mode = options.get("userland", "no" if self._python else "auto")
        self._supply = Supply(self.command, mode, self._folder, self.patience)
        self._shipping = Shipping(self.connection.advanced)
        self._observed = Observed()

    # what a kind of board must say

    default_folder: ClassVar[str | None] = None
    """The folder for files on the board; ``None`` leaves it to the agent."""

    @abstractmethod
    def command(self, remote: str) -> list[str]:
        """The client that runs a command on the board with this process's stdin and stdout."""

    @abstractmethod
    def explain(self, lost: Lost) -> UnreachableError | None:
        """What a failed connection means to a user; ``None`` where it may work the next time."""

    def forget(self) -> None:
        """Frees what the client shares between connections, after one was lost."""

    def remedy(self, trouble: Lost | Refused) -> bool:
        """Sends a userland to a board whose own will not do."""
        return self._supply.remedy(trouble)

    # the runner

    @property
    def hello(self) -> dict[str, Any]:
        """What the agent says of the board."""
        if not self.connection.hello:
            self.connection.attempt(lambda link: None)
        return self.connection.hello

    @property
    def losses(self) -> int:
        """How often the connection was lost."""
        return self.connection.losses

    @property
    def where(self) -> str:  # type: ignore[override]
        """The board's own name."""
        name = self.hello["model"] if self.hello["machine"].startswith(("aarch64", "arm")) else ""
        return re.sub("[^a-z0-9]+", "-", (name or self.hello["name"] or self.address).lower()).strip("-")

    def open(self, source: str | Path, *, threads: int = 1) -> dict[str, Session]:
        """Sends the files and opens them there; see the base class."""
        sessions: dict[str, Session] = {}
        for name, (opened, part) in parts_of(Path(source), threads).items():
            self.connection.attempt(lambda link, wanted=opened: self._ensure(link, wanted))  # type: ignore[misc]
            kind = OnnxOnBoard if opened.runtime == "onnxruntime" else TfliteOnBoard
            sessions[name] = kind(self, opened, part)
        return sessions

    def timer(self, session: Session, feeds: Mapping[str, np.ndarray]) -> Callable[[], Any]:
        """Gives a candidate whose blocks are timed on the board."""
        if not isinstance(session, (OnnxOnBoard, TfliteOnBoard)):
            return super().timer(session, feeds)
        return BlockTimer(self, session.opened, session.arrays(feeds))

    def footprint(
        self, source: str | Path, *, threads: int = 1, shapes: Mapping[str, Sequence[int]] | None = None
    ) -> Footprint:
        """Measures a second agent, started for this alone."""
        needed = parts_of(Path(source), threads)
        feeds: dict[str, list[np.ndarray]] = {}
        for name, session in self.open(source, threads=threads).items():
            own = {spec.name for spec in session.inputs}
            known = {key: shape for key, shape in (shapes or {}).items() if key in own}
            seeded = next(SeededSamples(session.inputs, 1, shapes=known).feeds())
            feeds[name] = session.arrays(seeded)  # type: ignore[attr-defined]
            session.close()

        def measure(link: Link) -> Footprint:
            load = first = 0.0
            for opened, _ in needed.values():
                link.request("import", runtime=opened.runtime)
            before = link.request("memory")[0]["now"]
            for name, (opened, _) in needed.items():
                number = self._open(link, opened)
                load += opened.answer["load"]
                first += link.request("run", feeds[name], session=number)[0]["seconds"]
                for _ in range(2):
                    link.request("run", feeds[name], session=number)
            return Footprint(link.request("memory")[0]["peak"] or 0, before or 0, load, first)

        def in_a_fresh_one(_: Link) -> Footprint:
            with self.connection.fresh() as link:
                return measure(link)

        return self.connection.attempt(in_a_fresh_one)

    def probe(self) -> dict[str, Any]:
        """What the board says of itself, for a device profile."""
        found: dict[str, Any] = self.connection.attempt(lambda link: link.request("probe")[0]["probe"])
        return found

    def conditions(self) -> dict[str, Any]:
        """The board, its governor and its Python."""
        seen = self._state()
        version = ".".join(map(str, self.hello["version"]))
        found = {"machine": self.hello["machine"], "python": version, "governor": seen.get("governor")}
        if self.hello["model"]:
            found["board"] = self.hello["model"]
        return {key: value for key, value in found.items() if value}

    def detail(self) -> dict[str, Any]:
        """Temperature in degrees Celsius, clocks in Hz, and what held the clock down, while it was timed."""
        self._state()
        return self._observed.detail()

    @property
    def notes(self) -> list[str]:  # type: ignore[override]
        """What a reader of the figures should know."""
        supplied = [] if self._supply.note is None else [self._supply.note]
        return [*supplied, *self.connection.notes, *self._observed.notes]

    def clean(self) -> bool:
        """Deletes the userlands that were kept on the board; whether there were any.

        Raises:
            UnreachableError: The board cannot be reached.
        """
        try:
            return clean(self.command(removal(self._folder)), self.patience)
        except Lost as lost:
            message = f"the connection to {self.address} was lost: {lost.errors or lost.reason}"
            raise self.explain(lost) or UnreachableError(message.strip()) from lost

    def close(self) -> None:
        """Ends the agent, which deletes everything that it put on the board."""
        self.connection.close()

    # sessions

    def call(self, opened: Opened, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Makes one call, inputs and outputs in the file's order."""

        def work(link: Link) -> list[np.ndarray]:
            return link.request("run", arrays, session=self._ensure(link, opened))[1]

        found = self.connection.attempt(work)
        self.connection.advanced()
        return found

    def time(self, timer: BlockTimer, count: int) -> list[float]:
        """Times a block of calls, in seconds."""

        def work(link: Link) -> dict[str, Any]:
            session = self._ensure(link, timer.opened)
            generation = self.connection.generation
            cold = timer.fed is None or timer.fed[0] != generation
            if timer.fed is None or timer.fed[0] != generation:
                answer = link.request("feed", timer.arrays, session=session)[0]
                timer.fed = generation, answer["fed"]
            return link.request("block", fed=timer.fed[1], calls=count, untimed=5 if cold else 1)[0]

        answer = self.connection.attempt(work)
        self.connection.advanced()
        self._observed.add(answer["state"])
        times: list[float] = answer["times"]
        return times

    def release(self, opened: Opened) -> None:
        """Closes a model on the board, if the connection still stands."""
        if opened.remote is not None and opened.generation == self.connection.generation:
            self.connection.tell("close", session=opened.remote)
        opened.remote = None

    def _ensure(self, link: Link, opened: Opened) -> int:
        """Opens a model that the agent does not have open."""
        if opened.remote is None or opened.generation != self.connection.generation:
            opened.remote, opened.generation = self._open(link, opened), self.connection.generation
        return opened.remote

    def _open(self, link: Link, opened: Opened) -> int:
        """Sends the files that are not there and opens them; gives the agent's number."""
        digests = {name: hash_file(path) for name, path in opened.files.items()}
        for name, path in opened.files.items():
            self._shipping.send(link, path, digests[name])
        try:
            answer, _ = link.request(
                "open", files=digests, main=opened.main, runtime=opened.runtime, threads=opened.threads
            )
        except Refused as refused:
            refused.details["made_for"] = opened.made_for
            raise
        if opened.made_for and opened.made_for not in answer["runtime"].split():
            self._observed.other_version(opened.made_for, answer["runtime"])
        opened.answer = answer
        return int(answer["session"])

    def _state(self) -> dict[str, Any]:
        found: dict[str, Any] = self.connection.attempt(lambda link: link.request("state")[0]["state"])
        self._observed.add(found)
        return found

    def _start(self) -> str:
        """The board's side of the command: the first Python that there is, or the one that was sent there."""
        if (supplied := self._supply.start()) is not None:
            return supplied
        names = " ".join(words(name) for name in ([self._python] if self._python else self.pythons))
        script = (
            f'for p in {names}; do if command -v "$p" >/dev/null 2>&1; '
            f'then exec "$p" -u -c {shlex.quote(BOOT)}; fi; done; echo "edgeopt: no python" >&2; exit 127'
        )
        return f"exec sh -c {shlex.quote(script)}"
