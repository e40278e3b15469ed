"""Where the emulator's parts lie, and what is there.

A part is a folder that is made under a temporary name and renamed when whole, with a ``part.json`` that says
what it holds. So an interrupted setup goes on with the part that it was at.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeopt.errors import UnreachableError
from edgeopt.steps import default_folder

Arch = Literal["aarch64", "armv7"]

FORMAT = 1
"""Parts made by an edgeopt that laid them out otherwise are made again."""

SETUP = "edgeopt emulator setup"


@dataclass(frozen=True, slots=True)
class Place:
    """The emulator's own folder.

    Its parts: ``qemu``, ``counter`` (the plugin that counts), and per architecture ``aarch64-system`` (the C
    library and Python) and ``aarch64-runtimes``.
    """

    folder: Path

    def part(self, name: str) -> dict[str, Any] | None:
        """What a part holds; ``None`` where it is not there, or was made by another layout."""
        try:
            data = json.loads((self.folder / name / "part.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return data if isinstance(data, dict) and data.get("format") == FORMAT else None

    def parts(self) -> dict[str, dict[str, Any]]:
        """Every part that is there, by its name."""
        try:
            names = sorted(path.parent.name for path in self.folder.glob("*/part.json"))
        except OSError:
            return {}
        found = {name: self.part(name) for name in names}
        return {name: held for name, held in found.items() if held is not None}

    def has(self, arch: Arch) -> bool:
        """Whether models can run on an architecture."""
        needed = [f"{arch}-system", f"{arch}-runtimes"] + ["qemu"] * (not native(arch))
        return all(self.part(name) is not None for name in needed)

    def root(self, arch: Arch) -> Path:
        """The root of an architecture's system."""
        return self.folder / f"{arch}-system" / "root"

    def site(self, arch: Arch) -> Path:
        """The folder of its runtimes' packages."""
        return self.folder / f"{arch}-runtimes" / "site"

    @property
    def counter(self) -> Path | None:
        """The plugin that counts; ``None`` where it is not there."""
        path = self.folder / "counter" / "count.so"
        return path if self.part("counter") is not None and path.is_file() else None

    def size(self) -> int:
        """The bytes that all parts take."""
        return sum(
            path.lstat().st_size
            for path in self.folder.rglob("*")
            if path.is_file() and not path.is_symlink() and "boards" not in path.parts
        )

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """Gives a folder that becomes the part when the block ends without an error.

        The block writes ``part.json`` through ``describe``.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = self.folder / f".new-{name}"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        try:
            yield fresh
            target = self.folder / name
            shutil.rmtree(target, ignore_errors=True)
            fresh.rename(target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def describe(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes what a part holds."""
    text = json.dumps({"format": FORMAT, **content}, indent=1, sort_keys=True)
    (folder / "part.json").write_text(text, encoding="utf-8")


def find_place(folder: Path | None = None) -> Place:
    """The folder named, that of ``EDGEOPT_EMULATOR``, or ``emulator`` in edgeopt's cache."""
    named = folder or (Path(chosen) if (chosen := os.environ.get("EDGEOPT_EMULATOR")) else None)
    return Place((named or default_folder() / "emulator").expanduser().absolute())


def native(arch: Arch) -> bool:
    """Whether this machine runs an architecture's programs itself."""
    return arch == "aarch64" and platform.machine().lower() in ("aarch64", "arm64")


def check_host() -> None:
    """Refuses what is not Linux.

    Raises:
        UnreachableError: QEMU's user mode needs Linux.
    """
    system = platform.system()
    if system != "Linux":
        name = {"Darwin": "macOS"}.get(system, system)
        raise UnreachableError(
            f"the emulator needs Linux: QEMU's user mode, which it uses, does not exist on {name}",
            hint="run edgeopt in a Linux container or virtual machine, or measure with --on ssh://user@board",
        )
