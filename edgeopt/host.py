"""The machine that edgeopt itself runs on, and what it does to integer arithmetic."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_KERNEL_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "bf16", "sve")
"""Extensions that choose between kernels whose results may differ."""


@cache
def instructions() -> frozenset[str]:
    """The host's instruction set extensions, as Linux names them; empty where it does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


@cache
def isa() -> str:
    """The architecture and the extensions that matter to kernels: ``x86_64+avx2+avx512_vnni``."""
    flags = (flag for flag in _KERNEL_FLAGS if flag in instructions())
    return "+".join([platform.machine().lower(), *flags])


def distortion() -> str | None:
    """Says how this host's integer kernels differ from a device's; ``None`` where they do not.

    x86 without VNNI multiplies u8 by s8 with an instruction that saturates its sums at 16 bits
    (VPMADDUBSW); ARM and VNNI do not. onnxruntime's exact mode is asked for, and it does not cover every
    kernel.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i686"):
        return None
    flags = instructions()
    if not flags or flags & {"avx512_vnni", "avx_vnni"}:
        return None
    return (
        "this host is x86 without VNNI: its integer kernels may saturate, so int8 accuracy on a device "
        "may be better than the figure measured here"
    )
