import pytest

from edgeopt.budget import Budget, exit_code, judge, judge_all
from edgeopt.errors import UserError
from edgeopt.evidence import Evidence


def latency(value: float, low: float, high: float) -> Evidence:
    return Evidence("latency", value, "s", "predicted", "board", interval=(low, high))


LIMIT = Budget.parse("latency", "40 ms")


def test_a_budget_is_met_when_the_whole_interval_is_inside() -> None:
    verdict = judge(LIMIT, latency(0.03, 0.02, 0.04))
    assert (verdict.status, verdict.passes) == ("met", True)


def test_it_is_missed_when_the_whole_interval_is_outside() -> None:
    verdict = judge(LIMIT, latency(0.06, 0.05, 0.07))
    assert (verdict.status, verdict.passes) == ("missed", False)
    assert exit_code([verdict]) == 1


@pytest.mark.parametrize(("value", "code"), [(0.039, 0), (0.041, 1)])
def test_between_the_two_the_point_estimate_counts_unless_strict(value: float, code: int) -> None:
    verdict = judge(LIMIT, latency(value, 0.03, 0.05))
    assert verdict.status == "inconclusive"
    assert exit_code([verdict]) == code
    assert exit_code([verdict], strict=True) == 6


def test_fidelity_must_not_be_below_its_limit() -> None:
    budget = Budget.parse("fidelity", "15 dB")
    inside = Evidence("fidelity", 20, "dB", "measured", "host", interval=(18, 22))
    outside = Evidence("fidelity", 10, "dB", "measured", "host", interval=(9, 11))
    assert judge(budget, inside).status == "met"
    assert judge(budget, outside).status == "missed"


def test_an_exact_figure_needs_no_interval() -> None:
    size = Evidence("size", 3 * 2**20, "B", "measured", "host")
    assert judge(Budget.parse("size", "3 MiB"), size).status == "met"
    assert judge(Budget.parse("size", "2.9 MiB"), size).status == "missed"


def test_without_evidence_there_is_nothing_to_judge() -> None:
    (verdict,) = judge_all([LIMIT], {})
    assert (verdict.status, verdict.passes) == ("inconclusive", True)
    assert exit_code([verdict]) == 0


@pytest.mark.parametrize(
    ("text", "limit", "unit"),
    [("0.5 pp", 0.5, "pp"), ("0.2 dB", 0.2, "dB"), ("1 %", 1, "%"), ("0.01", 0.01, "")],
)
def test_a_drop_is_in_points_decibels_percent_or_plain(text: str, limit: float, unit: str) -> None:
    budget = Budget.parse("accuracy_drop", text)
    assert (budget.limit, budget.unit) == (limit, unit)


def test_a_budget_that_does_not_exist_names_its_neighbour() -> None:
    with pytest.raises(UserError) as caught:
        Budget.parse("latenzy", "40 ms")
    assert caught.value.nearest == ("latency",)


@pytest.mark.parametrize(("quantity", "text"), [("size", "40 ms"), ("latency", "40"), ("size", "-1 MiB")])
def test_a_limit_of_the_wrong_kind_is_refused(quantity: str, text: str) -> None:
    with pytest.raises(UserError):
        Budget.parse(quantity, text)
