from __future__ import annotations

import numpy as np
import pytest

from edgeopt.fidelity import LIMIT, Fidelity, compare


def test_it_is_the_energy_ratio_over_all_outputs_and_samples() -> None:
    found = Fidelity()
    found.add({"a": np.array([3.0]), "b": np.array([4.0])}, {"a": np.array([3.0]), "b": np.array([4.1])})
    found.add({"a": np.array([1.0]), "b": np.array([0.0])}, {"a": np.array([1.2]), "b": np.array([0.0])})
    assert found.value == pytest.approx(10 * np.log10(26 / 0.05))
    assert found.per_output["a"] == pytest.approx(10 * np.log10(10 / 0.04))
    assert found.per_output["b"] == pytest.approx(10 * np.log10(16 / 0.01))


def test_equal_outputs_reach_the_limit_and_broken_ones_its_negative() -> None:
    ones = {"y": np.ones(3)}
    assert compare(lambda _: ones, lambda _: ones, [{}]).value == LIMIT
    for broken in (np.array([1, np.nan, 1]), np.array([1, np.inf, 1]), np.ones(4)):
        assert compare(lambda _: ones, lambda _, y=broken: {"y": y}, [{}]).value == -LIMIT


def test_every_output_counts_alike_when_balanced() -> None:
    found = Fidelity()
    wanted = {"audio": np.array([0.1]), "state": np.array([100.0]), "silent": np.zeros(1)}
    found.add(wanted, {"audio": np.array([0.11]), "state": np.array([100.1]), "silent": np.full(1, 1e-3)})
    assert found.value == pytest.approx(60, abs=0.1)
    assert found.weakest == pytest.approx(20)
    assert found.balanced == pytest.approx(10 * np.log10(2 / (1e-2 + 1e-6)))
    alone = Fidelity()
    alone.add({"y": np.array([1.0, 2.0])}, {"y": np.array([1.1, 2.0])})
    assert alone.balanced == pytest.approx(alone.value)
    assert alone.weakest == pytest.approx(alone.value)
    assert Fidelity().balanced == LIMIT


def test_values_that_are_infinite_in_both_are_left_out() -> None:
    masked = {"y": np.array([1.0, -np.inf])}
    other = {"y": np.array([1.1, -np.inf])}
    assert compare(lambda _: masked, lambda _: other, [{}]).value == pytest.approx(20)


def test_integers_count_only_without_floats() -> None:
    found = Fidelity()
    found.add({"class": np.array([1]), "y": np.ones(1)}, {"class": np.array([7]), "y": np.ones(1)})
    assert found.value == LIMIT
    assert found.per_output["class"] < 0
    only = Fidelity()
    only.add({"class": np.array([1])}, {"class": np.array([2])})
    assert only.value == 0


def test_the_interval_holds_the_value_and_narrows_with_samples() -> None:
    draw = np.random.default_rng(0)

    def interval(count: int) -> tuple[float, float]:
        found = Fidelity()
        for _ in range(count):
            signal = draw.standard_normal(20)
            found.add({"y": signal}, {"y": signal + 0.1 * draw.standard_normal(20)})
        lower, upper = found.interval() or (0.0, 0.0)
        assert found.value is not None and lower < found.value < upper
        return lower, upper

    few, many = interval(20), interval(500)
    assert many[1] - many[0] < few[1] - few[0]
    assert many[0] < 20 < many[1]
