"""``edgeopt run``: several models and devices, for CI."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeopt import example

Edgeopt = Callable[..., Any]

RECIPE = f"""\
recipe: 1
models:
  digits: {{path: model.onnx}}
  again: {{path: model.onnx, passes: [simplify, fold-batch-norm]}}
data: {{path: {example.DATA}, metric: top1}}
devices: [raspberry-pi-4, generic-armv8]
budget: {{size: 1 MiB, accuracy_drop: 2 pp}}
output: {{dir: out}}
"""


@pytest.fixture(autouse=True)
def recipe() -> None:
    shutil.copy(example.MODEL, "model.onnx")
    Path("recipe.yaml").write_text(RECIPE)


def test_every_model_on_every_device(edgeopt: Edgeopt) -> None:
    ran = edgeopt("run", "recipe.yaml", "--report", "json=r.json", "--report", "md=r.md")
    assert ran.code == 0, ran.err + ran.out
    body = json.loads(Path("r.json").read_text())
    jobs = {(item["name"], item["device"]) for item in body["outcomes"]}
    assert jobs == {(m, d) for m in ("digits", "again") for d in ("raspberry-pi-4", "generic-armv8")}
    for name, device in jobs:
        assert Path(f"out/{name}/{device}/onnxruntime/manifest.json").is_file()
    sizes = {item["name"]: item["after"]["size"]["value"] for item in body["outcomes"]}
    assert sizes["digits"] < sizes["again"]
    assert "| again | generic-armv8 |" in Path("r.md").read_text()


def test_a_missed_budget_gates_the_merge(edgeopt: Edgeopt) -> None:
    ran = edgeopt("run", "recipe.yaml", "--set", "budget.size=2 KiB", "--set", "devices=[raspberry-pi-4]")
    assert ran.code == 1
    assert ran.out.count("missed: size") == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [("keep_float: [/nothere/*]", "no node matches keep_float"), ("samples: 0", "needs at least one sample")],
)
def test_an_error_that_a_pass_raises_says_where_the_recipe_names_it(
    edgeopt: Edgeopt, options: str, sentence: str
) -> None:
    passes = f"passes:\n  - simplify\n  - quantize: {{{options}}}\n"
    Path("recipe.yaml").write_text(RECIPE.replace(", passes: [simplify, fold-batch-norm]", "") + passes)
    ran = edgeopt("run", "recipe.yaml", "--set", "devices=[raspberry-pi-4]")
    assert ran.code == 2
    assert sentence in ran.err
    assert "recipe.yaml:11:5" in ran.err


def test_a_job_that_fails_does_not_stop_the_others(edgeopt: Edgeopt) -> None:
    Path("broken.onnx").write_bytes(b"no model")
    ran = edgeopt(
        "run", "recipe.yaml", "--set", "models.digits.path=broken.onnx", "--set", "devices=[raspberry-pi-4]"
    )
    assert ran.code == 2
    assert "digits on raspberry-pi-4, onnxruntime" in ran.err
    assert Path("out/again/raspberry-pi-4/onnxruntime/manifest.json").is_file()


@pytest.mark.parametrize(
    ("old", "new", "place", "sentence"),
    [
        ("devices: [raspberry-pi-4,", "devices: [raspberry-pi-44,", ":6:11", "no device 'raspberry-pi-44'"),
        ("[simplify, fold-batch-norm]", "[simplfy]", ":4:38", "no pass 'simplfy'"),
        ("simplify, fold-batch-norm", "quantize, simplify", ":4:29", "cannot come after"),
        ("simplify,", "{simplify: {fld: 1}},", ":4:39", "has no option 'fld'"),
        ("fold-batch-norm", "{quantize: {samples: few}}", ":4:49", "the option samples of the pass quantize"),
        ("fold-batch-norm", "{quantize: {scheme: int3}}", ":4:49", "scheme"),
        ("budget:", "budgt:", ":7:1", "unknown key 'budgt'"),
    ],
)
def test_errors_have_a_place_in_the_recipe(
    edgeopt: Edgeopt, old: str, new: str, place: str, sentence: str
) -> None:
    assert old in RECIPE
    Path("recipe.yaml").write_text(RECIPE.replace(old, new))
    ran = edgeopt("run", "recipe.yaml")
    assert ran.code == 2
    assert sentence in ran.err
    assert f"recipe.yaml{place}" in ran.err


def test_no_recipe_is_one_sentence(edgeopt: Edgeopt) -> None:
    ran = edgeopt("run")
    assert ran.code == 2
    assert "no recipe given" in ran.err


def test_no_code_refuses_code(edgeopt: Edgeopt) -> None:
    ran = edgeopt("run", "recipe.yaml", "--set", "data.metric=os:getcwd", "--no-code")
    assert ran.code == 2
    assert "--no-code refuses it" in ran.err


def test_github_sees_annotations_and_a_summary(edgeopt: Edgeopt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    ran = edgeopt("run", "recipe.yaml", "--set", "budget.size=2 KiB", "--set", "devices=[raspberry-pi-4]")
    assert ran.code == 1
    assert ran.err.count("::error title=edgeopt::") == 2
    assert "edgeopt: a budget is missed" in Path("summary.md").read_text()
