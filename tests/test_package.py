"""What is installed: the command starts light, the public names are there, the wheel is whole."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

import edgeopt
from edgeopt import example

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("onnx", "onnxruntime", "onnx_ir", "torch", "pydantic", "rich", "numpy", "PIL", "ruamel", "sympy")


def run(code: str, **options) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *options.pop("path", [])])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_the_command_starts_without_any_heavy_library(arguments: list[str]) -> None:
    code = (
        "import sys; from edgeopt.cli import call; "
        f"assert call({arguments!r}) == 0; print(*sorted(name.split('.')[0] for name in sys.modules))"
    )
    loaded = set(run(code).split())
    assert "click" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_importing_edgeopt_imports_nothing_heavy() -> None:
    loaded = set(run("import edgeopt, sys; print(*(name.split('.')[0] for name in sys.modules))").split())
    assert loaded.isdisjoint({*HEAVY, "click"})


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgeopt", "--version"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0
    assert edgeopt.__version__ in done.stdout


def test_the_public_names_are_these_and_no_others() -> None:
    assert set(edgeopt.__all__) - {"optimize"} == {
        "EdgeoptError",
        "Outcome",
        "__version__",
        "compile",
        "convert",
        "open_artifact",
    }
    for name in edgeopt.__all__:
        assert getattr(edgeopt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'compyle'"):
        _ = edgeopt.compyle  # type: ignore[attr-defined]


# ---- the built-in example


def test_the_example_is_small_and_fits_its_data() -> None:
    files = [*example.DATA.iterdir()]
    assert sum(file.stat().st_size for file in files if file.is_file()) < 1_000_000
    calibration, evaluation = (
        np.load(example.DATA / f"{part}.npz") for part in ("calibration", "evaluation")
    )
    for part, samples in ((calibration, 200), (evaluation, 597)):
        assert part["image"].shape == (samples, 1, 8, 8)
        assert part["image"].dtype == np.float32
        assert part["label"].shape == (samples,)
        assert set(part["label"]) == set(range(10))
    common = {image.tobytes() for image in calibration["image"]} & {
        image.tobytes() for image in evaluation["image"]
    }
    assert not common


def test_the_example_keeps_its_normalizations_and_a_dynamic_batch() -> None:
    model = onnx.load(example.MODEL)
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert sum(node.op_type == "BatchNormalization" for node in model.graph.node) == 13


def test_the_example_is_accurate_in_float() -> None:
    import onnxruntime

    data = np.load(example.DATA / "evaluation.npz")
    session = onnxruntime.InferenceSession(example.MODEL, providers=["CPUExecutionProvider"])
    accuracy = (session.run(None, {"image": data["image"]})[0].argmax(1) == data["label"]).mean()
    assert 0.96 < accuracy < 0.98


# ---- packaging


def test_requirements_are_pinned_with_hashes_and_name_no_index() -> None:
    for name in ("requirements.txt", "requirements-build.txt", "requirements-dev.txt"):
        text = (ROOT / name).read_text()
        assert "://" not in text
        assert "index" not in text
        for block in text.replace("\\\n", " ").strip().splitlines():
            assert "==" in block.split()[0]
            assert "--hash=sha256:" in block
        assert "torch" not in text


def test_every_core_dependency_is_pinned_alike_everywhere() -> None:
    def pins(name: str) -> set[str]:
        lines = (ROOT / name).read_text().splitlines()
        return {line.strip(" \\") for line in lines if "==" in line}

    assert pins("requirements.txt") <= pins("requirements-dev.txt")
    assert pins("requirements-build.txt") <= pins("requirements-dev.txt")


def test_the_wheel_holds_profiles_and_example(tmp_path: Path) -> None:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("the build backend hatchling is not installed")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
        names = set(archive.namelist())
    for kind in ("devices", "runtimes"):
        profiles = {path.name for path in (ROOT / kind).glob("*.yaml")}
        assert profiles
        assert {f"edgeopt/profiles/{kind}/{name}" for name in profiles} <= names
    assert {"edgeopt/py.typed", "edgeopt/example/model.onnx", "edgeopt/example/ATTRIBUTION"} <= names
    assert not any(name.startswith(("tests", "scripts", "benchmarks")) for name in names)
    code = (
        "from edgeopt import platform; assert 'installed' in platform.__file__; "
        "print(len(platform.profile_names('devices')), len(platform.profile_names('runtimes')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    devices, runtimes = done.stdout.split()
    assert int(devices) == len([*(ROOT / "devices").glob("*.yaml")])
    assert int(runtimes) == len([*(ROOT / "runtimes").glob("*.yaml")])
