"""The runner behind ``--on emulator``: an agent on an emulated board."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from edgeopt.artifact import is_artifact, open_artifact
from edgeopt.errors import RuntimeFailure, UnreachableError, UserError
from edgeopt.evidence import Evidence
from edgeopt.platform import Device, load_device
from edgeopt.runners.base import Footprint
from edgeopt.runners.board import Board
from edgeopt.runners.connection import Connection
from edgeopt.runners.emulator import boards, counts, prefixes, qemu
from edgeopt.runners.emulator.place import SETUP, Arch, Place, check_host, find_place, native
from edgeopt.runners.link import BOOT, Link, Lost, Patience
from edgeopt.runners.remote import OnnxOnBoard, TfliteOnBoard
from edgeopt.runners.shipping import Opened, parts_of
from edgeopt.session import Session

PATIENCE = Patience(connect=300.0, silence=600.0, answer=7200.0, ping=200.0, grace=0.0, attempts=2)
"""Emulated code is slow, a process on this machine is not lost as a connection is, and signs of life would be
counted."""

CALLS = 5
"""Calls that are counted; the lowest count stands."""


class Emulator(Board):
    """A board of a device profile, emulated on this machine.

    Args:
        address: ``emulator``, or ``emulator:DEVICE``; without a device the artifact's own is taken.
        patience: How long things may take.
        place: Where the emulator lies.
        counting: Load the plugin that counts instructions.
        caches: Let it model the caches too, which takes twice as long.

    Raises:
        UnreachableError: It is not set up, or this machine cannot run it.
        ProfileError: The device is not known, or no emulated core stands for its own.
    """

    scheme: ClassVar[str] = "emulator"
    how: Literal["measured", "emulated"] = "emulated"

    def __init__(
        self,
        address: str = "emulator",
        patience: Patience = PATIENCE,
        *,
        place: Place | None = None,
        counting: bool = False,
        caches: bool = True,
    ) -> None:
        word, _, name = address.partition(":")
        super().__init__(f"{word}?userland=no", patience)
        self.address = address
        self.place = place or find_place()
        # Made when the board is first reached; the agent's own folder lies in it.
        self._private = Path(tempfile.gettempdir()) / f"edgeopt-emulator-{os.getpid()}-{secrets.token_hex(4)}"
        self.connection = _Process(self, self._start, str(self._private / "board"), patience)
        self._counting, self._caches = counting, caches
        self._board: tuple[Device, boards.Emulated] | None = None
        self._marks = 0
        if name:
            self.choose(load_device(name))

    @classmethod
    def beside(cls, other: Emulator) -> Emulator:
        """One more process of the same board, without counting."""
        made = cls(other.address, other.patience, place=other.place)
        made._board = other._board
        return made

    def choose(self, device: Device) -> None:
        """Takes the board of a device; see the class for errors."""
        check_host()
        arch: Arch = "armv7" if device.cpu.arch == "armv7" else "aarch64"
        if device.cpu.arch != "x86_64":
            self._check(arch)
        held = self.place.part("qemu") or {}
        available = held.get("cores", {}).get(arch, [])
        if native(arch):
            available = sorted({cluster.core for cluster in device.cpu.clusters})
        self._board = device, boards.emulated(device, available, held.get("version", ""))

    def _check(self, arch: Arch) -> None:
        if self.place.has(arch):
            return
        option = " --armv7" if arch == "armv7" else ""
        what = "the emulator is" if not self.place.has("aarch64") else f"the emulator's system for {arch} is"
        raise UnreachableError(f"{what} not set up", where=str(self.place.folder), hint=f"{SETUP}{option}")

    @property
    def device(self) -> Device:
        """The device whose board this is."""
        return self.board[0]

    @property
    def core(self) -> boards.Emulated:
        """The core that stands for the device's."""
        return self.board[1]

    @property
    def board(self) -> tuple[Device, boards.Emulated]:
        """The device and the core that stands for its own.

        Raises:
            UserError: None is chosen yet.
        """
        if self._board is None:
            raise UserError("the emulator needs a device", hint="--device raspberry-pi-4")
        return self._board

    @property
    def where(self) -> str:  # type: ignore[override]
        """The device's name."""
        return self.device.name

    def command(self, remote: str) -> list[str]:
        """QEMU with the board, the plugin, and the system's Python; nothing of this environment."""
        arch, core = self.core.arch, self.core
        root, site = self.place.root(arch), self.place.site(arch)
        python = root / "usr/bin" / f"python{(self.place.part(f'{arch}-system') or {})['python']}"
        private = self._private
        private.mkdir(mode=0o700, exist_ok=True)
        variables = {
            "PATH": "/usr/bin",
            "HOME": private,
            "TMPDIR": private,
            "PYTHONPATH": site,
            "PYTHONNOUSERSITE": "1",
            "PYTHONHASHSEED": "0",  # else the order of sets, and with it the count, is drawn anew
            "LANG": "C.UTF-8",
        }
        clean = ["env", "-i", *(f"{key}={value}" for key, value in variables.items())]
        run = [os.fspath(python), "-u", "-c", BOOT]
        if native(arch):
            loader = next(iter(sorted((root / "lib").glob("ld-linux-*"))))
            libraries = ":".join(str(path) for path in _libraries(root))
            return [*clean, os.fspath(loader), "--library-path", libraries, *run]
        overlay = boards.make(self.place.folder / "boards", root, boards.files(*self.board))
        plugin = ["-plugin", self._plugin()] if self._counting else []
        emulator = [*qemu.started(self.place, arch), "-cpu", core.cpu, "-L", os.fspath(overlay)]
        return [*clean, *emulator, *plugin, *run]

    def _plugin(self) -> str:
        counter = self.place.counter
        if counter is None:
            raise UnreachableError("the plugin that counts instructions is not there", hint=SETUP)
        words = [str(counter), f"out={self._counts}"]
        if self._caches:
            words.append("caches=" + "+".join(f"{size}:{ways}" for size, ways in self.core.caches))
        if any("," in word for word in words):
            raise UserError("the emulator's folder has a comma in its name, which QEMU cannot take")
        return ",".join(words)

    @property
    def _counts(self) -> Path:
        return self._private / "counts.jsonl"

    @property
    def counts_instructions(self) -> bool:
        """Whether the emulator can count on this board."""
        return self.place.counter is not None and not native(self.core.arch)

    def count_from_now(self) -> None:
        """Loads the plugin when the board is first reached."""
        self._counting = True

    def take(self, source: str | Path, device: str | None) -> None:
        """Takes the device asked for, else that of the address, else the one that an artifact was made for.

        Raises:
            UserError: There is none of them.
        """
        path = Path(source)
        if device is not None:
            self.choose(load_device(device))
        elif self._board is None and is_artifact(path):
            self.choose(load_device(str(open_artifact(path).manifest["device"])))
        _ = self.board

    def open(self, source: str | Path, *, threads: int = 1) -> dict[str, Session]:
        """Opens a model or artifact on the board; see the base class."""
        if self._board is None:
            self.take(source, None)
        if self.core.arch == "armv7":
            for opened, _ in parts_of(Path(source), threads).values():
                if opened.runtime != "tflite":
                    raise RuntimeFailure(
                        "the emulator's 32-bit system runs TFLite artifacts alone",
                        hint="--target tflite when compiling, or a 64-bit device",
                    )
        try:
            return super().open(source, threads=threads)
        except RuntimeFailure as failure:
            if "on the board" not in (failure.hint or ""):
                raise
            again = f"edgeopt emulator remove, then {SETUP}"  # nobody installs anything on this board
            raise RuntimeFailure(
                failure.message.partition(": ")[0], where=self.where, hint=again
            ) from failure

    def count(self, session: Session, feeds: Mapping[str, np.ndarray], calls: int = CALLS) -> counts.Counts:
        """Counts the instructions of one call.

        Args:
            session: One that this runner opened.
            feeds: The inputs of the call.
            calls: How often it is made.

        Raises:
            RuntimeFailure: The runtime fails.
        """
        if not isinstance(session, (OnnxOnBoard, TfliteOnBoard)):
            raise UserError("the session is not one of this board")
        return self._count(session.opened, session.arrays(feeds), calls)

    def layers(
        self,
        session: Session,
        feeds: Mapping[str, np.ndarray],
        progress: Callable[[Iterable[Any], str, int | None], Iterable[Any]] | None = None,
    ) -> list[tuple[prefixes.Prefix, counts.Counts]]:
        """Counts every layer of a model, approximately: see ``prefixes``.

        Args:
            session: One that this runner opened.
            feeds: The inputs of the call.
            progress: Wraps an iterable with a progress bar: (items, label, total).
        """
        if not isinstance(session, (OnnxOnBoard, TfliteOnBoard)):
            raise UserError("the session is not one of this board")
        arrays, opened = session.arrays(feeds), session.opened
        found: list[tuple[prefixes.Prefix, counts.Counts]] = []
        before: counts.Counts | None = None
        with tempfile.TemporaryDirectory(prefix="edgeopt-layers-") as folder:
            cut = prefixes.write(opened.files[opened.main], Path(folder))
            for prefix in cut if progress is None else progress(cut, "layers", len(cut)):
                name = prefix.file.name
                own = Opened({name: prefix.file}, name, opened.runtime, opened.threads)
                after = self._count(own, arrays, 1)
                found.append((prefix, after if before is None else after.minus(before)))
                before = after
                self.release(own)
        return found

    def _count(self, opened: Opened, arrays: Sequence[np.ndarray], calls: int) -> counts.Counts:
        def work(link: Link) -> counts.Counts:
            number = self._ensure(link, opened)
            first = self._marks + 1
            self._marks += counts.marks_of(calls)
            asked = {"session": number, "calls": calls, "first": first, "empty": counts.EMPTY}
            link.request("count", arrays, **asked)
            return counts.read(self._counts, first, calls)

        return self.connection.attempt(work)

    def evidence(self, found: counts.Counts, session: Session, conditions: Mapping[str, Any]) -> Evidence:
        """Counts as evidence: the total as its value, everything else in its detail."""
        detail = found.detail()
        if found.memory:
            levels = zip(("l1d", "l2", "l3"), self.core.caches, strict=False)
            detail["caches_modelled"] = {name: {"bytes": size, "ways": ways} for name, (size, ways) in levels}
        return Evidence(
            quantity="instructions",
            value=float(found.total),
            unit="",
            how="emulated",
            where=self.where,
            n=found.calls,
            runtime=getattr(session, "runtime", ""),
            conditions={**conditions, **self.conditions()},
            detail={**detail, "spread": found.spread},
        )

    def footprint(
        self, source: str | Path, *, threads: int = 1, shapes: Mapping[str, Sequence[int]] | None = None
    ) -> Footprint:
        """Refuses: the memory of an emulated process is the emulator's too.

        Raises:
            UserError: Always.
        """
        raise UserError(
            "an emulated process tells nothing of a board's memory", hint="--on predict, or a real board"
        )

    def conditions(self) -> dict[str, Any]:
        """The emulator and the core that stands for the device's."""
        held = self.place.part("qemu") or {}
        name = "none: this machine is ARM" if native(self.core.arch) else f"QEMU {held.get('version')}"
        return {"emulator": name, **boards.described(self.core)}

    def detail(self) -> dict[str, Any]:
        """Nothing: an emulated board has no temperature."""
        return {}

    @property
    def notes(self) -> list[str]:  # type: ignore[override]
        """What a reader of the figures should know."""
        found = self._observed.notes
        if self._board is not None and self.core.differs:
            found.insert(0, f"the emulated {self.core.cpu} {', '.join(self.core.differs)}")
        return found

    def explain(self, lost: Lost) -> UnreachableError | None:
        """What a process that ended means."""
        last = next((line for line in reversed(lost.errors.splitlines()) if line.strip()), "")
        if "Illegal instruction" in lost.errors:
            return UnreachableError(
                f"the runtime used an instruction that QEMU's {self.core.cpu} lacks",
                where=last,
                hint="the board may lack it too: another precision or runtime",
            )
        if "cannot be started" in lost.reason:
            return UnreachableError(lost.reason, hint=f"{SETUP}, again")
        if "did not start" in lost.reason:
            return UnreachableError(
                "the emulated Python does not start",
                where=last or lost.reason,
                hint=f"edgeopt emulator remove, then {SETUP}",
            )
        return None

    def close(self) -> None:
        """Ends the process and deletes its files."""
        super().close()
        shutil.rmtree(self._private, ignore_errors=True)


class _Process(Connection):
    """A connection that is a process of this machine: what ends it is its own fault."""

    def _given_up(self, lost: Lost) -> UnreachableError:
        last = lost.errors.splitlines()[-1] if lost.errors else lost.reason
        return self._client.explain(lost) or UnreachableError(f"the emulated process ended: {last}")


def _libraries(root: Path) -> list[Path]:
    """The folders of a system's libraries."""
    return [
        path
        for path in sorted([*root.glob("lib/*-linux-*"), *root.glob("usr/lib/*-linux-*")])
        if path.is_dir()
    ]
