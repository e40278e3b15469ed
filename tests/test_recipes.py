"""Every recipe of the folder ``recipes`` runs as it stands, once the files that it names are beside it."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgeopt import example
from edgeopt.artifact import open_artifact
from edgeopt.cli import call
from edgeopt.session import Session

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
COLOURS = np.array([[220, 60, 60], [60, 200, 70], [50, 80, 220], [210, 210, 60]])
LETTERS, LENGTH = 8, 5


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, a store of steps of its own, and no emulator."""
    monkeypatch.setenv("EDGEOPT_CACHE", str(tmp_path / "store"))
    monkeypatch.delenv("EDGEOPT_EMULATOR", raising=False)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def run(recipe: str, *arguments: str) -> dict[str, dict[str, Any]]:
    """Runs a recipe and returns its outcomes by device and target."""
    assert call(["run", recipe, "--report", "json=report.json", *arguments]) == 0
    outcomes = json.loads(Path("report.json").read_text())["outcomes"]
    return {f"{outcome['device']} {outcome['target']}": outcome for outcome in outcomes}


def graph(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[int | str]]],
    outputs: dict[str, list[int | str]],
    weights: dict[str, np.ndarray],
) -> onnx.ModelProto:
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def test_a_classifier_on_several_boards() -> None:
    shutil.copy(RECIPES / "classifier.yaml", ".")
    shutil.copy(example.MODEL, "model.onnx")
    shutil.copytree(example.DATA, "data")
    found = run("classifier.yaml")
    assert len(found) == 3
    for outcome in found.values():
        assert {verdict["status"] for verdict in outcome["verdicts"]} == {"met"}
        assert len(outcome["verdicts"]) == 4
    passes = {name: [step["pass"] for step in outcome["ledger"]] for name, outcome in found.items()}
    assert "static-int8" in passes["raspberry-pi-4 onnxruntime"]
    assert "float16" in passes["raspberry-pi-5 onnxruntime"]
    assert "fold-batch-norm" in passes["raspberry-pi-5 onnxruntime"]


def colour_model(rng: np.random.Generator) -> onnx.ModelProto:
    """Tells the colours apart: its last layer is fitted to what the layers before give."""
    convolution = (rng.standard_normal((16, 3, 3, 3)) / 5).astype(np.float32)
    flat = ((COLOURS / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).astype(np.float32)
    features = np.maximum(flat @ convolution.sum((2, 3)).T, 0)
    head = np.linalg.lstsq(features, np.eye(4, dtype=np.float32), rcond=None)[0].astype(np.float32)
    return graph(
        [
            helper.make_node("Conv", ["image", "convolution"], ["c"], name="/conv"),
            helper.make_node("Relu", ["c"], ["r"], name="/relu"),
            helper.make_node("GlobalAveragePool", ["r"], ["p"], name="/pool"),
            helper.make_node("Flatten", ["p"], ["f"], name="/flatten"),
            helper.make_node("MatMul", ["f", "head"], ["logits"], name="/head"),
        ],
        {"image": (TensorProto.FLOAT, ["batch", 3, 32, 32])},
        {"logits": ["batch", 4]},
        {"convolution": convolution, "head": head},
    )


def test_photos_with_preprocessing_in_the_artifact() -> None:
    rng = np.random.default_rng(0)
    shutil.copy(RECIPES / "photos.yaml", ".")
    onnx.save(colour_model(rng), "model.onnx")
    Path("photos").mkdir()
    with Path("photos/labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "label", "split"])
        for index in range(150):
            label = index % 4
            pixels = COLOURS[label] + rng.normal(0, 12, (40, 48, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(f"photos/{index}.png")
            writer.writerow([f"{index}.png", label, "calibration" if index < 60 else "evaluation"])
    (outcome,) = run("photos.yaml").values()
    assert outcome["before"]["top1"]["value"] == 100
    assert outcome["after"]["top1"]["n"] == 90
    session = open_artifact(Path(outcome["path"])).open()["model"]
    (spec,) = session.inputs
    assert (spec.dtype, list(spec.shape[1:])) == ("uint8", [32, 32, 3])
    plain = np.broadcast_to(COLOURS[:, None, None], (4, 32, 32, 3)).astype(np.uint8)
    assert session.run({"image": plain})["logits"].argmax(1).tolist() == [0, 1, 2, 3]


def save_speller(rng: np.random.Generator) -> None:
    """An encoder that hides a word in a rotated vector, and a decoder that reads and turns it."""
    size = LETTERS * LENGTH
    rotation = np.linalg.qr(rng.standard_normal((size, size)))[0].astype(np.float32)
    turn = rotation.T @ np.roll(np.eye(size), -LETTERS, 1).astype(np.float32) @ rotation
    encoder = graph(
        [
            helper.make_node("Gather", ["letters", "chars"], ["g"], name="/embed"),
            helper.make_node("Reshape", ["g", "flat"], ["h"], name="/flatten"),
            helper.make_node("MatMul", ["h", "rotation"], ["hidden"], name="/rotate"),
        ],
        {"chars": (TensorProto.INT64, ["batch", LENGTH])},
        {"hidden": ["batch", size]},
        {
            "letters": np.eye(LETTERS, dtype=np.float32),
            "flat": np.array([-1, size]),
            "rotation": rotation,
        },
    )
    decoder = graph(
        [
            helper.make_node("MatMul", ["hidden", "read"], ["l"], name="/read"),
            helper.make_node("Gather", ["silence", "token"], ["s"], name="/token"),
            helper.make_node("Squeeze", ["s", "one"], ["q"], name="/squeeze"),
            helper.make_node("Add", ["l", "q"], ["logits"], name="/add"),
            helper.make_node("MatMul", ["hidden", "turn"], ["hidden_out"], name="/turn"),
        ],
        {
            "token": (TensorProto.INT64, ["batch", 1]),
            "hidden": (TensorProto.FLOAT, ["batch", size]),
        },
        {"logits": ["batch", LETTERS], "hidden_out": ["batch", size]},
        {
            "read": np.ascontiguousarray(rotation.T[:, :LETTERS]),
            "turn": turn,
            "silence": np.zeros((LETTERS, LETTERS), np.float32),
            "one": np.array([1]),
        },
    )
    onnx.save(encoder, "encoder.onnx")
    onnx.save(decoder, "decoder.onnx")
    words = rng.integers(0, LETTERS, (150, LENGTH))
    np.savez("words.npz", chars=words, label=words)


def test_a_model_of_two_parts(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(RECIPES / "spelling", here, dirs_exist_ok=True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "spelling", raising=False)
    save_speller(np.random.default_rng(0))
    (outcome,) = run("edgeopt.yaml").values()
    assert outcome["before"]["word_accuracy"]["value"] == 100
    assert outcome["after"]["word_accuracy"]["n"] == 120
    assert {step["part"] for step in outcome["ledger"]} == {"encoder", "decoder"}
    sessions = open_artifact(Path(outcome["path"])).open()
    assert sorted(sessions) == ["decoder", "encoder"]
    assert all(isinstance(session, Session) for session in sessions.values())


def test_code_of_a_recipe_is_refused_on_request(here: Path) -> None:
    shutil.copytree(RECIPES / "spelling", here, dirs_exist_ok=True)
    save_speller(np.random.default_rng(0))
    assert call(["run", "--no-code"]) == 2
    assert not Path("build").exists()


def test_one_model_for_several_runtimes() -> None:
    pytest.importorskip("ai_edge_litert", reason="needs the extra: pip install 'edgeopt[tflite]'")
    shutil.copy(RECIPES / "runtimes.yaml", ".")
    shutil.copy(example.MODEL, "model.onnx")
    shutil.copytree(example.DATA, "data")
    found = run("runtimes.yaml")
    assert set(found) == {
        f"{device} {target}"
        for device in ("raspberry-pi-4", "pixel-6")
        for target in ("onnxruntime", "tflite")
    }


def test_every_recipe_is_run_by_a_test() -> None:
    names = {path.relative_to(RECIPES).as_posix() for path in RECIPES.rglob("*.yaml")}
    assert names == {"classifier.yaml", "photos.yaml", "runtimes.yaml", "spelling/edgeopt.yaml"}
    listed = (RECIPES / "README.md").read_text()
    assert all(f"({name})" in listed for name in names)
