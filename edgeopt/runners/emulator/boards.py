"""Boards: a device profile as a folder in which a guest finds that device's processor.

Runtimes read /proc/cpuinfo and /sys/devices/system/cpu to choose their kernels. QEMU's ``-L`` gives files
under its folder before the machine's own, so a board is that folder: links to the system, and the files of
the processor. These name the device's core where the emulated one has all of its extensions, so that a
runtime takes the kernels tuned for it; else they name the emulated core, since a guest believes both: kernels
for instructions that QEMU's core lacks would end in an illegal one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeopt.cores import Core, known_cores
from edgeopt.errors import ProfileError
from edgeopt.platform import Cluster, Device
from edgeopt.runners.emulator.place import Arch
from edgeopt.runners.profile import PARTS

REVISIONS = {
    "cortex-a53": (0, 4),
    "cortex-a55": (2, 0),
    "cortex-a72": (0, 3),
    "cortex-a75": (3, 0),
    "cortex-a76": (4, 1),
    "neoverse-n1": (4, 1),
}
"""Variant and revision of cores, as QEMU has them (target/arm/cpu64.c) or as they were sold; else r1p0."""

_HWCAPS = (
    ("", "fp asimd evtstrm crc32 cpuid"),
    ("fp16", "atomics fphp asimdhp asimdrdm lrcpc dcpop"),
    ("dotprod", "asimddp"),
    ("sve", "sve"),
    ("sve2", "sve2"),
    ("i8mm", "i8mm"),
    ("bf16", "bf16"),
)
"""Linux's words for extensions (Documentation/arm64/elf_hwcaps.rst); those of Armv8.2 come with fp16."""

_HWCAPS_32 = "half thumb fastmult vfp edsp neon vfpv3 tls vfpd32"

WAYS = (4, 16, 16)
"""Ways of the three levels of caches: what most of Arm's cores have; profiles do not say."""

CACHES = (32 << 10, 512 << 10)
"""L1 data and L2 where a profile says nothing."""


@dataclass(frozen=True, slots=True)
class Emulated:
    """The core that stands for a device's.

    Attributes:
        arch: Its architecture.
        cpu: QEMU's name for it.
        shown: The core that guests are shown: the device's own, or the emulated one if that lacks some of it.
        isa: The extensions that it has.
        part: Implementer and part of the core shown, as /proc/cpuinfo has them.
        differs: What the real core has and this one lacks.
        cluster: The device's cluster that it stands for: the fastest.
    """

    arch: Arch
    cpu: str
    shown: str
    isa: tuple[str, ...]
    part: tuple[str, str]
    differs: tuple[str, ...]
    cluster: Cluster

    @property
    def caches(self) -> list[tuple[int, int]]:
        """Bytes and ways of every level, the first one first."""
        given = [self.cluster.l1d, self.cluster.l2, self.cluster.l3]
        sizes = [given[0] or CACHES[0], given[1] or CACHES[1], *given[2:]]
        return [(size, ways) for size, ways in zip(sizes, WAYS, strict=True) if size]


def emulated(device: Device, available: Collection[str], version: str = "") -> Emulated:
    """Chooses the core that stands for a device's fastest one.

    It is that core itself where this QEMU has it, else of those with the most extensions in common the
    profile's choice, or the fastest; never one that has an instruction the real one lacks.

    Args:
        device: The device.
        available: QEMU's cores of its architecture.
        version: QEMU's version, for the error.

    Raises:
        ProfileError: The device is no ARM device, or no core will do.
    """
    if device.cpu.arch == "x86_64":
        raise ProfileError(
            f"the device {device.name!r} is no ARM device: the emulator runs ARM code alone",
            hint="--on host, or another --device",
        )
    arch: Arch = "aarch64" if device.cpu.arch == "aarch64" else "armv7"
    cluster = device.cpu.clusters[0]
    real = set(cluster.isa)
    parts = {name: part for part, name in reversed(PARTS.items()) if part[0] == "0x41"}
    fitting = {
        name: core
        for name, core in known_cores().items()
        if core.arch == arch
        and core.qemu in available
        and set(core.isa) <= real
        and name in parts
        and name == core.qemu  # files name a core by its part, so it must be the one that QEMU has
    }
    if not fitting:
        raise ProfileError(
            f"QEMU {version} has no core that lacks nothing of {device.name}'s {cluster.core}".replace(
                "  ", " "
            ),
            where=f"it has {', '.join(sorted(available))}",
        )
    named = device.emulate.cpu if device.emulate is not None else ""
    most = max(len(core.isa) for core in fitting.values())
    nearest = [name for name, core in fitting.items() if len(core.isa) == most]
    name = next((wanted for wanted in (cluster.core, named) if wanted in nearest), None)
    if name is None:
        ordered = cluster.core in known_cores() and known_cores()[cluster.core].in_order
        name = min(
            nearest, key=lambda key: (fitting[key].in_order != ordered, -_speed(fitting[key]), key)
        )  # kernels are tuned for one kind or the other
    lacking = [f"lacks {word}" for word in cluster.isa if word not in fitting[name].isa]
    differs = [f"stands for {cluster.core}"] * (name != cluster.core) + lacking
    shown = name if lacking or cluster.core not in parts else cluster.core
    return Emulated(arch, name, shown, tuple(fitting[name].isa), parts[shown], tuple(differs), cluster)


def _speed(core: Core) -> float:
    return core.macs.get("float32", 0.0)


def files(device: Device, core: Emulated) -> dict[str, str]:
    """The files of a board's processor and memory, by their path without the first slash."""
    cluster = core.cluster
    count = cluster.cores
    variant, revision = REVISIONS.get(core.shown, (1, 0))
    implementer, part = core.part
    if core.arch == "armv7":
        features = _HWCAPS_32 + (" vfpv4 idiva idivt lpae" if "vfpv4" in core.isa else "")
    else:
        features = " ".join(words for word, words in _HWCAPS if not word or word in core.isa)
    block = (
        f"BogoMIPS\t: 38.40\nFeatures\t: {features}\nCPU implementer\t: {implementer}\n"
        f"CPU architecture: {7 if core.arch == 'armv7' else 8}\nCPU variant\t: {variant:#x}\n"
        f"CPU part\t: {part}\nCPU revision\t: {revision}\n\n"
    )
    tail = f"Hardware\t: {device.soc or device.name}\n" if core.arch == "armv7" else ""
    kib = device.memory.ram >> 10
    found = {
        "proc/cpuinfo": "".join(f"processor\t: {number}\n{block}" for number in range(count)) + tail,
        "proc/meminfo": f"MemTotal: {kib:>15} kB\nMemFree: {kib:>16} kB\nMemAvailable: {kib:>11} kB\n",
        "proc/device-tree/model": f"{device.description or device.name}\0",
    }
    base = "sys/devices/system/cpu"
    every = f"0-{count - 1}" if count > 1 else "0"
    for name in ("possible", "present", "online"):
        found[f"{base}/{name}"] = f"{every}\n"
    found[f"{base}/kernel_max"] = f"{count - 1}\n"
    midr = int(implementer, 16) << 24 | variant << 20 | 0xF << 16 | int(part, 16) << 4 | revision
    for number in range(count):
        own = f"{base}/cpu{number}"
        entries = {
            "cpufreq/cpuinfo_max_freq": f"{cluster.clock / 1e3:.0f}",
            "cpufreq/cpuinfo_min_freq": f"{cluster.clock / 2e3:.0f}",
            "topology/core_id": f"{number}",
            "topology/physical_package_id": "0",
            "topology/core_siblings": f"{(1 << count) - 1:x}",
            "topology/core_siblings_list": every,
            "topology/package_cpus_list": every,
            "topology/cluster_cpus_list": every,
            "topology/core_cpus_list": f"{number}",
            "topology/thread_siblings_list": f"{number}",
            "regs/identification/midr_el1": f"0x{midr:016x}",
        }
        for index, (kind, level, size, ways) in enumerate(_caches(core)):
            shared = every if level == len(core.caches) else f"{number}"
            entries |= {
                f"cache/index{index}/{key}": str(value)
                for key, value in {
                    "type": kind,
                    "level": level,
                    "size": f"{size >> 10}K",
                    "shared_cpu_list": shared,
                    "coherency_line_size": 64,
                    "ways_of_associativity": ways,
                    "number_of_sets": size // 64 // ways,
                }.items()
            }
        found |= {f"{own}/{name}": f"{text}\n" for name, text in entries.items()}
    return found


def _caches(core: Emulated) -> list[tuple[str, int, int, int]]:
    """Kind, level, bytes and ways of every cache; the first level is split, both halves alike."""
    found: list[tuple[str, int, int, int]] = []
    for level, (size, ways) in enumerate(core.caches, start=1):
        kinds = ("Data", "Instruction") if level == 1 else ("Unified",)
        found += [(kind, level, size, ways) for kind in kinds]
    return found


def make(folder: Path, root: Path, content: Mapping[str, str]) -> Path:
    """Makes a board's folder, or finds the one that was made of the same files.

    Args:
        folder: Where boards lie.
        root: The system's root.
        content: The files.
    """
    key = hashlib.sha256(json.dumps([sorted(content.items()), str(root)]).encode()).hexdigest()[:16]
    board = folder / key
    if board.is_dir():
        return board
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as temporary:
        fresh = Path(temporary) / "board"
        fresh.mkdir()
        for path in sorted(root.iterdir()):
            (fresh / path.name).symlink_to(path.resolve())
        for name, text in content.items():
            path = fresh / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        try:
            fresh.rename(board)
        except OSError:
            if not board.is_dir():
                raise
    return board


def forget(folder: Path) -> None:
    """Deletes all boards."""
    shutil.rmtree(folder, ignore_errors=True)


def described(core: Emulated) -> dict[str, object]:
    """What evidence says of the core that ran."""
    said: dict[str, object] = {"core": core.cpu, "isa": list(core.isa)}
    if core.differs:
        said["differs"] = list(core.differs)
    return said
