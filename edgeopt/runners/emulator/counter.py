"""The plugin that counts instructions, compiled on this machine."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from edgeopt.errors import UnreachableError
from edgeopt.runners.emulator import qemu
from edgeopt.runners.emulator.place import Place, describe

SOURCE = Path(__file__).with_name("count.c")

HOW = "install a C compiler (apt-get install gcc), then: edgeopt emulator setup"


class NotCounting(Exception):
    """Why instructions are not counted, as a sentence."""


def make(place: Place) -> None:
    """Compiles the plugin and tries it.

    Raises:
        NotCounting: This QEMU loads no plugins, or there is no compiler, or the two do not fit.
    """
    held = place.part("qemu") or {}
    named = f"QEMU {held.get('version')} ({held.get('origin')})"
    if not held.get("plugins"):
        raise NotCounting(f"{named} loads no plugins, so instructions are not counted")
    compiler = _compiler()
    if compiler is None:
        raise NotCounting(f"there is no C compiler, so instructions are not counted; {HOW}")
    with place.making("counter") as folder:
        if (said := compile_plugin(compiler, folder / "count.so")) is not None:
            raise NotCounting(f"the plugin does not compile, so instructions are not counted: {said}")
        if (said := _try(place, folder)) is not None:
            raise NotCounting(f"{named} does not load the plugin, so instructions are not counted: {said}")
        describe(folder, {"compiler": " ".join(compiler), "qemu": held.get("version")})


def _compiler() -> list[str] | None:
    if named := shlex.split(os.environ.get("CC", "")):
        return named if shutil.which(named[0]) else None
    return next(([found] for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def compile_plugin(compiler: list[str], target: Path) -> str | None:
    """Compiles it; returns the compiler's first complaint, or ``None``."""
    flags = ["-O2", "-shared", "-fPIC", "-fvisibility=hidden"]
    try:
        done = subprocess.run(
            [*compiler, *flags, "-o", target, SOURCE], capture_output=True, text=True, timeout=120
        )
    except (OSError, subprocess.TimeoutExpired) as failure:
        return str(failure)
    if done.returncode == 0:
        return None
    return next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])


def _try(place: Place, folder: Path) -> str | None:
    """Counts what the system's loader does when it is asked for its version."""
    out = folder / "try.json"
    loader = next(iter(sorted(place.root("aarch64").glob("lib/ld-linux-aarch64.so*"))), None)
    if loader is None:
        raise UnreachableError("the system for aarch64 is not there: the plugin is tried on it")
    command = [
        *qemu.started(place, "aarch64"),
        "-plugin",
        f"{folder / 'count.so'},out={out}",
        os.fspath(loader),
        "--version",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as failure:
        return str(failure)
    loaded = done.returncode == 0 and out.is_file()
    out.unlink(missing_ok=True)
    return None if loaded else (done.stderr.strip().splitlines() or ["it says nothing"])[0]
