"""``edgeopt compile`` from the outside: artifacts, verdicts, exit codes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgeopt as package
from edgeopt import example
from edgeopt.artifact import open_artifact

Edgeopt = Callable[..., Any]
DEVICE = ("--device", "raspberry-pi-4")
DATA = ("--data", example.DATA, "--metric", "top1")


def test_the_built_in_example_meets_its_budgets(edgeopt: Edgeopt) -> None:
    ran = edgeopt("compile", *DEVICE)
    assert ran.code == 0, ran.err
    for word in (
        "quantize",
        "latency",
        "top1",
        "accuracy drop",
        "met",
        "build/example/raspberry-pi-4/onnxruntime",
    ):
        assert word in ran.out.replace("static-int8", "quantize")
    assert "built-in example" in ran.err
    assert max(map(len, ran.out.splitlines())) <= 100
    artifact = open_artifact(Path("build/example/raspberry-pi-4/onnxruntime"))
    artifact.verify()
    assert artifact.size < 0.6 * example.MODEL.stat().st_size


def test_json_is_one_object_on_stdout(edgeopt: Edgeopt) -> None:
    ran = edgeopt("compile", example.MODEL, *DEVICE, *DATA, "--json", "-o", "out")
    body = ran.json()
    (outcome,) = body["outcomes"]
    assert outcome["after"]["latency"]["how"] == "predicted"
    assert outcome["after"]["top1"]["n"] == len(np.load(example.DATA / "evaluation.npz")["label"])
    low, high = outcome["after"]["accuracy_drop"]["interval"]
    assert low <= outcome["after"]["accuracy_drop"]["value"] <= high
    assert outcome["ledger"][-1]["pass"] == "prepare"
    assert json.loads(Path("out/manifest.json").read_text())["model"] == "model.onnx"


def test_the_artifact_runs_as_its_snippet_says(edgeopt: Edgeopt) -> None:
    edgeopt("compile", example.MODEL, *DEVICE, *DATA, "-o", "out")
    sessions = open_artifact(Path("out")).open()
    evaluation = np.load(example.DATA / "evaluation.npz")
    logits = sessions["model"].run({"image": evaluation["image"]})["logits"]
    assert (logits.argmax(1) == evaluation["label"]).mean() > 0.9
    golden = np.load("out/golden/inputs.npz"), np.load("out/golden/outputs.npz")
    again = sessions["model"].run({"image": golden[0]["0.image"]})["logits"]
    expected = golden[1]["0.logits"]
    tolerance = json.loads(Path("out/manifest.json").read_text())["golden"]["tolerance"]["relative"]
    assert np.abs(again - expected).max() <= tolerance * np.abs(expected).max()


def test_two_folders_give_one_digest_and_the_store_is_used(edgeopt: Edgeopt, monkeypatch: Any) -> None:
    first = edgeopt("compile", example.MODEL, *DEVICE, *DATA, "-o", "one", "--json").json()["outcomes"][0]
    again = edgeopt("compile", example.MODEL, *DEVICE, *DATA, "-o", "two", "--json").json()["outcomes"][0]
    assert first["digest"] == again["digest"]
    assert not any(step["cached"] for step in first["ledger"])
    assert all(step["cached"] for step in again["ledger"])
    monkeypatch.setenv("EDGEOPT_CACHE", "fresh-store")
    fresh = edgeopt("compile", example.MODEL, *DEVICE, *DATA, "-o", "three", "--json").json()["outcomes"][0]
    assert fresh["digest"] == first["digest"]
    assert not any(step["cached"] for step in fresh["ledger"])


def test_a_missed_budget_exits_1_and_writes_the_artifact(edgeopt: Edgeopt) -> None:
    ran = edgeopt("compile", example.MODEL, *DEVICE, *DATA, "--max-size", "1KiB", "-o", "out")
    assert ran.code == 1
    assert "missed: size" in ran.out
    assert "try:" in ran.out
    open_artifact(Path("out")).verify()


def test_without_data_it_compiles_and_says_what_data_would_buy(edgeopt: Edgeopt) -> None:
    ran = edgeopt("compile", example.MODEL, *DEVICE, "-o", "out", "--json")
    assert ran.code == 0, ran.err
    (outcome,) = ran.json()["outcomes"]
    assert any("data" in note for note in outcome["notes"])
    assert outcome["after"]["fidelity"]["conditions"]["inputs"] == "seeded"
    assert outcome["verdicts"] == []
    again = edgeopt("compile", example.MODEL, *DEVICE, "-o", "out2")
    assert "seeded inputs, on this host: shown, not judged" in again.out


def test_judged_by_fidelity_alone_it_says_on_how_many_samples(edgeopt: Edgeopt) -> None:
    Path("unlabelled").mkdir()
    for name, count in (("calibration", 16), ("evaluation", 12)):
        with np.load(example.DATA / f"{name}.npz") as held:
            inputs = {key: held[key][:count] for key in held.files if held[key].ndim > 1}
        np.savez(Path("unlabelled") / f"{name}.npz", **inputs)  # type: ignore[arg-type]
    ran = edgeopt("compile", example.MODEL, *DEVICE, "--data", "unlabelled", "-o", "out")
    assert "judged on 12 evaluation samples" in ran.out, ran.err


@pytest.mark.parametrize("option", ["--max-drop=1pp", "--min-fidelity=20dB"])
def test_a_budget_on_accuracy_needs_data(edgeopt: Edgeopt, option: str) -> None:
    ran = edgeopt("compile", example.MODEL, *DEVICE, option)
    assert ran.code == 2
    assert "cannot be judged without data" in ran.err
    assert not Path("build").exists()


def test_a_budget_on_accuracy_needs_evaluation_data_and_a_metric(edgeopt: Edgeopt) -> None:
    Path("data").mkdir()
    shutil.copy(example.DATA / "calibration.npz", "data")
    ran = edgeopt("compile", example.MODEL, *DEVICE, "--data", "data", "--max-drop", "1pp")
    assert (ran.code, "no evaluation part" in ran.err) == (2, True)
    shutil.copy(example.DATA / "evaluation.npz", "data")
    ran = edgeopt("compile", example.MODEL, *DEVICE, "--data", "data", "--max-drop", "1pp")
    assert (ran.code, "needs a metric" in ran.err) == (2, True)


def test_strict_makes_an_inconclusive_verdict_fail(edgeopt: Edgeopt) -> None:
    arguments = ("compile", example.MODEL, *DEVICE, *DATA, "--max-drop", "0.1pp", "-o", "out", "--json")
    plain, strict = edgeopt(*arguments), edgeopt(*arguments, "--strict")
    (verdict,) = plain.json()["outcomes"][0]["verdicts"]
    assert verdict["status"] == "inconclusive"
    assert (plain.code, strict.code) == (0 if verdict["passes"] else 1, 6)


def test_keep_float_takes_the_users_names(edgeopt: Edgeopt) -> None:
    node = next(node.name for node in onnx.load(example.MODEL).graph.node if node.op_type == "Conv")
    ran = edgeopt("compile", example.MODEL, *DEVICE, *DATA, "--keep-float", node, "-o", "out", "--json")
    assert ran.code == 0, ran.err
    wrong = edgeopt("compile", example.MODEL, *DEVICE, *DATA, "--keep-float", node[:-1] + "?x", "-o", "out")
    assert wrong.code == 2
    assert node in wrong.err


def test_the_artifact_holds_a_recipe_that_makes_it_again(edgeopt: Edgeopt) -> None:
    limits = ("--max-size", "1MiB", "--max-drop", "2pp", "--max-latency", "1s")
    edgeopt("compile", example.MODEL, *DEVICE, *DATA, *limits, "--scheme", "static-int8", "-o", "out")
    shutil.copy("out/recipe.yaml", "again.yaml")
    ran = edgeopt("compile", "again.yaml", "-o", "again")
    assert ran.code == 0, ran.err
    for name in ("manifest.json", "recipe.yaml"):
        again = Path("again", name).read_text()
        assert again == Path("out", name).read_text()


def test_the_ort_format(edgeopt: Edgeopt) -> None:
    ran = edgeopt("compile", example.MODEL, *DEVICE, *DATA, "--format", "ort", "-o", "out")
    assert ran.code == 0, ran.err
    assert json.loads(Path("out/manifest.json").read_text())["model"] == "model.ort"
    assert edgeopt("eval", "out", "--data", example.DATA, "--metric", "top1").code == 0


def test_reports_are_written_and_do_not_change_the_exit_code(edgeopt: Edgeopt) -> None:
    reports = ("--report", "json=r/out.json", "--report", "md=r/out.md")
    ran = edgeopt("compile", example.MODEL, *DEVICE, *DATA, "--max-size", "1KiB", "-o", "out", *reports)
    assert ran.code == 1
    assert json.loads(Path("r/out.json").read_text())["exit_code"] == 1
    assert "| size |" in Path("r/out.md").read_text()


def test_the_html_report_needs_no_network_and_keeps_kinds_of_evidence_apart(edgeopt: Edgeopt) -> None:
    shutil.copy(example.MODEL, "a<b>.onnx")
    ran = edgeopt("compile", "a<b>.onnx", *DEVICE, *DATA, "-o", "out", "--report", "html=out.html")
    assert ran.code == 0, ran.err
    page = Path("out.html").read_text()
    assert "http" not in page
    assert "<script" not in page
    assert "a&lt;b&gt;" in page
    measured, predicted = page.index("<h3>Measured"), page.index("<h3>Predicted")
    assert measured < page.index("<td>size</td>") < predicted < page.index("<td>latency*</td>")
    assert page.count("<svg") == 1  # the budget on the accuracy drop has an interval


def test_the_same_from_python(tmp_path: Path) -> None:
    outcome = package.compile(
        onnx.load(example.MODEL),
        "raspberry-pi-4",
        data=example.DATA,
        metric="top1",
        budget={"size": "1 MiB"},
        output=tmp_path / "out",
    )
    assert outcome.exit_code == 0
    assert outcome.after["top1"].value > 90
    assert outcome.path == tmp_path / "out"


def test_an_output_folder_that_is_not_ours_is_kept(edgeopt: Edgeopt) -> None:
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("years of work")
    ran = edgeopt("compile", example.MODEL, *DEVICE, "-o", "out")
    assert ran.code == 2
    assert "was not written by edgeopt" in ran.err
    assert Path("out/thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--device", "raspbery-pi-4"), "nearest: raspberry-pi-4"),
        ((), "no device given"),
        ((*DEVICE, "--target", "tflit"), "carries no runtime 'tflit'"),
        ((*DEVICE, "--max-size", "3"), "the budget size: '3' has no unit"),
        ((*DEVICE, "--metric", "top1"), "needs data"),
        ((*DEVICE, "--shape", "image"), "is not of the form NAME=1,3,224,224"),
        ((*DEVICE, "--shape", "imag=1,1,8,8"), "image"),
        ((*DEVICE, "--scheme", "int3"), "static-int8"),
        ((*DEVICE, "--report", "pdf=x"), "there is no report format 'pdf'"),
        ((*DEVICE, "--data", "nowhere"), "nowhere"),
        ((*DEVICE, "--format", "zip"), "has no format 'zip'"),
    ],
)
def test_usage_errors_exit_2_in_one_sentence(edgeopt: Edgeopt, arguments: Any, sentence: str) -> None:
    ran = edgeopt("compile", example.MODEL, *arguments)
    assert ran.code == 2
    assert sentence in ran.err
    assert "Traceback" not in ran.err
    assert not Path("build").exists()


def test_what_other_tools_call_a_command_leads_to_ours(edgeopt: Edgeopt) -> None:
    ran = edgeopt("simplify", example.MODEL)
    assert ran.code == 2
    assert "nearest: optimize" in ran.err


def test_a_recipe_decides_what_it_holds(edgeopt: Edgeopt) -> None:
    Path("edgeopt.yaml").write_text("recipe: 1\nmodel: {path: m.onnx}\ndevices: [raspberry-pi-4]\n")
    shutil.copy(example.MODEL, "m.onnx")
    assert edgeopt("compile").code == 0
    assert Path("build/m/raspberry-pi-4/onnxruntime/manifest.json").is_file()
    ran = edgeopt("compile", "--max-size", "1MiB")
    assert ran.code == 2
    assert "has no effect beside a recipe" in ran.err


def test_weights_that_the_store_holds_are_in_the_artifact(edgeopt: Edgeopt) -> None:
    """Weights above 1 MiB pass through the store as files; what ships is whole and runs anywhere."""
    weight = np.random.default_rng(0).standard_normal((64, 8192)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "graph",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 64])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 8192])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8),
        "m.onnx",
    )
    for number in range(2):
        ran = edgeopt("compile", "m.onnx", *DEVICE, "--scheme", "float16", "-o", f"out{number}")
        assert ran.code == 0, ran.err
    shutil.rmtree(os.environ["EDGEOPT_CACHE"])
    found = open_artifact(Path("out1")).open()["model"].run({"x": np.ones((1, 64), np.float32)})["y"]
    assert np.allclose(found, weight.sum(0), atol=0.1)


def test_a_misspelt_command_names_its_neighbour(edgeopt: Edgeopt) -> None:
    ran = edgeopt("comple", "m.onnx")
    assert (ran.code, "nearest: compile" in ran.err) == (2, True)


def test_an_artifact_can_be_compiled_again(edgeopt: Edgeopt) -> None:
    """Its short names are given anew, in whatever order the steps leave the constants."""
    assert edgeopt("compile", example.MODEL, *DEVICE, *DATA, "-o", "one").code == 0
    again = edgeopt("compile", "one/model.onnx", *DEVICE, *DATA, "-o", "two", "--json")
    assert again.code == 0, again.err
    (outcome,) = again.json()["outcomes"]
    assert outcome["after"]["top1"]["value"] > 95
