"""Random graphs through all exact passes; ``python -m benchmarks.fuzz`` runs as many as one likes."""

from __future__ import annotations

from benchmarks import fuzz, planted_rules


def test_random_graphs_stay_equal() -> None:
    outcomes = {seed: fuzz.outcome(seed) for seed in range(40)}
    assert {seed: found for seed, found in outcomes.items() if found not in ("equal", "not valid")} == {}
    assert list(outcomes.values()).count("equal") >= 30


def test_a_wrong_rule_is_seen_without_proofs_and_stopped_by_them() -> None:
    """``python -m benchmarks.planted_rules`` plants many more."""
    seen, stopped = planted_rules.planted(planted_rules.lose_the_sign, range(20))
    assert seen >= 5
    assert stopped == seen
