"""The ARM system: a C library and a Python of the user's own distribution, and the runtimes' wheels."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgeopt.errors import UnreachableError
from edgeopt.runners.emulator import apt, wheels
from edgeopt.runners.emulator.place import SETUP, Arch, Place, describe

DEBIAN: dict[Arch, str] = {"aarch64": "arm64", "armv7": "armhf"}

PACKAGES: dict[Arch, tuple[str, ...]] = {
    "aarch64": ("python3-minimal", "libpython3-stdlib", "libstdc++6"),
    "armv7": ("python3-minimal", "libpython3-stdlib", "libstdc++6", "python3-numpy"),
}
"""What the system is made of, with all that these depend on; no version is named, so any release will do."""

_NOT_NEEDED = re.compile(
    "(dpkg|tar|debconf|media-types|readline-common|python3-pkg-resources|gcc-[0-9]+-base"
    "|lib(selinux1|acl1|attr1|md0|pcre2-8-0|db5.3|krb5.*|k5crypto3|gssapi.*|keyutils1|com-err2|tirpc.*|nsl2"
    "|readline8|sqlite3-0|ncursesw6|tinfo6|audit.*|cap-ng0|pam.*|systemd0|blkid1|mount1|smartcols1))(t64)?"
)
"""What they depend on and edgeopt's agent does not."""

_UNUSED = (
    "usr/share",
    "usr/sbin",
    "usr/include",
    "etc",
    "var",
    "bin",
    "sbin",
    "usr/lib/*/gconv",
    "usr/lib/*/audit",
)

LITERT, TFLITE = "ai-edge-litert", "tflite-runtime==2.14.0"
TESTED = {"onnxruntime": "1.32.0", LITERT: "2.3.0"}
"""What is installed where this machine itself has none of these."""

SITE_UNUSED = (
    "onnxruntime/transformers",
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "numpy/*/tests",
    "numpy/tests",
    "ai_edge_litert/libLiteRtWebGpuAccelerator.so",
    "ai_edge_litert/aot",
    "ai_edge_litert/vendors",
    "bin",
)


def make(place: Place, arch: Arch, packages: Sequence[Path]) -> None:
    """Makes the system of an architecture from downloaded packages."""
    ours = [
        path
        for path in packages
        if apt.debian_arch(path) in (DEBIAN[arch], "all") and not _NOT_NEEDED.fullmatch(apt.name_of(path))
    ]
    with place.making(f"{arch}-system") as folder:
        root = folder / "root"
        apt.unpack(ours, root)
        for pattern in _UNUSED:
            for path in sorted(root.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        apt.confine(root)  # links to what was not kept
        _link_alternatives(root)
        python = _python(root)
        names = sorted(path.name.rpartition("_")[0].replace("%3a", ":") for path in ours)
        describe(folder, {"python": python, "packages": names})


def _link_alternatives(root: Path) -> None:
    """Links the libraries of BLAS and LAPACK, as the packages' scripts would with update-alternatives."""
    for kind in ("blas", "lapack"):
        for path in sorted(root.glob(f"usr/lib/*/{kind}/*.so.*")):
            usual = path.parent.parent / path.name
            if not usual.exists():
                usual.symlink_to(path.relative_to(usual.parent))


def _python(root: Path) -> str:
    """The version of the system's Python, such as ``3.11``.

    Raises:
        UnreachableError: It has none.
    """
    for path in sorted((root / "usr/bin").glob("python3.*")):
        if match := re.fullmatch(r"python(3\.\d+)", path.name):
            return match[1]
    raise UnreachableError("the packages that apt fetched hold no Python")


def make_runtimes(place: Place, arch: Arch) -> None:
    """Installs the runtimes of an architecture."""
    system = place.part(f"{arch}-system") or {}
    python = str(system.get("python", ""))
    with place.making(f"{arch}-runtimes") as folder:
        site = folder / "site"
        if arch == "armv7":
            if python != "3.11":
                raise UnreachableError(
                    f"tflite-runtime has 32-bit wheels up to Python 3.11, and this system's is {python}",
                    hint=f"{SETUP} --bundle FILE, with a bundle made on Debian 12",
                )
            wheels.install([TFLITE], site, arch, python)
            packages = [TFLITE]
        else:
            packages = [f"{name}=={_wanted(name)}" for name in TESTED]
            wheels.install([*packages, "numpy"], site, arch, python)
        for pattern in SITE_UNUSED:
            for path in sorted(site.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        describe(folder, {"runtimes": dict(name.split("==") for name in packages), "python": python})


def _wanted(name: str) -> str:
    """The version that this machine has, so that both compute with the same one."""
    try:
        return version(name)
    except PackageNotFoundError:
        return TESTED[name]
