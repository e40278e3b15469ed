"""The commands explain and bisect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from edgeopt import example
from edgeopt.bisecting import Parting, bisect
from edgeopt.errors import UserError
from edgeopt.graph.rewriting import Result, node, rule
from edgeopt.load import load
from edgeopt.passes.simplify import pieces

Command = Callable[..., Any]

MODEL = Path(example.__file__).with_name("model.onnx")


@rule("Relu", name="a wrong rule", shared=True)
def wrong(relu: ir.Node) -> Result:
    return node("Abs", [relu.inputs[0]])


def test_explain_tells_what_was_done_and_what_was_not(edgeopt: Command) -> None:
    ran = edgeopt("explain", MODEL)
    assert ran.code == 0
    assert "simplify:" in ran.out and "did " in ran.out


def test_explain_as_json_names_every_rule_and_reason(edgeopt: Command) -> None:
    report = edgeopt("explain", MODEL, "--json").json()
    items = [item for step in report["passes"] for item in step["skipped"]]
    assert all(item["rule"] and item["site"] and item["reason"] for item in items)
    only = edgeopt("explain", MODEL, "--nodes", "no such node", "--json").json()
    assert not any(step["rewrites"] or step["skipped"] for step in only["passes"])


def test_explain_says_that_a_folder_is_no_artifact(edgeopt: Command, tmp_path: Path) -> None:
    assert edgeopt("explain", tmp_path).code == 2


def test_bisect_finds_nothing_wrong(edgeopt: Command) -> None:
    ran = edgeopt("bisect", MODEL)
    assert ran.code == 0
    assert ran.out.startswith("none of ")


def test_bisect_finds_the_first_wrong_rewrite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "RULES", (*pieces.RULES, wrong))
    model = load(MODEL)
    found = bisect(model)
    relus = [item.name for item in model.graph if item.op_type == "Relu"]
    assert found.step == "simplify" and found.rewrite is not None
    assert found.rewrite.rule == "a wrong rule"
    assert found.rewrite.site == relus[0]
    assert found.error > 1e-4


def test_bisect_refuses_passes_that_are_not_exact() -> None:
    with pytest.raises(UserError):
        bisect(load(MODEL), ["float16"])


def test_bisect_of_two_models_that_are_equal(edgeopt: Command) -> None:
    ran = edgeopt("bisect", MODEL, MODEL)
    assert ran.code == 0
    assert "none differs" in ran.out


def test_bisect_names_the_first_layer_that_differs(edgeopt: Command, tmp_path: Path) -> None:
    model = load(MODEL)
    nodes = [item for item in model.graph if item.op_type in ("Conv", "Gemm", "MatMul")]
    broken = nodes[len(nodes) // 2]
    weight = broken.inputs[1]
    assert weight is not None and weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * 1.5, name=weight.name)
    ir.save(model, tmp_path / "broken.onnx")
    report = edgeopt("bisect", MODEL, tmp_path / "broken.onnx", "--json").json()
    assert report["first"]["tensor"]["node"] == broken.name
    assert report["costliest"] is not None
    assert report["first"]["added"] > 0.1
    assert f"first to differ: {broken.name}" in edgeopt("bisect", MODEL, tmp_path / "broken.onnx").out


def test_bisect_of_an_artifact_names_the_passes(edgeopt: Command, tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    ran = edgeopt("compile", MODEL, "--device", "raspberry-pi-4", "--scheme", "weight-only", "-o", out)
    assert ran.code == 0
    report = edgeopt("bisect", MODEL, out, "--json").json()
    assert report["compared"] > 3
    assert report["first"]["touched"][-1]["step"] == "weight-only"
    steps = [touch["step"] for touch in report["costliest"]["touched"]]
    assert "weight-only" in steps


@pytest.mark.parametrize("options", [("--data", "x.npz"), ("OTHER", "--pass", "simplify")])
def test_bisect_refuses_options_of_its_other_form(edgeopt: Command, options: tuple[str, ...]) -> None:
    given = [MODEL if option == "OTHER" else option for option in options]
    assert edgeopt("bisect", MODEL, *given).code == 2


def test_the_pass_that_left_most_noise_is_the_culprit() -> None:
    assert Parting(1, None, None, {"one": 60.0, "two": 20.0, "three": 19.9}).culprit == "two"
    assert Parting(1, None, None).culprit == ""


def test_layers_of_an_artifact_are_ranked_on_the_screen_and_drawn_in_the_report(
    edgeopt: Command, tmp_path: Path
) -> None:
    folder, page = tmp_path / "artifact", tmp_path / "report.html"
    ran = edgeopt("compile", "--device", "raspberry-pi-4", "-o", folder, "--report", f"html={page}")
    assert ran.code == 0, ran.err
    steps = edgeopt("explain", folder, "--json").json()["passes"]
    details = next(step["details"] for step in steps if step["name"] == "static-int8")
    ranking, signals = dict(details["ranking"]), dict(details["signals"])
    assert set(ranking) == set(signals) and len(ranking) > 1
    assert list(ranking.values()) == sorted(ranking.values())
    assert all(0 < decibels < 200 for decibels in (*ranking.values(), *signals.values()))
    worst = next(iter(ranking))
    shown = edgeopt("explain", folder).out
    assert f"{ranking[worst]:7.1f} {signals[worst]:7.1f}  {worst}" in shown
    groups = details["groups"]
    for layers, decibels in groups:
        assert len(layers) > 1 and decibels < min(ranking[layer] for layer in layers)
        assert f"{decibels:7.1f}          {' + '.join(layers)}" in shown or len(layers) > 3
    only = edgeopt("explain", folder, "--nodes", worst).out
    assert sum(layer in only for layer in ranking) == 1
    text = page.read_text(encoding="utf-8")
    assert ("Groups" in text) == bool(groups)
    assert "Sensitivity" in text and f"{ranking[worst]:.1f} dB" in text
