"""A device profile written from what a real board says of itself.

Cores are told by the implementer and part in /proc/cpuinfo (Arm's Main ID Register; the numbers are those of
Linux's ``arch/arm64/include/asm/cputype.h``), clocks and caches by sysfs, memory by /proc/meminfo, and its
bandwidth by copying.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from edgeopt.cores import known_cores
from edgeopt.errors import ProfileError

PARTS = {
    ("0x41", "0xc07"): "cortex-a7",
    ("0x41", "0xc08"): "cortex-a8",
    ("0x41", "0xc09"): "cortex-a9",
    ("0x41", "0xc0f"): "cortex-a15",
    ("0x41", "0xc0e"): "cortex-a17",
    ("0x41", "0xd04"): "cortex-a35",
    ("0x41", "0xd03"): "cortex-a53",
    ("0x41", "0xd05"): "cortex-a55",
    ("0x41", "0xd07"): "cortex-a57",
    ("0x41", "0xd08"): "cortex-a72",
    ("0x41", "0xd09"): "cortex-a73",
    ("0x41", "0xd0a"): "cortex-a75",
    ("0x41", "0xd0b"): "cortex-a76",
    ("0x41", "0xd0d"): "cortex-a77",
    ("0x41", "0xd41"): "cortex-a78",
    ("0x41", "0xd42"): "cortex-a78ae",
    ("0x41", "0xd44"): "cortex-x1",
    ("0x41", "0xd46"): "cortex-a510",
    ("0x41", "0xd47"): "cortex-a710",
    ("0x41", "0xd48"): "cortex-x2",
    ("0x41", "0xd4d"): "cortex-a715",
    ("0x41", "0xd4e"): "cortex-x3",
    ("0x41", "0xd80"): "cortex-a520",
    ("0x41", "0xd81"): "cortex-a720",
    ("0x41", "0xd82"): "cortex-x4",
    ("0x41", "0xd0c"): "neoverse-n1",
    ("0x41", "0xd40"): "neoverse-v1",
    ("0x41", "0xd49"): "neoverse-n2",
    ("0x4e", "0x004"): "carmel",
    ("0x51", "0x800"): "cortex-a73",
    ("0x51", "0x801"): "cortex-a53",
    ("0x51", "0x802"): "cortex-a75",
    ("0x51", "0x803"): "cortex-a55",
    ("0x51", "0x804"): "cortex-a76",
    ("0x51", "0x805"): "cortex-a55",
}
"""Cores by implementer and part; Qualcomm's are Arm's with changes."""

EXTENSIONS = {
    "neon": ("asimd", "neon"),
    "vfpv4": ("vfpv4",),
    "fp16": ("asimdhp",),
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
    "bf16": ("bf16",),
    "sve": ("sve",),
    "sve2": ("sve2",),
    "sse4.2": ("sse4_2",),
    "avx2": ("avx2",),
    "fma": ("fma",),
    "avx512": ("avx512f",),
    "vnni": ("avx512_vnni", "avx_vnni"),
}
"""What Linux calls the extensions of profiles; one of the names is enough."""

LEVELS = ("x86-64-v4", "x86-64-v3", "x86-64-v2")
SAID = "probed: the board's"
GUESS = "estimated: the board does not say"


@dataclass(frozen=True, slots=True)
class _Kind:
    """What the cores of one cluster have in common."""

    core: str
    clock: float
    isa: tuple[str, ...]
    caches: tuple[tuple[str, int], ...]


def profile(probed: Mapping[str, Any], name: str) -> str:
    """Returns the YAML of a device profile.

    Args:
        probed: What the agent's ``probe`` found.
        name: The profile's name, which is its file's too.

    Raises:
        ProfileError: The board's processor is of a kind that profiles do not know.
    """
    arch = _arch(probed["machine"])
    sources: dict[str, str] = {"cpu": f"{SAID} /proc/cpuinfo and /sys/devices/system/cpu"}
    clusters = _clusters(probed, arch, sources)
    macs = {kind: known_cores()[kind.core].macs["float32"] * kind.clock for kind in clusters}
    order = sorted(clusters, key=lambda kind: -macs[kind])
    lines = ["schema: 1", f"name: {name}"]
    if probed["model"]:
        lines.append(f"description: {json.dumps(probed['model'])}")
    chips = [text.partition(",")[2] for text in probed["compatible"] if "," in text]
    if chips:
        lines.append(f"soc: {json.dumps(chips[-1].upper())}")
    lines += ["cpu:", f"  arch: {arch}", "  clusters:"]
    for kind in order:
        caches = "".join(f", {level}: {size >> 10} KiB" for level, size in kind.caches)
        lines.append(
            f"    - {{core: {kind.core}, cores: {clusters[kind]}, clock: {kind.clock / 1e9:.4g} GHz, "
            f"isa: [{', '.join(kind.isa)}]{caches}}}"
        )
    ram, copied = probed["memory"] or 0, probed["copy"]
    lines.append(f"memory: {{ram: {ram >> 20} MiB, bandwidth: {copied / 1e9:.3g} GB/s}}")
    sources["memory.ram"] = f"{SAID} /proc/meminfo (MemTotal: what the kernel has of it)"
    sources["memory.bandwidth"] = "probed: one core copies memory there, read plus written"
    runtimes = _runtimes(probed["runtimes"], sources)
    lines.append("runtimes: {" + ", ".join(f'{key}: "{value}"' for key, value in runtimes.items()) + "}")
    core = known_cores()[order[0].core]
    if core.qemu and arch != "x86_64" and set(core.isa) <= set(order[0].isa):
        lines.append(f"emulate: {{cpu: {core.qemu}, differs: []}}")
        sources["emulate"] = "QEMU's core of the same name"
    lines.append("sources:")
    lines += [f"  {key}: {json.dumps(text)}" for key, text in sources.items()]
    return "\n".join(lines) + "\n"


def _arch(machine: str) -> str:
    if machine in ("aarch64", "arm64"):
        return "aarch64"
    if re.fullmatch("armv[78].*", machine):
        return "armv7"
    if machine in ("x86_64", "amd64"):
        return "x86_64"
    raise ProfileError(
        f"the board is of the kind {machine!r}, which profiles do not know",
        hint="aarch64, armv7 and x86_64 are known",
    )


def _clusters(probed: Mapping[str, Any], arch: str, sources: dict[str, str]) -> dict[_Kind, int]:
    """Counts the cores of each kind."""
    blocks = _blocks(probed["cpuinfo"])
    cpus = {entry["cpu"]: entry for entry in probed["cpus"]}
    found: dict[_Kind, int] = {}
    for number in sorted(set(blocks) | set(cpus)) or [0]:
        block = blocks.get(number) or next(iter(blocks.values()), {})
        seen = set((block.get("Features") or block.get("flags") or "").split())
        isa = [name for name, words in EXTENSIONS.items() if seen.intersection(words)]
        core = _core(block, isa, arch, sources)
        clock = _clock(cpus.get(number, {}), block, sources)
        own = tuple(name for name in known_cores()[core].isa if name in isa)
        kind = _Kind(core, clock, own, _caches(cpus.get(number, {}).get("caches", ())))
        found[kind] = found.get(kind, 0) + 1
    return found


def _blocks(cpuinfo: str) -> dict[int, dict[str, str]]:
    """The entries of /proc/cpuinfo by processor; old ARM kernels give features only once."""
    found: dict[int, dict[str, str]] = {}
    shared: dict[str, str] = {}
    for block in re.split(r"\n\s*\n", cpuinfo):
        pairs = (line.partition(":") for line in block.splitlines() if ":" in line)
        entries = {key.strip(): value.strip() for key, _, value in pairs}
        if entries.get("processor", "").isdigit():
            found[int(entries["processor"])] = entries
        else:
            shared |= entries
    return {number: {**shared, **entries} for number, entries in found.items()}


def _core(block: Mapping[str, str], isa: Sequence[str], arch: str, sources: dict[str, str]) -> str:
    cores = known_cores()
    if arch == "x86_64":
        return next((level for level in LEVELS if set(cores[level].isa) <= set(isa)), LEVELS[-1])
    part = (block.get("CPU implementer", "").lower(), block.get("CPU part", "").lower())
    if part in PARTS:
        return PARTS[part]
    fitting = {
        name: core for name, core in cores.items() if core.arch == arch and set(core.isa) <= set(isa)
    } or {name: core for name, core in cores.items() if core.arch == arch}
    # Of the cores with the most extensions in common the slowest: a budget met by it is met.
    found = min(fitting, key=lambda name: (-len(fitting[name].isa), fitting[name].macs["float32"], name))
    told = f"implementer {part[0] or 'unknown'}, part {part[1] or 'unknown'}"
    sources[f"cpu.{found}"] = f"estimated: the core ({told}) is not known, this one has its extensions"
    return found


def _clock(cpu: Mapping[str, Any], block: Mapping[str, str], sources: dict[str, str]) -> float:
    if cpu.get("clock"):
        return float(cpu["clock"])
    if re.fullmatch(r"[0-9.]+", block.get("cpu MHz", "")):
        # It varies with the load from core to core: rounded, so that equal cores stay one cluster.
        return round(float(block["cpu MHz"]) / 100) * 1e8
    sources["cpu.clock"] = f"{GUESS} its clock"
    return 1e9


def _caches(listed: Sequence[Sequence[str]]) -> tuple[tuple[str, int], ...]:
    names = {("1", "Data"): "l1d", ("2", "Unified"): "l2", ("3", "Unified"): "l3"}
    found: dict[str, int] = {}
    for level, kind, size in listed:
        match = re.fullmatch("([0-9]+)([KM]?)", size)
        if (level, kind) in names and match:
            found[names[level, kind]] = int(match[1]) << {"": 0, "K": 10, "M": 20}[match[2]]
    return tuple(sorted(found.items()))


def _runtimes(installed: Mapping[str, str], sources: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    if installed.get("onnxruntime"):
        found["onnxruntime"] = installed["onnxruntime"]
    tflite = installed.get("ai_edge_litert") or installed.get("tflite_runtime")
    if tflite:
        found["tflite"] = tflite
    sources["runtimes"] = "probed: installed for the board's Python"
    if not found:
        found["onnxruntime"] = version("onnxruntime")
        sources["runtimes"] = (
            "estimated: none is installed on the board; the version of the machine that asked"
        )
    return found
