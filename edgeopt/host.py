"""The machine that edgeopt itself runs on."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_KERNEL_FLAGS = {
    "x86_64": ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8"),
    "aarch64": ("asimd", "asimddp", "fphp", "i8mm", "bf16", "sve"),
}
"""Extensions that choose between kernels whose results may differ."""


@cache
def isa() -> str:
    """The architecture and the extensions that matter to kernels: ``x86_64+avx2+avx512_vnni``."""
    machine = platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return machine
    present = set(text.split())
    return "+".join([machine, *(flag for flag in _KERNEL_FLAGS.get(machine, ()) if flag in present)])
