from pathlib import Path

import pytest

from edgeopt.cores import known_cores
from edgeopt.errors import ProfileError
from edgeopt.lint import lint
from edgeopt.platform import load_device, load_platform, load_runtime, profile_names

GOOD = """\
schema: 1
name: board
cpu:
  arch: aarch64
  clusters:
    - {core: cortex-a76, cores: 2, clock: 2 GHz, isa: [neon, dotprod, fp16], l1d: 64 KiB, l2: 512 KiB}
    - {core: cortex-a55, cores: 4, clock: 1.8 GHz, isa: [neon], l1d: 32 KiB, l2: 128 KiB}
memory: {ram: 2 GiB, bandwidth: 8 GB/s}
runtimes: {onnxruntime: "1.32.0"}
emulate: {cpu: cortex-a76, differs: []}
sources:
  cpu: https://example.com/cpu
  memory: estimated
  runtimes: https://example.com/runtimes
  emulate: estimated
"""


def check(tmp_path: Path, text: str) -> list[tuple[str, str]]:
    path = tmp_path / "board.yaml"
    path.write_text(text, encoding="utf-8")
    return [(finding.message, finding.where.removeprefix(str(path))) for finding in lint(path)]


@pytest.mark.parametrize("name", list(profile_names("devices")))
def test_every_shipped_profile_is_complete_and_makes_a_platform(name: str) -> None:
    assert lint(profile_names("devices")[name]) == []
    platform = load_platform(name)
    assert platform.rules.runs("Conv")


def test_the_devices_that_users_ask_for_are_there() -> None:
    assert {
        "raspberry-pi-zero-2w",
        "raspberry-pi-3",
        "raspberry-pi-4",
        "raspberry-pi-5",
        "jetson-nano",
        "jetson-orin-nano",
        "pixel-6",
        "generic-armv8",
        "generic-armv7",
        "generic-x86-64",
        "cortex-a53",
    } <= set(profile_names("devices"))


def test_a_good_profile_has_no_findings(tmp_path: Path) -> None:
    assert check(tmp_path, GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "sentence", "place"),
    [
        ("  memory: estimated\n", "", "the figure 'memory.ram' has no source", ":8:10"),
        ("memory: estimated", "memory: estimated\n  memmory: x", "'memmory' speaks of no figure", ":14:3"),
        ("cortex-a55", "cortex-a56", "the core 'cortex-a56' is not known", ":7:8"),
        ("[neon]", "[neon, sve]", "a cortex-a55 has no extension 'sve'", ":7:64"),
        ("arch: aarch64", "arch: x86_64", "the profile says x86_64", ":6:8"),
        ("l2: 512 KiB", "l2: 32 KiB", "the cache l2 (32768 bytes) is not larger than l1d", ":6:91"),
        ("clock: 2 GHz", "clock: 0.5 GHz", "not sorted from the fastest", ":5:3"),
        ("8 GB/s", "800 GB/s", "a bandwidth of 800 GB/s is not plausible", ":8:22"),
        ("2 GiB", "2 KiB", "main memory is smaller than a cache", ":8:10"),
        ('"1.32.0"', '"0.9.0"', "does not cover version 0.9.0", ":9:12"),
        ("onnxruntime:", "onnxruntimes:", "there is no runtime profile 'onnxruntimes'", ":9:12"),
        ("cpu: cortex-a76,", "cpu: cortex-a710,", "has extensions that the real core lacks: bf16", ":10:11"),
        ("cpu: cortex-a76,", "cpu: cortex-a72,", "lacks dotprod, fp16: say so", ":10:28"),
        ("cpu: cortex-a76,", "cpu: cortex-z,", "QEMU knows no core 'cortex-z'", ":10:11"),
        ("name: board", "name: other", "the profile board.yaml is named 'other'", ":2:1"),
        ("cores: 4", "cores: none", "cpu.clusters.1.cores", ":7:26"),
        ("ram: 2 GiB", "ram: 2", "has no unit", ":8:10"),
        ("name: board", "name: board\nbluetooth: 5", "unknown key 'bluetooth'", ":3:1"),
    ],
)
def test_each_defect_is_found_at_its_place(
    tmp_path: Path, old: str, new: str, sentence: str, place: str
) -> None:
    assert old in GOOD
    findings = check(tmp_path, GOOD.replace(old, new, 1))
    assert any(sentence in message and where == place for message, where in findings), findings


def test_an_unknown_device_names_its_neighbour() -> None:
    with pytest.raises(ProfileError) as caught:
        load_device("rasberry-pi-4")
    assert "raspberry-pi-4" in caught.value.nearest
    assert caught.value.hint == "edgeopt devices list"


def test_a_runtime_that_the_device_does_not_carry_is_refused() -> None:
    with pytest.raises(ProfileError, match="carries no runtime 'ncnn'"):
        load_platform("generic-armv7", "ncnn")


def test_a_profile_of_ones_own_is_loaded_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "board.yaml"
    path.write_text(GOOD, encoding="utf-8")
    device = load_device(str(path))
    assert (device.name, device.cpu.clusters[0].clock, device.memory.ram) == ("board", 2e9, 2 * 2**30)


def test_an_old_board_gets_the_rules_of_its_old_runtime() -> None:
    nano, pi = load_platform("jetson-nano"), load_platform("raspberry-pi-5")
    assert nano.rules.opset[1] < pi.rules.opset[1]
    assert nano.rules.floors["python"] == "3.6"


def test_a_version_that_the_runtime_profile_does_not_cover_is_refused() -> None:
    with pytest.raises(ProfileError, match=r"does not cover version 0\.9"):
        load_runtime("onnxruntime").at("0.9")


def test_the_digest_of_a_platform_changes_with_its_device() -> None:
    assert load_platform("raspberry-pi-4").digest != load_platform("raspberry-pi-5").digest
    assert load_platform("raspberry-pi-4").digest == load_platform("raspberry-pi-4").digest


def test_cores_with_more_extensions_compute_more_in_a_cycle() -> None:
    for core in known_cores().values():
        assert core.macs["int8"] >= 2 * core.macs["float32"]
        assert ("float16" in core.macs) == ("fp16" in core.isa)
        if {"dotprod", "i8mm", "vnni"} & set(core.isa):
            assert core.macs["int8"] >= 4 * core.macs["float32"]
