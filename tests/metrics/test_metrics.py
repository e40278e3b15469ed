from __future__ import annotations

import numpy as np
import pytest

from edgeopt import metrics
from edgeopt.errors import DataError, UserError


def value(name: str, outputs: list[np.ndarray], labels: list[object]) -> float:
    metric = metrics.find(name)
    pairs = zip(outputs, labels, strict=True)
    return metric.aggregate([metric.record({"out": out}, {"label": label}) for out, label in pairs])


def test_every_metric_is_found_by_its_name() -> None:
    assert metrics.names() == ["cosine", "mae", "psnr", "spearman", "top1", "top5"]
    assert [metrics.find(name).name for name in metrics.names()] == metrics.names()
    with pytest.raises(UserError, match="there is no metric 'top2'") as caught:
        metrics.find("top2")
    assert "top1" in caught.value.nearest


def test_top_k_counts_the_label_among_the_best() -> None:
    scores = np.random.default_rng(0).standard_normal((50, 8))
    labels = list(np.random.default_rng(1).integers(0, 8, 50))
    order = np.argsort(-scores, axis=1)
    assert value("top1", list(scores), labels) == np.mean(order[:, 0] == labels)
    expected = np.mean([label in best[:5] for label, best in zip(labels, order, strict=True)])
    assert value("top5", list(scores), labels) == expected


def test_ties_and_nan_do_not_count_as_right() -> None:
    assert value("top1", [np.array([1.0, 1.0])], [1]) == 0
    assert value("top1", [np.array([1.0, 1.0])], [0]) == 1
    assert value("top1", [np.array([np.nan, np.nan])], [0]) == 0


def test_errors_and_similarities() -> None:
    out, label = np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 3.0])
    assert value("mae", [out], [label]) == pytest.approx(2 / 3)
    assert value("cosine", [out], [label]) == pytest.approx(out @ label / np.sqrt(14 * 26))
    assert value("psnr", [out], [label]) == pytest.approx(-10 * np.log10(4 / 3))
    bright = np.array([0, 255], np.uint8)
    assert value("psnr", [np.array([0.0, 250.0])], [bright]) == pytest.approx(10 * np.log10(255**2 / 12.5))
    assert value("psnr", [label], [label]) == 120


def test_spearman_is_the_correlation_of_mean_ranks() -> None:
    outputs = [np.array([x]) for x in (0.1, 0.2, 0.2, 5.0)]
    assert value("spearman", outputs, [1, 2, 3, 4]) == pytest.approx(
        np.corrcoef([1, 2.5, 2.5, 4], [1, 2, 3, 4])[0, 1]
    )


def test_one_of_several_outputs_is_named() -> None:
    outputs = {"logits": np.array([0.0, 1.0]), "hidden": np.zeros(3)}
    assert metrics.find("top1(logits)").record(outputs, {"label": 1}) == 1
    with pytest.raises(DataError, match="the model has 2 outputs") as caught:
        metrics.find("top1").record(outputs, {"label": 1})
    assert "top1(logits)" in str(caught.value)
    with pytest.raises(DataError, match="reads the output 'logit', which the model has not"):
        metrics.find("top1(logit)").record(outputs, {"label": 1})


def test_a_label_out_of_range_is_caught_when_outputs_are_seen() -> None:
    with pytest.raises(DataError, match="the label 5 is out of range: the model has 2 classes, 0 to 1"):
        metrics.find("top1").record({"out": np.zeros(2)}, {"label": 5})


def test_default_budgets_are_those_of_the_kind() -> None:
    budgets = {name: metrics.find(name).default_budget() for name in metrics.names()}
    assert {name: (budget.limit, budget.unit) for name, budget in budgets.items()} == {
        "top1": (1.0, "pp"),
        "top5": (1.0, "pp"),
        "psnr": (0.2, "dB"),
        "cosine": (0.01, ""),
        "spearman": (0.01, ""),
        "mae": (1.0, "%"),
    }
    assert not any(budget.explicit for budget in budgets.values())


def test_a_budget_must_have_a_unit_that_fits() -> None:
    assert metrics.parse_drop("0.5pp", metrics.find("top1")).limit == 0.5
    with pytest.raises(UserError, match="a drop of top1 cannot be limited in 'dB'"):
        metrics.parse_drop("0.5dB", metrics.find("top1"))
    with pytest.raises(UserError, match="cannot be limited in 'pp'"):
        metrics.parse_drop("0.5pp", metrics.find("spearman"))


# ---- a user's function


def error(outputs, sample):
    return abs(float(outputs["out"]) - sample["label"])


error.higher_is_better = False


def largest(outputs, sample):
    return float(outputs["out"])


largest.aggregate = max
largest.unit = "dB"
largest.drop = "0.5 dB"


def wrong(outputs, sample):
    return np.zeros(3)


def test_a_function_gives_scores() -> None:
    metric = metrics.find(f"{__name__}:error")
    records = [metric.record({"out": np.float32(out)}, {"label": 1.0}) for out in (2, 4)]
    assert metric.aggregate(records) == 2
    assert not metric.higher_is_better and metric.default_budget().unit == "%"


def test_a_function_with_an_aggregate() -> None:
    metric = metrics.find(f"{__name__}:largest")
    assert metric.aggregate([1.0, 3.0, 2.0]) == 3
    assert not metric.per_sample
    assert (metric.default_budget().limit, metric.default_budget().unit) == (0.5, "dB")


def test_a_function_that_gives_no_number_is_told_what_to_do() -> None:
    with pytest.raises(DataError, match="must return one number a sample") as caught:
        metrics.find(f"{__name__}:wrong").record({}, {})
    assert "aggregate" in str(caught.value)


def test_no_code_refuses_a_function() -> None:
    with pytest.raises(UserError, match="--no-code"):
        metrics.find(f"{__name__}:error", code=False)


@pytest.mark.parametrize("name", ["mae", "psnr", "cosine", "spearman", "top1"])
def test_a_model_that_gives_nan_is_judged_and_found_bad(name: str) -> None:
    rng = np.random.default_rng(0)
    one = name in ("spearman",)
    outputs = [rng.standard_normal(1 if one else 4) for _ in range(10)]
    labels = [0 if name == "top1" else out.item() if one else out for out in outputs]
    good = value(name, outputs, labels) if name != "top1" else 1.0
    broken = value(name, [np.full_like(out, np.nan) for out in outputs], labels)
    assert np.isfinite(broken)
    assert broken < good if metrics.find(name).higher_is_better else broken > good
