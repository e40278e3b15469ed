"""Random graphs through all exact passes; ``python -m benchmarks.fuzz`` runs as many as one likes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def fuzz() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield importlib.import_module("benchmarks.fuzz")


def test_random_graphs_stay_equal(fuzz: ModuleType) -> None:
    outcomes = {seed: fuzz.outcome(seed) for seed in range(40)}
    assert {seed: found for seed, found in outcomes.items() if found not in ("equal", "not valid")} == {}
    assert list(outcomes.values()).count("equal") >= 30


def test_a_wrong_rule_is_seen_without_proofs_and_stopped_by_them(fuzz: ModuleType) -> None:
    """``python -m benchmarks.planted_rules`` plants many more."""
    rules = importlib.import_module("benchmarks.planted_rules")
    seen, stopped = rules.planted(rules.lose_the_sign, range(20))
    assert seen >= 5
    assert stopped == seen
