"""Python packages for another machine, through the user's own pip or uv."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edgeopt.errors import UnreachableError
from edgeopt.runners.emulator.place import SETUP

PLATFORMS = {
    "aarch64": [f"manylinux_2_{minor}_aarch64" for minor in (34, 31, 28, 27, 26, 24, 17)]
    + ["manylinux2014_aarch64"],
    "armv7": [f"manylinux_2_{minor}_armv7l" for minor in (34, 31, 28, 17)] + ["linux_armv7l"],
}
"""Tags of wheels that run on the systems' C library (glibc 2.36 and later), the newest first."""

_UV_PLATFORMS = {"aarch64": "aarch64-manylinux_2_34"}
"""uv's names for machines; it has none for 32-bit ARM, where it starts pip."""

_TROUBLE = (
    (
        ("No space left",),
        "there is no room on the disk for the runtimes",
        "free about 300 MB, or name another --folder",
    ),
    (
        (
            "name resolution",
            "Name or service not known",
            "Connection refused",
            "Network is unreachable",
            "Could not connect",
            "dns error",
            "error sending request",
            "Max retries exceeded",
            "NewConnectionError",
        ),
        "the package index cannot be reached",
        f"{SETUP} --bundle FILE, with a bundle made on another machine",
    ),
    (
        ("No matching distribution", "no wheels with a matching", "No solution found", "no wheels"),
        "there is no wheel for this system",
        None,
    ),
)


def install(packages: Sequence[str], target: Path, arch: str | None, python: str) -> None:
    """Installs wheels into a folder, without what they depend on.

    Args:
        packages: With versions where they matter.
        target: The folder.
        arch: ``aarch64`` or ``armv7``; ``None`` for this machine itself.
        python: The version that they are for, such as ``3.11``.

    Raises:
        UnreachableError: There is neither pip nor uv, no network, no room, or no such wheel.
    """
    done = subprocess.run(
        command(packages, target, arch, python),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode == 0:
        return
    said = (done.stderr or done.stdout).strip()
    for words, meaning, hint in _TROUBLE:
        if found := next((word for word in words if word in said), None):
            line = next(line for line in said.splitlines() if found in line)
            raise UnreachableError(meaning, where=line.strip()[:200], hint=hint)
    lines = said.splitlines() or [f"it ended with {done.returncode}"]
    told = next((line for line in lines if line.lower().startswith("error")), lines[-1])
    raise UnreachableError(f"the packages {', '.join(packages)} cannot be installed", where=told[:200])


def command(packages: Sequence[str], target: Path, arch: str | None, python: str) -> list[str]:
    """The command that installs wheels: this Python's pip where it has one, else uv, else another pip.

    Raises:
        UnreachableError: There is none of them.
    """
    common = ["--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(target)]
    uv, other = shutil.which("uv"), shutil.which("pip3") or shutil.which("pip")
    if importlib.util.find_spec("pip") is not None:
        pip = [sys.executable, "-m", "pip"]
    elif uv and (arch is None or arch in _UV_PLATFORMS):
        foreign = ["--python-platform", _UV_PLATFORMS[arch], "--python-version", python] if arch else []
        return [uv, "pip", "install", *common, "--python", sys.executable, *foreign, *packages]
    elif other:
        pip = [other]
    elif uv:
        pip = [uv, "tool", "run", "pip"]
    else:
        raise UnreachableError(
            "there is neither pip nor uv on this machine, which fetch the runtimes",
            hint=f"python -m ensurepip, or {SETUP} --bundle FILE",
        )
    foreign = []
    if arch is not None:
        digits = python.replace(".", "")
        foreign = [word for tag in PLATFORMS[arch] for word in ("--platform", tag)]
        foreign += [
            "--implementation",
            "cp",
            "--python-version",
            python,
            "--abi",
            f"cp{digits}",
            "--abi",
            "abi3",
        ]
        foreign += ["--abi", "none"]
    return [*pip, "install", "--disable-pip-version-check", "--no-compile", *common, *foreign, *packages]
