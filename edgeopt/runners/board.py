"""A board at the end of a wire: what ``ssh`` and ``adb`` have in common.

Models are opened on the board by the agent; their sessions speak the original's inputs and outputs here.
Every request is made again after a lost connection, so a run that loses one goes on where it was: calls
that were answered are not made again, and files go on from the byte that arrived.
"""

from __future__ import annotations

import re
import shlex
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import parse_qsl

import numpy as np
import onnx_ir as ir

from edgeopt.artifact import Artifact, open_artifact
from edgeopt.data.seeded import SeededSamples
from edgeopt.errors import (
    EdgeoptError,
    IntegrityError,
    ModelError,
    RuntimeFailure,
    UnreachableError,
    UserError,
    nearest,
)
from edgeopt.runners.base import Footprint, Runner
from edgeopt.runners.link import BOOT, Link, Lost, Patience, Refused
from edgeopt.runners.remote import OnnxOnBoard, TfliteOnBoard
from edgeopt.session import Session
from edgeopt.steps import hash_file

Found = TypeVar("Found")

RUNTIMES = {"onnxruntime": "onnxruntime", "tflite": "tflite"}
"""Targets whose artifacts the agent can run, and the runtime that it needs for them."""

CHUNK = 1 << 20
"""Bytes of a file that travel in one frame."""

SKEW = 60.0
"""Seconds between the two clocks that are worth a note."""


@dataclass(eq=False)
class Opened:
    """A model that is, or will again be, open on the board.

    Attributes:
        files: Its files by the name that they have on the board.
        main: The name of the main one.
        runtime: The runtime that it needs.
        threads: Threads of one operator.
        remote: The agent's number for it; ``None`` while no agent has it open.
        answer: What the agent said when it opened it.
        made_for: The runtime's version that an artifact was compiled for; "" for a plain model.
    """

    files: Mapping[str, Path]
    main: str
    runtime: str
    threads: int
    remote: int | None = None
    answer: dict[str, Any] = field(default_factory=dict)
    made_for: str = ""


class BlockTimer:
    """Times calls of a session on the board itself, so that the wire has no part in the figure."""

    def __init__(self, board: Board, opened: Opened, arrays: Sequence[np.ndarray]) -> None:
        self._board, self.opened, self.arrays = board, opened, arrays
        self.fed: tuple[int, int] | None = None

    def __call__(self) -> Any:
        """Makes one call."""
        return self._board.call(self.opened, self.arrays)

    def time(self, count: int) -> list[float]:
        """Times so many calls, in seconds, after one that is not timed."""
        return self._board.time(self, count)


class Board(Runner):
    """A machine that an agent is started on.

    Args:
        address: As given to ``--on``; ``?python=`` names another Python there, ``?folder=`` another folder.
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
            if name not in ("python", "folder"):
                raise UserError(
                    f"the address {address!r} has no option {name!r}",
                    nearest=nearest(name, ("python", "folder")),
                    hint=f"{self.address}?python=/path/to/python3",
                )
        self._python, self._folder = options.get("python"), options.get("folder")
        self.patience = patience or Patience()
        self.hello: dict[str, Any] = {}
        self.losses = 0
        self._link: Link | None = None
        self._sessions: list[Opened] = []
        self._failures = 0
        self._generation = 0
        self._reached: dict[str, int] = {}
        self._states: list[dict[str, Any]] = []
        self._skew = 0.0
        self._company = False
        self._other_versions: set[tuple[str, str]] = set()

    # what a kind of board must say

    @abstractmethod
    def command(self, remote: str) -> list[str]:
        """The client that runs a command on the board with this process's stdin and stdout."""

    @abstractmethod
    def explain(self, lost: Lost) -> UnreachableError | None:
        """What a failed connection means to a user; ``None`` where it may work the next time."""

    def forget(self) -> None:
        """Frees what the client shares between connections, after one was lost."""

    # the runner

    @property
    def where(self) -> str:  # type: ignore[override]
        """The board's own name."""
        if not self.hello:
            self.attempt(lambda link: None)
        name = self.hello["model"] if self.hello["machine"].startswith(("aarch64", "arm")) else ""
        return re.sub("[^a-z0-9]+", "-", (name or self.hello["name"] or self.address).lower()).strip("-")

    def open(self, source: str | Path, *, threads: int = 1) -> dict[str, Session]:
        """Sends the files and opens them there; see the base class."""
        sessions: dict[str, Session] = {}
        for name, (opened, part) in _parts(Path(source), threads).items():
            self._sessions.append(opened)
            self.attempt(lambda link, wanted=opened: self._ensure(link, wanted))  # type: ignore[misc]
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
        peak = before = 0
        load = first = 0.0
        needed = _parts(Path(source), threads)
        feeds: dict[str, list[np.ndarray]] = {}
        for name, session in self.open(source, threads=threads).items():
            own = {spec.name for spec in session.inputs}
            known = {key: shape for key, shape in (shapes or {}).items() if key in own}
            seeded = next(SeededSamples(session.inputs, 1, shapes=known).feeds())
            feeds[name] = session.arrays(seeded)  # type: ignore[attr-defined]
            session.close()

        def measure(link: Link) -> tuple[int, int, float, float]:
            load = first = 0.0
            for opened, _ in needed.values():
                link.request("import", runtime=opened.runtime)
            before = link.request("memory")[0]["now"]
            for name, (opened, _) in needed.items():
                opened.remote = None
                self._ensure(link, opened)
                load += opened.answer["load"]
                first += link.request("run", feeds[name], session=opened.remote)[0]["seconds"]
                for _ in range(2):
                    link.request("run", feeds[name], session=opened.remote)
            return link.request("memory")[0]["peak"], before, load, first

        def in_a_fresh_one(_: Link) -> tuple[int, int, float, float]:
            with self._fresh() as link:
                return measure(link)

        peak, before, load, first = self.attempt(in_a_fresh_one)
        return Footprint(peak or 0, before or 0, load, first)

    def probe(self) -> dict[str, Any]:
        """What the board says of itself, for a device profile."""
        found: dict[str, Any] = self.attempt(lambda link: link.request("probe")[0]["probe"])
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
    def notes(self) -> list[str]:  # type: ignore[override]
        """What a reader of the figures should know."""
        found = []
        if abs(self._skew) > SKEW:
            side = "behind" if self._skew < 0 else "ahead of"
            found.append(
                f"the board's clock is {abs(self._skew):.0f} s {side} this machine's; no figure depends on it"
            )
        if reasons := sorted({reason for state in self._states for reason in state.get("throttled", ())}):
            found.append(f"the board held its clock down while it was timed: {', '.join(reasons)}")
        governors = {name for state in self._states for name in state.get("governor", ())}
        if governors - {"performance"}:
            found.append(f"the board's governor is {', '.join(sorted(governors))}: its clock may vary")
        if self._company:
            found.append("another edgeopt was at work on the board: times may be longer than they are alone")
        for made_for, has in sorted(self._other_versions):
            found.append(f"the artifact was compiled for version {made_for}, the board has {has}")
        if self.losses:
            times = "once" if self.losses == 1 else f"{self.losses} times"
            found.append(f"the connection was lost {times} and taken up again; nothing was lost with it")
        return found

    def close(self) -> None:
        """Ends the agent, which deletes everything that it put on the board."""
        link, self._link = self._link, None
        if link is not None and not link.finish() and self.hello:
            # The board may be there all the same: what an agent left, the next one deletes.
            # If it is not, the cleaner that the agent became deletes the folder.
            with suppress(Lost, EdgeoptError), self._fresh():
                pass
        self.forget()

    # sessions

    def call(self, opened: Opened, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Makes one call, inputs and outputs in the file's order."""

        def work(link: Link) -> list[np.ndarray]:
            return link.request("run", arrays, session=self._ensure(link, opened))[1]

        found = self.attempt(work)
        self._failures = 0
        return found

    def time(self, timer: BlockTimer, count: int) -> list[float]:
        """Times a block of calls."""

        def work(link: Link) -> dict[str, Any]:
            session = self._ensure(link, timer.opened)
            cold = timer.fed is None or timer.fed[0] != self._generation
            if timer.fed is None or timer.fed[0] != self._generation:
                answer = link.request("feed", timer.arrays, session=session)[0]
                timer.fed = self._generation, answer["fed"]
            return link.request("block", fed=timer.fed[1], calls=count, untimed=5 if cold else 1)[0]

        answer = self.attempt(work)
        self._failures = 0
        self._states.append(answer["state"])
        times: list[float] = answer["times"]
        return times

    def release(self, opened: Opened) -> None:
        """Closes a model on the board, if the connection still stands."""
        if opened in self._sessions:
            self._sessions.remove(opened)
        if self._link is not None and opened.remote is not None:
            try:
                self._link.request("close", session=opened.remote, patience=10.0)
            except Lost as lost:
                self._drop(lost)
        opened.remote = None

    # connections

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
                if self._failures >= self.patience.attempts:
                    raise self._given_up(lost) from lost
                time.sleep(self.patience.pause * 2 ** (self._failures - 1))
            except Refused as refused:
                raise self._refused(refused) from refused

    def _connect(self) -> Link:
        try:
            started = time.time()
            link = Link(self.command(self._remote()), self.patience)
            silence = max(2 * self.patience.silence, 3 * self.patience.ping)
            try:
                answer, _ = link.request(
                    "hello",
                    grace=self.patience.grace,
                    silence=silence,
                    folder=self._folder,
                    patience=self.patience.connect,
                )
            except BaseException:
                link.abandon()
                raise
        except Lost as lost:
            if (error := self.explain(lost)) is not None:
                self.forget()
                raise error from lost
            raise
        if not self.hello:
            self._company = not answer["alone"]
        self.hello = answer
        self._skew = answer["time"] - (started + time.time()) / 2
        return link

    @contextmanager
    def _fresh(self) -> Iterator[Link]:
        link = self._connect()
        try:
            yield link
        except BaseException:
            link.abandon()
            raise
        if not link.finish():
            raise Lost("the connection was closed")

    def _drop(self, lost: Lost) -> None:
        if self._link is not None:
            self.losses += 1
            self._link.abandon()
        self._link = None
        self._generation += 1
        for opened in self._sessions:
            opened.remote = None
        self.forget()

    def _ensure(self, link: Link, opened: Opened) -> int:
        """Opens a model that no agent has open, sending the files that are not there."""
        if opened.remote is None:
            digests = {name: hash_file(path) for name, path in opened.files.items()}
            for name, path in opened.files.items():
                self._send(link, path, digests[name])
            try:
                answer, _ = link.request(
                    "open", files=digests, main=opened.main, runtime=opened.runtime, threads=opened.threads
                )
            except Refused as refused:
                refused.details["made_for"] = opened.made_for
                raise
            if opened.made_for and opened.made_for not in answer["runtime"].split():
                self._other_versions.add((opened.made_for, answer["runtime"]))
            opened.remote, opened.answer = int(answer["session"]), answer
        return opened.remote

    def _send(self, link: Link, path: Path, digest: str) -> None:
        size = path.stat().st_size
        answer, _ = link.request("put", sha=digest, size=size)
        if answer["done"]:
            return
        with path.open("rb") as file:
            start = int(answer["have"])
            file.seek(start)
            while start < size or size == 0:
                piece = file.read(CHUNK)
                link.send("chunk", {"sha": digest, "offset": start}, (piece,))
                start += len(piece)
                if start > self._reached.get(digest, 0):
                    self._reached[digest], self._failures = start, 0
                if not piece:
                    break
        try:
            link.request("done", sha=digest)
        except Refused as refused:
            if refused.kind != "checksum":
                raise
            raise Lost(f"the file {path.name} arrived damaged") from refused

    def _state(self) -> dict[str, Any]:
        found: dict[str, Any] = self.attempt(lambda link: link.request("state")[0]["state"])
        self._states.append(found)
        return found

    def _remote(self) -> str:
        """The board's side of the command: the first Python that there is."""
        words = " ".join(_quoted(name) for name in ([self._python] if self._python else self.pythons))
        script = (
            f'for p in {words}; do if command -v "$p" >/dev/null 2>&1; '
            f'then exec "$p" -u -c {shlex.quote(BOOT)}; fi; done; echo "edgeopt: no python" >&2; exit 127'
        )
        return f"exec sh -c {shlex.quote(script)}"

    # errors

    def _given_up(self, lost: Lost) -> UnreachableError:
        last = lost.errors.splitlines()[-1] if lost.errors else ""
        again = f", {self._failures} times in a row" if self._failures > 1 else ""
        return UnreachableError(
            f"the connection to {self.address} was lost{again}: {last or lost.reason}",
            hint="look whether the board is up, and short of memory or power",
        )

    def _refused(self, refused: Refused) -> EdgeoptError:
        details = refused.details
        if refused.kind == "runtime-missing":
            return self._missing(refused)
        if refused.kind == "disk":
            return RuntimeFailure(
                refused.message, hint=f"free some, or name another: {self.address}?folder=/path"
            )
        if refused.kind == "memory":
            hint = "end what else runs there, or take a smaller model" if details else None
            return RuntimeFailure(refused.message or "the board is out of memory", hint=hint)
        if refused.kind == "open":
            has = f"{details['runtime']} {details['version']}".strip()
            made_for = details.get("made_for")
            return RuntimeFailure(
                f"the board's {has} cannot load the model: {refused.message}",
                where=self.address,
                hint=f"it was compiled for {made_for}: compile it for a device that carries {has}"
                if made_for and made_for != details["version"]
                else None,
            )
        if refused.kind == "folder":
            return RuntimeFailure(refused.message, hint=f"name one: {self.address}?folder=/path")
        return RuntimeFailure(f"{self.address} fails: {refused.message}")

    def _missing(self, refused: Refused) -> RuntimeFailure:
        details = refused.details
        python = details["python"]
        version = tuple(details.get("version", (3, 0)))
        names = {"tflite": "ai-edge-litert" if version >= (3, 10) else "tflite-runtime"}
        package = names.get(details["family"], details["family"])
        install = f"{python} -m pip install {package}"
        if details.get("managed"):
            install = (
                f"python3 -m venv ~/edgeopt && ~/edgeopt/bin/pip install {package}, "
                f"then --on '{self.address}?python=~/edgeopt/bin/python'"
            )
        what = (
            f"cannot be loaded: {refused.message}" if details["broken"] else f"is not installed for {python}"
        )
        return RuntimeFailure(f"{package} {what}", where=self.address, hint=f"on the board: {install}")


def _quoted(name: str) -> str:
    """A path for the board's shell, with ~ for its home."""
    return f'"$HOME"/{shlex.quote(name[2:])}' if name.startswith("~/") else shlex.quote(name)


def _parts(path: Path, threads: int) -> dict[str, tuple[Opened, Mapping[str, Any]]]:
    """The files of every part of a model or artifact, and its manifest."""
    if not path.exists():
        raise ModelError(f"there is no model or artifact {str(path)!r}")
    if path.is_dir():
        artifact = open_artifact(path)
        runtime = RUNTIMES.get(artifact.manifest["target"])
        if runtime is None:
            raise ModelError(
                f"artifacts for {artifact.manifest['target']} do not run on boards through edgeopt",
                hint=f"those for {' and '.join(RUNTIMES)} do",
            )
        made_for = artifact.manifest.get("runtime", {}).get("version", "")
        return {
            name: (Opened(*_files(artifact, part), runtime, threads, made_for=made_for), part)
            for name, part in artifact.parts.items()
        }
    if path.suffix not in (".onnx", ".ort"):
        raise ModelError(
            f"{path.name!r} does not run on a board by itself",
            hint="give an .onnx file or the folder of an artifact",
        )
    files = {path.name: path}
    if path.suffix == ".onnx":
        for graph in ir.load(path).graphs():
            for value in graph.initializers.values():
                if isinstance(value.const_value, ir.ExternalTensor):
                    files[str(value.const_value.location)] = path.parent / value.const_value.location
    return {"model": (Opened(files, path.name, "onnxruntime", threads), {})}


def _files(artifact: Artifact, part: Mapping[str, Any]) -> tuple[dict[str, Path], str]:
    """The model files that lie beside a part's main one, checked against the manifest."""
    main = Path(part["model"])
    files = {}
    for entry in artifact.manifest["files"]:
        path = Path(entry["path"])
        if entry["role"] == "model" and path.is_relative_to(main.parent):
            if not (artifact.folder / path).is_file() or hash_file(artifact.folder / path) != entry["sha256"]:
                raise IntegrityError(
                    f"the file {entry['path']!r} is missing or differs from the manifest",
                    where=str(artifact.folder),
                    hint="compile it again",
                )
            files[path.relative_to(main.parent).as_posix()] = artifact.folder / path
    return files, main.name
