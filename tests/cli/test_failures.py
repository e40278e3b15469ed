"""Everything that goes wrong ends in one sentence, the right exit code, and nothing half-written."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt import example
from edgeopt.artifact import open_artifact
from edgeopt.cli import call, cli

Edgeopt = Callable[..., Any]
DEVICE = ("--device", "raspberry-pi-4")


def model(*nodes: onnx.NodeProto, weights: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def product(value: float = 1.0) -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    weight[1, 2] = value
    return model(helper.make_node("MatMul", ["x", "w"], ["y"], name="product"), weights={"w": weight})


def save_data(folder: str, **arrays: Any) -> None:
    """Writes calibration and evaluation data that fit ``product``, but for what is given."""
    Path(folder).mkdir()
    drawn = np.random.default_rng(1).standard_normal((120, 4)).astype(np.float32)
    for index, name in enumerate(("calibration", "evaluation")):
        part: dict[str, Any] = {"x": drawn[index * 60 : index * 60 + 60], "label": np.arange(60) % 3}
        part.update({key: array[index] for key, array in arrays.items()})
        np.savez(
            Path(folder) / f"{name}.npz", **{key: array for key, array in part.items() if array is not None}
        )


def refused(ran: Any, *words: str, code: int = 2) -> None:
    assert ran.code == code, ran.err
    for word in words:
        assert word in ran.err
    assert "Traceback" not in ran.err
    assert "internal error" not in ran.err
    assert not Path("build").exists()
    assert not Path("out").exists()


# ---- models


def test_a_corrupt_model(edgeopt: Edgeopt) -> None:
    Path("m.onnx").write_bytes(bytes(random.Random(0).randbytes(4000)))
    refused(edgeopt("compile", "m.onnx", *DEVICE), "m.onnx")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_model(edgeopt: Edgeopt, share: float) -> None:
    whole = example.MODEL.read_bytes()
    Path("m.onnx").write_bytes(whole[: int(len(whole) * share)])
    refused(edgeopt("compile", "m.onnx", *DEVICE), "m.onnx")


def test_a_missing_model(edgeopt: Edgeopt) -> None:
    refused(edgeopt("compile", "m.onnx", *DEVICE), "m.onnx")


def test_missing_external_data(edgeopt: Edgeopt) -> None:
    onnx.save(product(), "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    Path("m.data").unlink()
    refused(edgeopt("compile", "m.onnx", *DEVICE), "m.data")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(edgeopt: Edgeopt, value: float) -> None:
    onnx.save(product(value), "m.onnx")
    refused(edgeopt("compile", "m.onnx", *DEVICE), "'w'", "NaN" if np.isnan(value) else "infinity")


def test_an_operator_no_runtime_knows(edgeopt: Edgeopt) -> None:
    node = helper.make_node("Frobnicate", ["x"], ["y"], name="mystery", domain="com.acme")
    strange = model(node)
    strange.opset_import.append(helper.make_opsetid("com.acme", 1))
    onnx.save(strange, "m.onnx")
    refused(edgeopt("compile", "m.onnx", *DEVICE), "mystery", "Frobnicate")


# ---- data


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": (None, None), "X1": (np.ones((60, 4), "f4"),) * 2}, ("X1", "x")),
        ({"x": (np.ones((60, 5), "f4"),) * 2}, ("5", "4")),
        ({"x": (np.full((60, 4), np.nan, "f4"),) * 2}, ("NaN",)),
        ({"x": (np.ones((0, 4), "f4"),) * 2, "label": (np.zeros(0, int),) * 2}, ("empty",)),
        ({"label": (np.arange(60), np.arange(60))}, ("label",)),
        ({"label": (None, None)}, ("label",)),
    ],
)
def test_data_that_do_not_fit(edgeopt: Edgeopt, arrays: dict[str, Any], words: tuple[str, ...]) -> None:
    onnx.save(product(), "m.onnx")
    save_data("data", **arrays)
    refused(edgeopt("compile", "m.onnx", *DEVICE, "--data", "data", "--metric", "top1"), *words)


def test_overlapping_data_warn_and_say_how_many(edgeopt: Edgeopt) -> None:
    onnx.save(product(), "m.onnx")
    shared = np.random.default_rng(2).standard_normal((60, 4)).astype(np.float32)
    other = np.concatenate([shared[:7], shared[7:] + 1])
    save_data("data", x=(shared, other))
    ran = edgeopt("compile", "m.onnx", *DEVICE, "--data", "data", "--metric", "top1", "--max-drop", "50pp")
    assert ran.code == 0, ran.err
    text = " ".join(ran.out.split())
    assert "of the 60 evaluation samples are also in" in text


# ---- outputs


def test_an_output_that_cannot_be_written(edgeopt: Edgeopt) -> None:
    Path("file").write_text("")
    ran = edgeopt("compile", example.MODEL, *DEVICE, "-o", "file/out")
    refused(ran, "file")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(edgeopt: Edgeopt, tiny_disk: Path) -> None:
    ran = edgeopt("compile", example.MODEL, *DEVICE, "--scheme", "float16", "-o", tiny_disk / "out")
    assert ran.code == 2, ran.err
    assert "No space left" in ran.err
    assert list(tiny_disk.iterdir()) == []


def test_a_full_disk_under_the_store(
    edgeopt: Edgeopt, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEOPT_CACHE", str(tiny_disk / "store"))
    ran = edgeopt("compile", example.MODEL, *DEVICE, "-o", "out")
    refused(ran, "No space left", "EDGEOPT_CACHE")


# ---- interruption


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_the_output_absent_or_whole(tmp_path: Path, how: signal.Signals) -> None:
    """Kills compiles at moments spread over their whole run, one after another into the same folder."""
    environment = {
        **os.environ,
        "EDGEOPT_CACHE": str(tmp_path / "store"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [
        sys.executable,
        "-m",
        "edgeopt",
        "compile",
        str(example.MODEL),
        *DEVICE,
        "-o",
        "out",
        "--force",
    ]
    where = tmp_path / "here"

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, cwd=where, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )

    started = time.monotonic()
    assert start().wait() == 0
    whole = time.monotonic() - started
    shutil.rmtree(where / "out")
    rng = random.Random(int(how))
    interrupted = 0
    for _ in range(5):
        process = start()
        time.sleep(whole * rng.uniform(0.3, 1.1))
        process.send_signal(how)
        _, err = process.communicate()
        if process.returncode:
            interrupted += 1
            assert process.returncode in (130, -how), err.decode()
        if how == signal.SIGINT and process.returncode == 130 and b"error:" in err:
            assert b"interrupted" in err
        if (where / "out").exists():
            open_artifact(where / "out").verify()
            assert (where / "out" / "metrics.json").is_file()
    assert interrupted
    assert start().wait() == 0
    open_artifact(where / "out").verify()
    assert [path.name for path in where.iterdir()] == ["out"]


def test_an_interrupt_while_a_compiled_module_is_imported_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such modules turn it into an ImportError."""

    def struck(*_: object, **__: object) -> int:
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr(cli, "main", struck)
    assert call(["devices", "list"]) == 130
    assert "interrupted" in capsys.readouterr().err
