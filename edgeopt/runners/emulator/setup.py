"""Fetching the emulator: part by part, each whole or not there."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from edgeopt.errors import UnreachableError
from edgeopt.runners.emulator import counter, qemu, system
from edgeopt.runners.emulator.place import Arch, Place, check_host, native
from edgeopt.runners.emulator.sources import Sources
from edgeopt.watch import QUIET, Watch

NEEDED = 700 << 20
"""Bytes free on the disk before anything is fetched; 300 MB of them are free again afterwards."""


def setup(
    place: Place,
    *,
    armv7: bool = False,
    sources: Path | None = None,
    mirror: str | None = None,
    watch: Watch = QUIET,
) -> list[str]:
    """Fetches what is not there yet.

    Args:
        place: Where to.
        armv7: The 32-bit system and tflite-runtime too.
        sources: A file of apt sources that have ARM packages, where the machine's own have none.
        mirror: The address of a mirror of Debian, where the machine's own sources name none.
        watch: Shows progress.

    Returns:
        What the user should know: what is not there, and why.

    Raises:
        UnreachableError: A tool, the network or the disk is missing; what was fetched stays for next time.
    """
    check_host()
    archs: list[Arch] = ["aarch64", "armv7"] if armv7 else ["aarch64"]
    notes: list[str] = []
    with locked(place):
        steps = _steps(place, archs, sources, mirror, notes)
        for name, work in watch.progress(steps, "emulator", len(steps)):
            watch.step(name)
            work()
        if all(place.has(arch) for arch in archs):
            shutil.rmtree(place.folder / "downloads", ignore_errors=True)
    return notes


def _steps(
    place: Place, archs: list[Arch], sources: Path | None, mirror: str | None, notes: list[str]
) -> list[tuple[str, Callable[[], None]]]:
    """What is to be done, in order."""
    found: list[tuple[str, Callable[[], None]]] = []
    missing = [arch for arch in archs if place.part(f"{arch}-system") is None]
    emulated = [arch for arch in archs if not native(arch)]
    wants_qemu = bool(emulated) and place.part("qemu") is None
    if missing or wants_qemu:
        machine = qemu.DEBIAN.get(platform.machine().lower())
        if machine is None:
            raise UnreachableError(f"the emulator does not run on {platform.machine()}")
        _check_room(place)
        wanted = list(dict.fromkeys([machine, *(system.DEBIAN[arch] for arch in archs)]))
        source = Sources(place, wanted, sources, mirror)
        if missing or not shutil.which(qemu.BINARIES["aarch64"]):
            found.append(("read the lists of packages", source.update))
        if wants_qemu:
            found.append(("fetch QEMU", lambda: notes.extend(source.make_qemu())))
        found += [(f"fetch the system for {arch}", partial(source.make_system, arch)) for arch in missing]
    found += [
        (f"fetch the runtimes for {arch}", partial(system.make_runtimes, place, arch))
        for arch in archs
        if place.part(f"{arch}-runtimes") is None or arch in missing
    ]
    if emulated and place.counter is None:

        def count() -> None:
            try:
                counter.make(place)
            except counter.NotCounting as reason:
                notes.append(str(reason))

        found.append(("compile the counter", count))
    return found


def _check_room(place: Place) -> None:
    place.folder.mkdir(parents=True, exist_ok=True)
    info = os.statvfs(place.folder)
    free = info.f_bavail * info.f_frsize
    if free < NEEDED:
        raise UnreachableError(
            f"there are {free >> 20} MB free on the disk, and the emulator needs {NEEDED >> 20} MB",
            where=str(place.folder),
            hint="free some, or name another folder with --folder",
        )


@contextmanager
def locked(place: Place) -> Iterator[None]:
    """Keeps two setups from working on one folder.

    Raises:
        UnreachableError: Another one is at work.
    """
    place.folder.mkdir(parents=True, exist_ok=True)
    with (place.folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UnreachableError(
                "another edgeopt is setting the emulator up", where=str(place.folder), hint="wait for it"
            ) from None
        yield
