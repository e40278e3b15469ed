"""Proves a device profile complete and consistent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgeopt import schema
from edgeopt.cores import known_cores
from edgeopt.errors import EdgeoptError, ProfileError, nearest
from edgeopt.platform import Cluster, Device, load_device, load_runtime, profile_names

Location = list[str | int]

FIGURES = ("cores", "clock", "isa", "l1d", "l2", "l3")
"""What a cluster says that needs a source."""

LOCAL = re.compile(r"(/|~|file:|[A-Za-z]:\\|https?://(localhost|127\.))")
"""How a place begins that only one machine knows."""

COPY_PER_CYCLE = 16.0
"""Bytes read plus written that a core can at most move in a cycle of its clock: a vector load and a
vector store of 16 bytes every other cycle. No small core comes near this from main memory."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with a profile.

    Attributes:
        message: One plain sentence.
        where: File, line and column.
        nearest: Names that were probably meant.
        hint: What to do next.
    """

    message: str
    where: str
    nearest: tuple[str, ...] = ()
    hint: str | None = None


def lint(path: Path) -> list[Finding]:
    """Checks one device profile and lists everything that is wrong with it."""
    try:
        data = schema.load(path, ProfileError)
        device = schema.validate(data, Device, ProfileError, path)
    except ProfileError as error:
        return [Finding(error.message, error.where or str(path), error.nearest, error.hint)]
    return [
        Finding(message, f"{path}{schema.position(data, location)}", tuple(near), hint)
        for location, message, near, hint in _findings(device, path, data)
    ]


Raw = tuple[Location, str, list[str], str | None]


def _findings(device: Device, path: Path, data: Any) -> Iterator[Raw]:
    yield from _names(device, path)
    yield from _sources(device)
    yield from _clusters(device)
    yield from _memory(device)
    yield from _runtimes(device)
    yield from _emulation(device)


def _names(device: Device, path: Path) -> Iterator[Raw]:
    """The name is the file's and nobody else's, and one chip has the same cores in every profile."""
    if device.name != path.stem:
        yield ["name"], f"the profile {path.name} is named {device.name!r}", [], f"name: {path.stem}"
    known = profile_names("devices")
    other = known.get(device.name)
    if other is not None and not other.samefile(path):
        hint = "name it otherwise: figures name a device by nothing else"
        yield ["name"], f"another profile is named {device.name!r} too", [], hint
    ours = {cluster.core for cluster in device.cpu.clusters}
    for name, (chip, theirs) in _chips().items():
        if device.soc and chip == device.soc and theirs != ours:
            message = f"the chip {device.soc} has {', '.join(sorted(theirs))} in the profile {name}"
            yield ["cpu", "clusters"], message, [], None


@cache
def _chips() -> dict[str, tuple[str, frozenset[str]]]:
    """The chip of every known device, and the kinds of its cores."""
    devices = [load_device(name) for name in profile_names("devices")]
    return {
        device.name: (device.soc, frozenset(cluster.core for cluster in device.cpu.clusters))
        for device in devices
    }


def _sources(device: Device) -> Iterator[Raw]:
    """Every figure has a source, and every source speaks of a figure."""
    used: set[str] = set()
    known: set[str] = set()

    def sourced(location: Location, *keys: str) -> Iterator[Raw]:
        """The first of the keys, from the most to the least specific, that has a source."""
        known.update(keys)
        found = next((key for key in keys if device.sources.get(key, "").strip()), None)
        if found is None:
            hint = f"add {keys[0]!r} or {keys[-1]!r} to sources; a guess says `estimated`"
            yield location, f"the figure {keys[0]!r} has no source", [], hint
        else:
            used.add(found)

    for index, cluster in enumerate(device.cpu.clusters):
        for figure in FIGURES:
            if getattr(cluster, figure):
                place: Location = ["cpu", "clusters", index, figure]
                yield from sourced(
                    place, f"cpu.{cluster.core}.{figure}", f"cpu.{cluster.core}", f"cpu.{figure}", "cpu"
                )
    for figure in ("ram", "bandwidth"):
        yield from sourced(["memory", figure], f"memory.{figure}", "memory")
    for name in device.runtimes:
        yield from sourced(["runtimes", name], f"runtimes.{name}", "runtimes")
    for index, accelerator in enumerate(device.accelerators):
        place = ["accelerators", index]
        yield from sourced(place, f"accelerators.{accelerator.name}", "accelerators")
    if device.emulate is not None:
        yield from sourced(["emulate"], "emulate")
    for key, source in device.sources.items():
        if key not in known:
            yield ["sources", key], f"the source {key!r} speaks of no figure", nearest(key, known), None
        if LOCAL.match(source):
            hint = "name a document that others can read"
            yield ["sources", key], f"the source {key!r} is a path of one machine", [], hint


def _clusters(device: Device) -> Iterator[Raw]:
    cores = known_cores()
    speeds: list[float] = []
    for index, cluster in enumerate(device.cpu.clusters):
        place: Location = ["cpu", "clusters", index]
        core = cores.get(cluster.core)
        if core is None:
            near = nearest(cluster.core, cores)
            yield [*place, "core"], f"the core {cluster.core!r} is not known", near, None
            continue
        same = core.arch == device.cpu.arch or (core.arch, device.cpu.arch) == ("aarch64", "armv7")
        if not same:
            yield (
                [*place, "core"],
                f"a {cluster.core} is an {core.arch} core, the profile says {device.cpu.arch}",
                [],
                None,
            )
        for position, extension in enumerate(cluster.isa):
            if extension not in core.isa:
                yield (
                    [*place, "isa", position],
                    f"a {cluster.core} has no extension {extension!r}",
                    nearest(extension, core.isa),
                    f"it has {', '.join(core.isa)}",
                )
        if core.arch == "aarch64" and "neon" not in cluster.isa:
            yield [*place, "isa"], f"a {cluster.core} always has the extension 'neon'", [], None
        speeds.append(cluster.clock * core.macs["float32"])
        yield from _caches(cluster, place)
        if not 50e6 <= cluster.clock <= 6e9:
            message = f"a clock of {cluster.clock / 1e9:g} GHz is not plausible"
            yield [*place, "clock"], message, [], None
    if speeds != sorted(speeds, reverse=True):
        yield ["cpu", "clusters"], "the clusters are not sorted from the fastest to the slowest", [], None


def _caches(cluster: Cluster, place: Location) -> Iterator[Raw]:
    """Every cache is larger than the one before it."""
    sizes = [(name, getattr(cluster, name)) for name in ("l1d", "l2", "l3") if getattr(cluster, name)]
    for (inner, small), (outer, large) in pairwise(sizes):
        if small >= large:
            message = f"the cache {outer} ({large} bytes) is not larger than {inner} ({small} bytes)"
            yield [*place, outer], message, [], None


def _memory(device: Device) -> Iterator[Raw]:
    fastest = max(cluster.clock for cluster in device.cpu.clusters)
    limit = COPY_PER_CYCLE * fastest
    measured = device.sources.get("memory.bandwidth", "").startswith("probed")
    if not measured and not 0.05e9 <= device.memory.bandwidth <= limit:
        message = (
            f"a bandwidth of {device.memory.bandwidth / 1e9:g} GB/s is not plausible for a copy at "
            f"{fastest / 1e9:g} GHz"
        )
        hint = f"what one core copies, read plus written, at most {limit / 1e9:g} GB/s"
        yield ["memory", "bandwidth"], message, [], hint
    caches = [cluster.l3 or cluster.l2 or 0 for cluster in device.cpu.clusters]
    if device.memory.ram <= max(caches):
        yield ["memory", "ram"], "main memory is smaller than a cache", [], None


def _runtimes(device: Device) -> Iterator[Raw]:
    for name, version in device.runtimes.items():
        place: Location = ["runtimes", name]
        if name not in profile_names("runtimes"):
            near = nearest(name, profile_names("runtimes"))
            yield place, f"there is no runtime profile {name!r}", near, None
            continue
        runtime = _runtime(name)
        try:
            runtime.at(version)
        except (EdgeoptError, ValueError) as error:
            yield place, str(error).splitlines()[0], [], None
        source = device.sources.get(f"runtimes.{name}", device.sources.get("runtimes", ""))
        built = not runtime.architectures or device.cpu.arch in runtime.architectures
        if not built and "built from source" not in source and not source.startswith("probed"):
            message = f"there is no official build of {name} for {device.cpu.arch}"
            hint = (
                f"it is built for {', '.join(runtime.architectures)}; say `built from source` in its source"
            )
            yield place, message, [], hint
    for index, accelerator in enumerate(device.accelerators):
        if accelerator.runtime is not None and accelerator.runtime not in device.runtimes:
            where: Location = ["accelerators", index, "runtime"]
            message = f"the device carries no runtime {accelerator.runtime!r} for its {accelerator.name}"
            yield where, message, nearest(accelerator.runtime, device.runtimes), None


_runtime = cache(load_runtime)


def _emulation(device: Device) -> Iterator[Raw]:
    if device.emulate is None:
        return
    by_qemu = {core.qemu: core for core in known_cores().values() if core.qemu}
    emulated = by_qemu.get(device.emulate.cpu)
    if emulated is None:
        near = nearest(device.emulate.cpu, by_qemu)
        yield ["emulate", "cpu"], f"QEMU knows no core {device.emulate.cpu!r}", near, None
        return
    if emulated.arch != device.cpu.arch and (emulated.arch, device.cpu.arch) != ("aarch64", "armv7"):
        message = (
            f"QEMU's {device.emulate.cpu} is an {emulated.arch} core, the profile says {device.cpu.arch}"
        )
        yield ["emulate", "cpu"], message, [], None
    real = set(device.cpu.clusters[0].isa)
    if more := sorted(set(emulated.isa) - real):
        yield (
            ["emulate", "cpu"],
            f"QEMU's {device.emulate.cpu} has extensions that the real core lacks: {', '.join(more)}",
            [],
            "an emulated artifact could run where the real one cannot",
        )
    if sorted(real - set(emulated.isa)) and not device.emulate.differs:
        lacking = ", ".join(sorted(real - set(emulated.isa)))
        yield ["emulate", "differs"], f"QEMU's {device.emulate.cpu} lacks {lacking}: say so", [], None
