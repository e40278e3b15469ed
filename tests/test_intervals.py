from __future__ import annotations

import numpy as np
import pytest

from edgeopt import intervals


def test_wilson_equals_published_values() -> None:
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3
    for successes, n, expected in [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ]:
        assert intervals.wilson(successes, n) == pytest.approx(expected, abs=6e-5)


def test_student_quantiles() -> None:
    for freedom, expected in [(5, 2.5706), (10, 2.2281), (30, 2.0423), (1000, 1.9623)]:
        assert intervals.student_quantile(freedom) == pytest.approx(expected, rel=5e-4)


def test_paired_proportions_keep_a_width_without_disagreement() -> None:
    lower, upper = intervals.paired_proportions(0, 0, 800)
    assert lower == -upper
    assert 0.002 < upper < 0.005


def test_paired_proportions_cover_the_truth() -> None:
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        kinds = draw.choice(3, 400, p=[0.97, 0.02, 0.01])
        lower, upper = intervals.paired_proportions(int((kinds == 1).sum()), int((kinds == 2).sum()), 400)
        covered += lower <= 0.01 <= upper
    assert 0.93 <= covered / 1000 <= 0.985


def test_mean_and_bootstrap_agree_on_many_samples() -> None:
    values = np.random.default_rng(0).exponential(size=2000)
    exact = intervals.mean(values)
    drawn = intervals.bootstrap(lambda index: float(values[index].mean()), 2000)
    assert exact is not None and drawn is not None
    assert drawn == pytest.approx(exact, abs=0.01)


def test_bootstrap_is_seeded_and_needs_two_samples() -> None:
    values = np.arange(10.0)
    statistic = lambda index: float(np.median(values[index]))  # noqa: E731
    assert intervals.bootstrap(statistic, 10, seed=3) == intervals.bootstrap(statistic, 10, seed=3)
    assert intervals.bootstrap(statistic, 1) is None
    assert intervals.mean(values[:1]) is None
