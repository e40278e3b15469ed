from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.artifact import open_artifact
from edgeopt.cli import call
from edgeopt.cores import known_cores
from edgeopt.errors import ProfileError
from edgeopt.lint import lint
from edgeopt.platform import load_device, load_platform, load_runtime, profile_names
from edgeopt.predict import coverage, predict

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[1, 3, 16, 16] image, float[8, 3, 3, 3] w) => (float[1, 8, 14, 14] map) {
  s = Conv (image, w)
  map = Relu (s)
}
"""

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


def test_there_are_profiles_for_every_class_of_device() -> None:
    devices = [load_device(name) for name in profile_names("devices")]
    assert len(devices) >= 40
    arm = [device for device in devices if device.cpu.arch != "x86_64"]
    assert all(device.emulate is not None for device in arm)
    assert all(device.emulate.differs for device in arm if device.emulate.cpu != device.cpu.clusters[0].core)
    described = " ".join(device.description for device in devices)
    assert all(f"a phone of {year}" in described for year in (2017, 2018, 2019, 2020, 2022, 2023, 2024))


def test_every_device_is_shown_and_predicted_and_every_set_of_rules_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEOPT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "net.onnx"
    weights = ir.tensor(np.random.default_rng(0).standard_normal((8, 3, 3, 3), np.float32), name="w")
    model = ir.from_onnx_text(TEXT)
    value = model.graph.inputs.pop()
    value.const_value = weights
    model.graph.register_initializer(value)
    ir.save(model, path)
    compiled: set[tuple[str, str]] = set()
    for name in profile_names("devices"):
        platform = load_platform(name)
        latency = predict(model, platform).latency
        assert latency.interval is not None and latency.interval[0] < latency.value < latency.interval[1]
        assert call(["devices", "show", name]) == 0
        assert ("no published run" in capsys.readouterr().out) == (coverage(platform) is not None)
        rules = (platform.runtime.target, platform.rules.digest)
        if rules not in compiled and (platform.runtime.target != "tflite" or find_spec("ai_edge_litert")):
            compiled.add(rules)
            assert call(["compile", str(path), "--device", name, "-o", str(tmp_path / name)]) == 0, name
            assert open_artifact(tmp_path / name).manifest["device"] == name
            capsys.readouterr()
    assert len(compiled) >= 5


def test_a_core_that_was_not_fitted_widens_the_interval() -> None:
    model = ir.from_onnx_text(TEXT)
    known, other = load_device("raspberry-pi-4"), load_device("jetson-xavier-nx")
    assert coverage(load_platform(known)) is None
    platform = load_platform(other, "onnxruntime")
    assert "carmel" in (coverage(platform) or "")
    near, far = predict(model, load_platform(known)).latency, predict(model, platform).latency
    assert far.interval[1] / far.value > near.interval[1] / near.value
    assert far.conditions["core"] == "carmel" and "core" not in near.conditions


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
        ("[neon]", "[fp16]", "a cortex-a55 always has the extension 'neon'", ":7:52"),
        ("memory: estimated", "memory: /home/me/notes", "'memory' is a path of one machine", ":13:3"),
        ("name: board", "name: board\nsoc: BCM2711", "has cortex-a72 in the profile raspberry-pi-4", ":6:3"),
        ("cpu: cortex-a76,", "cpu: cortex-a15,", "QEMU's cortex-a15 is an armv7 core", ":10:11"),
        ("name: board", "name: raspberry-pi-4", "another profile is named 'raspberry-pi-4' too", ":2:1"),
        ("arch: aarch64", "arch: armv7", "no official build of onnxruntime for armv7", ":9:12"),
        (
            "runtimes: {",
            "accelerators: [{name: G, kind: gpu, runtime: tensort, clock: 1 GHz, bandwidth: 9 GB/s, "
            "macs_per_cycle: {float32: 1}}]\nruntimes: {",
            "the device carries no runtime 'tensort' for its G",
            ":9:37",
        ),
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


def test_floats_are_refused_where_the_core_lacks_what_they_need(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """tflite-runtime's float kernels for 32-bit ARM fuse multiply and add, which a Cortex-A8 cannot."""
    assert load_platform("beaglebone-black", "tflite").lacking == "vfpv4"
    assert load_platform("beaglebone-black", "onnxruntime").lacking is None
    assert load_platform("raspberry-pi-4", "tflite").lacking is None
    command = ["compile", "--device", "beaglebone-black", "--target", "tflite", "-o", str(tmp_path / "out")]
    assert call([*command, "--scheme", "float16", "--no-emulate"]) == 2
    said = capsys.readouterr().err
    assert "cannot run float16 with tflite" in said and "need vfpv4, which a cortex-a8 lacks" in said
    assert not (tmp_path / "out").exists()
    pytest.importorskip("ai_edge_litert", reason="needs the extra: pip install 'edgeopt[tflite]'")
    assert call([*command, "--limit", "20", "--no-emulate"]) == 0
    assert open_artifact(tmp_path / "out").parts["model"]["precision"] == "static-int8"


@pytest.mark.parametrize(("core", "lacking"), [("cortex-a9", "vfpv4"), ("cortex-a53", None)])
def test_a_core_of_armv8_has_all_extensions_of_armv7(core: str, lacking: str | None) -> None:
    device = load_device("beaglebone-black")
    cluster = device.cpu.clusters[0].model_copy(update={"core": core})
    cpu = device.cpu.model_copy(update={"clusters": [cluster]})
    assert load_platform(device.model_copy(update={"cpu": cpu}), "tflite").lacking == lacking


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
