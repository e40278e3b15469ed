"""Debian 12 as a second source, for what a machine's own apt sources do not offer.

Debian 13 has a static QEMU and Ubuntu 24.04 one built without plugins; Ubuntu keeps its ARM packages on a
mirror of their own; and Debian 13's Python is too new for 32-bit wheels of tflite-runtime. Debian 12 has all
of it. apt fetches it with Debian's own keys, which come from the machine or, on Ubuntu, from its package
debian-archive-keyring, so everything stays as checked as it is otherwise.
"""

from __future__ import annotations

from pathlib import Path

from edgeopt.runners.emulator import apt

RELEASE = "bookworm"
NAME = "Debian 12"
PYTHON = "3.11"
"""Its Python's version."""

KEYRING = "debian-archive-keyring"
KEYRINGS = Path("/usr/share/keyrings")


def second(own: apt.Apt, architecture: str, beside: Path, named: str | None = None) -> apt.Apt:
    """Debian 12 for one architecture, with its lists fetched.

    Args:
        own: The machine's own sources, which have the keys where the machine has not.
        architecture: In Debian's terms.
        beside: A folder; its own folders go there.
        named: The address of a mirror of Debian; that of the machine's own sources by default.

    Raises:
        Missing: There are no keys of Debian, or no mirror is known.
        UnreachableError: The mirror cannot be reached, or cannot be trusted.
    """
    folder = beside / f"{RELEASE}-{architecture}"
    folder.mkdir(parents=True, exist_ok=True)
    entry = {
        "Types": "deb",
        "URIs": named or mirror(own),
        "Suites": f"{RELEASE} {RELEASE}-updates",
        "Components": "main",
        "Architectures": architecture,
        "Signed-By": str(keyring(own, beside)),
    }
    file = folder / f"{RELEASE}.sources"
    file.write_text("".join(f"{key}: {value}\n" for key, value in entry.items()), encoding="utf-8")
    made = apt.Apt(folder, architecture, file, alone=True)
    made.update()
    return made


def mirror(own: apt.Apt) -> str:
    """The mirror of Debian that the machine's own sources name.

    Raises:
        Missing: They name none, as on Ubuntu.
    """
    for line in own.indexes("$(ORIGIN)|$(LABEL)|$(REPO_URI)"):
        origin, label, address = line.split("|", 2)
        if (origin, label) == ("Debian", "Debian"):
            return address
    raise apt.Missing("the machine's sources name no mirror of Debian; --debian-mirror URL does")


def keyring(own: apt.Apt, beside: Path) -> Path:
    """The file of Debian's keys: the machine's, else out of the package that its own sources have.

    Raises:
        Missing: Neither is there.
    """
    for folder in (KEYRINGS, beside / KEYRING / "usr/share/keyrings"):
        for suffix in (".gpg", ".pgp"):
            if (path := folder / f"{KEYRING}{suffix}").is_file():
                return path
    packages = [path for path in own.fetch([KEYRING]) if apt.name_of(path) == KEYRING]
    apt.unpack(packages, beside / KEYRING)
    for path in sorted((beside / KEYRING).rglob(f"{KEYRING}.[gp][pg][gp]")):
        return path
    raise apt.Missing(f"the package {KEYRING} holds no keys")


def is_needed_for(arch: str, own: apt.Apt, python: str) -> bool:
    """Whether the machine's own sources lack a system, or have one that no runtime fits.

    Args:
        arch: ``aarch64`` or ``armv7``.
        own: The machine's own sources for it.
        python: The system's package of Python.
    """
    found = own.candidate(python)
    return found is None or (arch == "armv7" and not found.startswith(f"{PYTHON}."))
