"""The commands explain and bisect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from edgeopt import example
from edgeopt.bisecting import bisect
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
