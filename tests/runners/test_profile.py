"""Profiles written from what boards say of themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeopt.cli import call
from edgeopt.errors import ProfileError
from edgeopt.lint import lint
from edgeopt.platform import Device, load_device
from edgeopt.runners.profile import profile

CPU = """processor\t: {number}
BogoMIPS\t: 108.00
Features\t: {features}
CPU implementer\t: {implementer}
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: {part}
CPU revision\t: 3
"""
A72 = "fp asimd evtstrm crc32 cpuid"
A76 = "fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"


def board(
    *cores: tuple[str, str, int | None], machine: str = "aarch64", implementer: str = "0x41", **other: Any
) -> dict[str, Any]:
    """What the agent finds on a board with these cores: part, features, clock."""
    caches = [["1", "Data", "32K"], ["1", "Instruction", "48K"], ["2", "Unified", "1M"]]
    blocks = [
        CPU.format(number=number, features=features, implementer=implementer, part=part)
        for number, (part, features, _) in enumerate(cores)
    ]
    found = {
        "machine": machine,
        "model": "Raspberry Pi 4 Model B Rev 1.4: the one",
        "compatible": ["acme,board", "acme,chip1"],
        "cpuinfo": "\n".join(blocks) + "\nHardware\t: BCM2835\nModel\t: Raspberry Pi 4 Model B Rev 1.4\n",
        "cpus": [
            {"cpu": number, "clock": clock, "caches": caches} for number, (_, _, clock) in enumerate(cores)
        ],
        "memory": 3_977_240_576,
        "copy": 5.1e9,
        "runtimes": {"onnxruntime": "1.32.0", "numpy": "2.0.0"},
    }
    return {**found, **other}


def written(tmp_path: Path, probed: dict[str, Any]) -> Device:
    path = tmp_path / "mine.yaml"
    path.write_text(profile(probed, "mine"))
    assert [finding.message for finding in lint(path)] == []
    return load_device(str(path))


def test_a_raspberry_pi_4(tmp_path: Path) -> None:
    device = written(tmp_path, board(*[("0xd08", A72, 1_800_000_000)] * 4, compatible=["brcm,bcm2711"]))
    (cluster,) = device.cpu.clusters
    assert (cluster.core, cluster.cores, cluster.clock, cluster.isa) == ("cortex-a72", 4, 1.8e9, ["neon"])
    assert (cluster.l1d, cluster.l2, cluster.l3) == (32 << 10, 1 << 20, None)
    assert device.soc == "BCM2711" and device.memory.ram == 3792 << 20
    assert device.emulate is not None and device.emulate.cpu == "cortex-a72"
    assert device.runtimes == {"onnxruntime": "1.32.0"}
    assert all("probed" in device.sources[key] for key in ("cpu", "memory.ram", "runtimes"))


def test_clusters_are_told_apart_and_sorted(tmp_path: Path) -> None:
    little, big = [("0xd05", A76, 1_800_000_000)] * 4, [("0xd0b", A76, 2_400_000_000)] * 4
    device = written(tmp_path, board(*little, *big))
    assert [(cluster.core, cluster.cores) for cluster in device.cpu.clusters] == [
        ("cortex-a76", 4),
        ("cortex-a55", 4),
    ]
    assert device.cpu.clusters[0].isa == ["neon", "fp16", "dotprod"]


def test_a_core_that_nobody_knows_is_said_to_be_estimated(tmp_path: Path) -> None:
    device = written(tmp_path, board(("0xfff", A76, None), implementer="0x99", runtimes={}))
    (cluster,) = device.cpu.clusters
    assert set(cluster.isa) == {"neon", "fp16", "dotprod"}
    assert device.sources[f"cpu.{cluster.core}"].startswith("estimated")
    assert device.sources["cpu.clock"].startswith("estimated")
    assert device.sources["runtimes"].startswith("estimated")


def test_a_32_bit_system_and_a_small_computer(tmp_path: Path) -> None:
    old = board(*[("0xc07", "half thumb neon vfpv4", 900_000_000)] * 4, machine="armv7l")
    device = written(tmp_path, old)
    assert (device.cpu.arch, device.cpu.clusters[0].isa) == ("armv7", ["neon", "vfpv4"])
    block = "processor : {}\nflags : fpu sse4_2 avx2 fma\ncpu MHz : {}\n\n"
    flags = block.format(0, 2004.3) + block.format(1, 1999.8)
    pc = board(machine="x86_64", cpuinfo=flags, cpus=[], model="", compatible=[""])
    (cluster,) = written(tmp_path, pc).cpu.clusters
    assert (cluster.core, cluster.cores, cluster.clock) == ("x86-64-v3", 2, 2e9)
    with pytest.raises(ProfileError, match="riscv64"):
        profile(board(machine="riscv64"), "mine")


def test_probing_a_board_over_ssh(server, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(["devices", "probe", server.address(), "-o", "mine.yaml"]) == 0
    assert "mine.yaml: 0 findings" in capsys.readouterr().out
    assert load_device("mine.yaml").name == "mine"
    assert call(["devices", "probe", server.address(), "-o", "mine.yaml"]) == 2
    assert "exists" in capsys.readouterr().err
    assert call(["devices", "probe", "host"]) == 2
