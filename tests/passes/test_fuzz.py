"""Random graphs through all exact passes; ``benchmarks/fuzz.py`` runs as many as one likes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import onnx_ir as ir
import pytest

from edgeopt.graph.rewriting import Result, node, rule
from edgeopt.passes.simplify import pieces

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", ROOT / "benchmarks" / "fuzz.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module
    spec.loader.exec_module(module)
    return module


def test_random_graphs_stay_equal(fuzz: ModuleType) -> None:
    outcomes = {seed: fuzz.outcome(seed) for seed in range(40)}
    assert {seed: found for seed, found in outcomes.items() if found not in ("equal", "not valid")} == {}
    assert list(outcomes.values()).count("equal") >= 30


@rule("Neg", name="a wrong rule", shared=True)
def wrong(negation: ir.Node) -> Result:
    return node("Abs", [negation.inputs[0]])


def test_a_wrong_rule_is_seen_without_proofs_and_stopped_by_them(
    fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeopt.passes import simplify

    assert simplify.pieces is pieces
    monkeypatch.setattr(pieces, "RULES", (*pieces.RULES, wrong))
    seeds = range(25)
    seen = [seed for seed in seeds if fuzz.outcome(seed, "off") not in ("equal", "not valid")]
    assert len(seen) >= 5
    assert [seed for seed in seen[:5] if fuzz.outcome(seed, "fast") != "equal"] == []
