"""Where a user runs it: other locales, folders and paths; pipes; no home folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt import example

Edgeopt = Callable[..., Any]
DEVICE = ("--device", "raspberry-pi-4")


def process(*arguments: Any, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "edgeopt", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        check=False,
    )


def test_an_ascii_terminal_without_a_home_folder_shows_everything() -> None:
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "HOME": "/proc/none"}
    data = ("--data", example.DATA, "--metric", "top1", "--max-latency", "40ms")
    ran = process("compile", example.MODEL, *DEVICE, *data, "-o", "out", **locale)
    assert ran.returncode == 0, ran.stderr.decode()
    text = ran.stdout.decode("ascii")
    assert " us " in text and "<= 1.00 pp" in text and "<= 40 ms" in text
    assert ran.stderr == b"", "no runtime speaks up on the side, such as about its telemetry"


def test_a_store_that_cannot_be_written_is_one_sentence() -> None:
    ran = process("compile", example.MODEL, *DEVICE, "-o", "out", EDGEOPT_CACHE="/proc/none/store")
    assert ran.returncode == 2
    assert b"cannot write the store of steps" in ran.stderr and b"EDGEOPT_CACHE" in ran.stderr
    assert b"Traceback" not in ran.stderr
    assert not Path("out").exists()


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m edgeopt devices list | head -1"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(command, shell=True, env=environment, capture_output=True, check=False)
    assert ran.stdout.startswith(b"device") and ran.stderr == b""


@pytest.mark.parametrize("output", ["out/", "./deep/er/out", "aus gabe/ö"])
def test_any_path_will_do(edgeopt: Edgeopt, output: str) -> None:
    folder = Path("mit Leer ü")
    folder.mkdir()
    shutil.copy(example.MODEL, folder / "modell ß.onnx")
    ran = edgeopt("compile", folder / "modell ß.onnx", *DEVICE, "-o", output)
    assert ran.code == 0, ran.err
    assert (Path(output) / "manifest.json").is_file()
    snippet = subprocess.run(
        [sys.executable, Path(output) / "run.py"], capture_output=True, text=True, check=True
    )
    assert snippet.stdout.startswith("logits (1, 10)")


def test_without_output_the_model_names_the_folder(edgeopt: Edgeopt) -> None:
    shutil.copy(example.MODEL, "modell ß.onnx")
    assert edgeopt("compile", "modell ß.onnx", *DEVICE).code == 0
    assert Path("build/modell ß/raspberry-pi-4/onnxruntime/manifest.json").is_file()


def test_sizes_before_and_after_are_both_those_of_files(edgeopt: Edgeopt) -> None:
    (outcome,) = edgeopt("compile", example.MODEL, *DEVICE, "-o", "out", "--json").json()["outcomes"]
    assert outcome["before"]["size"]["value"] == example.MODEL.stat().st_size
    assert outcome["after"]["size"]["value"] == Path("out/model.onnx").stat().st_size


def test_a_prediction_knows_the_shapes_of_the_data(edgeopt: Edgeopt) -> None:
    """One store serves runs with and without data, whose inputs differ in size."""
    with np.load(example.DATA / "evaluation.npz") as arrays:
        image = np.ascontiguousarray(arrays["image"][:100])
    np.savez("large.npz", image=np.tile(image, (1, 1, 3, 3)))
    save_open_model()
    seen = [
        edgeopt("compile", "open.onnx", *DEVICE, *data, "--force", "-o", "out", "--json").json()
        for data in ((), ("--data", "large.npz"))
    ]
    small, large = (body["outcomes"][0]["before"]["latency"]["value"] for body in seen)
    assert large > small


def save_open_model() -> None:
    """A convolution over images of any size."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((64, 1, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w"], ["y"], pads=[1, 1, 1, 1], name="/conv")],
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64, "h", "w"])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "open.onnx"
    )
