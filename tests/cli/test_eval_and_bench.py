from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.cli import call

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 3] features) => (float[batch, 3] logits) { logits = %s (features) }
"""


@pytest.fixture
def models(tmp_path: Path) -> tuple[str, str]:
    paths = []
    for operator in ("Identity", "Abs"):
        path = tmp_path / f"{operator.lower()}.onnx"
        ir.save(ir.from_onnx_text(TEXT % operator), path)
        paths.append(str(path))
    return paths[0], paths[1]


@pytest.fixture
def data(tmp_path: Path) -> str:
    features = np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32)
    folder = tmp_path / "data"
    folder.mkdir()
    np.savez(folder / "evaluation.npz", features=features, label=features.argmax(1))
    return str(folder)


def test_eval_shows_metric_drop_and_fidelity(models, data, capsys) -> None:
    original, other = models
    assert call(["eval", other, "--against", original, "--data", data, "--metric", "top1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["original"]["value"] == 100
    assert found["drop"]["value"] == pytest.approx(100 - found["artifact"]["value"])
    assert found["fidelity"]["unit"] == "dB" and found["agreement"]["n"] == 200
    assert call(["eval", original, "--data", data, "--metric", "top1"]) == 0
    shown = capsys.readouterr().out
    assert "top1" in shown and "100.00 %" in shown and "98.12 to 100.00" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_eval_reads_the_data_of_a_recipe(models, data, tmp_path: Path, capsys) -> None:
    (tmp_path / "recipe.yaml").write_text("data: {evaluate: {path: data/evaluation.npz, metric: top1}}\n")
    assert call(["eval", models[0], "--data", str(tmp_path / "recipe.yaml"), "--json", "--limit", "50"]) == 0
    assert json.loads(capsys.readouterr().out)["artifact"]["n"] == 50


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--metric", "top9"], "there is no metric 'top9'"),
        ([], "there is nothing to measure"),
        (["--metric", "top1", "--on", "moon"], "there is no runner 'moon'"),
        (["--metric", "metrics.mine:score", "--no-code"], "--no-code refuses it"),
    ],
)
def test_eval_errors_end_in_two(models, data, capsys, arguments, sentence) -> None:
    assert call(["eval", models[0], "--data", data, *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_eval_of_a_label_out_of_range(models, tmp_path: Path, capsys) -> None:
    np.savez(tmp_path / "e.npz", features=np.zeros((10, 3), np.float32), label=np.full(10, 3))
    assert call(["eval", models[0], "--data", str(tmp_path / "e.npz"), "--metric", "top1"]) == 2
    assert "the label 3 of sample 0 is out of range: the model has 3 classes" in capsys.readouterr().err


def test_bench_on_the_host_says_so(models, capsys) -> None:
    arguments = ["bench", models[1], "--against", models[0], "--runs", "20"]
    assert call([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["note"] == "host, not device"
    part = found["parts"]["model"]
    assert part["model"]["n"] == 20 and part["verdict"] in ("faster", "slower", "inconclusive")
    assert found["memory"]["model"]["value"] > found["memory"]["model"]["detail"]["before_load"] > 0
    assert call(arguments) == 0
    shown = capsys.readouterr().out
    assert "host, not device" in shown and "noise floor" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_bench_predicts_for_a_device(models, capsys) -> None:
    assert call(["bench", models[1], "--on", "predict", "--device", "raspberry-pi-4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    latency, memory = found["parts"]["model"]["model"], found["memory"]["model"]
    assert (latency["how"], latency["where"]) == ("predicted", "raspberry-pi-4")
    assert latency["interval"][0] < latency["value"] < latency["interval"][1]
    assert memory["how"] == "predicted" and memory["unit"] == "B"


def test_a_truncated_model_is_a_mistake_of_what_was_given(models, tmp_path, capsys) -> None:
    cut = tmp_path / "cut.onnx"
    whole = Path(models[0]).read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    assert call(["bench", str(cut)]) == 2
    assert "this is no ONNX model, or a truncated one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.onnx"], "there is no model or artifact 'none.onnx'"),
        (["MODEL", "--on", "moon"], "there is no runner 'moon'"),
        (["MODEL", "--on", "predict"], "a prediction needs a device"),
        (["MODEL", "--shape", "feature=1,3"], "the model has no input 'feature'"),
        (["MODEL", "--shape", "features=1,4"], "cannot take the shape [1, 4]"),
    ],
)
def test_bench_errors_end_in_two(models, capsys, arguments, sentence) -> None:
    named = [models[0] if argument == "MODEL" else argument for argument in arguments]
    assert call(["bench", *named]) == 2
    assert sentence in capsys.readouterr().err
