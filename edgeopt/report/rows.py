"""The rows that every report for people shows, as text."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from edgeopt import units
from edgeopt.budget import Verdict
from edgeopt.evidence import Evidence
from edgeopt.outcome import Outcome

SHOWN = ("size", "latency", "peak_memory")
"""Figures of every step and of both models; the metric, the drop and the fidelity follow them."""

LABELS = {
    "size": "size",
    "latency": "latency",
    "peak_memory": "peak memory",
    "accuracy_drop": "accuracy drop",
    "fidelity": "fidelity",
    "agreement": "top-1 agreement",
    "instructions": "instructions",
}

SLOWER = 1.05
"""An artifact that takes this many times as long as its original is said to be slower."""

KINDS = {
    "measured": "what was run and counted",
    "emulated": "what an emulated core did; instructions are exact, times are not taken from it",
    "predicted": "what the model of the device says; nothing was run there",
}
"""The kinds of evidence, which are never mixed, and what they mean."""

LEDGER = ("pass", "what it did", "size", "latency*", "memory*", "fidelity", "CPU")
FIGURES = ("", "before", "after", "ratio", "budget", "verdict")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of figures: its cells, and the verdict on its budget where it has one."""

    cells: tuple[str, ...]
    verdict: Verdict | None = None


def value(figure: Evidence | None, interval: bool = False) -> str:
    """Writes a figure for a person, with its interval if wanted."""
    if figure is None:
        return ""
    text = number(figure.value, figure.unit)
    if interval and figure.interval is not None:
        low, high = (number(bound, figure.unit, bare=True) for bound in figure.interval)
        text += f" [{low}, {high}]"
    return text


def number(amount: float, unit: str, *, bare: bool = False) -> str:
    """Writes an amount in its unit; ``bare`` leaves the unit away where it is not part of the scale."""
    if unit == "B":
        return units.format_size(amount)
    if unit == "s":
        return units.format_time(amount)
    if unit == "dB":
        text = f"{amount:.1f}"
    elif unit in ("%", "pp"):
        text = f"{amount:.2f}"
    elif unit == "" and abs(amount) >= 1e5:
        text = units.format_count(amount)
    else:
        text = f"{amount:.4g}"
    return text if bare or not unit else f"{text} {unit}"


def ledger_rows(outcome: Outcome) -> list[Row]:
    """One row a step that did something: what, what the model was worth after it, and what it cost."""
    several = len({step.part for step in outcome.ledger}) > 1
    rows = []
    for step in outcome.ledger:
        if step.idle:
            continue
        name = f"{step.part}: {step.name}" if several else step.name
        figures = [value(step.figures.get(quantity)) for quantity in SHOWN]
        fidelity = value(step.figures.get("fidelity"))
        seconds = "stored" if step.cached else f"{step.cpu_seconds:.1f} s"
        rows.append(Row((name, step.change.summary, *figures, fidelity, seconds)))
    return rows


def figure_rows(outcome: Outcome, names: Collection[str] | None = None) -> list[Row]:
    """One row a quantity: before, after, budget and verdict.

    With ``names`` only those quantities, and no budgets that have no figure.
    """
    verdicts = {verdict.budget.quantity: verdict for verdict in outcome.verdicts}
    metric = [name for name in outcome.after if name in outcome.before and name not in SHOWN]
    rest = [name for name in outcome.after if name not in SHOWN and name not in metric]
    rows = []
    for name in [*SHOWN, *metric, *rest]:
        before, after = outcome.before.get(name), outcome.after.get(name)
        if after is None or (names is not None and name not in names):
            continue
        verdict = verdicts.pop(name, None)
        star = "*" if after.how == "predicted" else ""
        exact = name in SHOWN or after.how == "emulated"
        rows.append(
            Row(
                (
                    LABELS.get(name, name) + star,
                    value(before),
                    value(after, interval=not exact),
                    _ratio(before, after) if exact else "",
                    limit(verdict),
                    "" if verdict is None else verdict.status,
                ),
                verdict,
            )
        )
    return rows if names is not None else [*rows, *unjudged_rows(outcome)]


def unjudged_rows(outcome: Outcome) -> list[Row]:
    """One row for every budget that has no figure."""
    return [
        Row(
            (LABELS.get(name, name), "", "", "", limit(verdict), verdict.status),
            verdict,
        )
        for verdict in outcome.verdicts
        if (name := verdict.budget.quantity) not in outcome.after
    ]


def of_kind(outcome: Outcome, *kinds: str) -> set[str]:
    """The quantities whose figures came about in one of these ways."""
    return {name for name, figure in outcome.after.items() if figure.how in kinds}


def sentences(outcome: Outcome) -> list[str]:
    """What must be said below the figures: how they came about, and the notes of all steps."""
    found = []
    if idle := {step.name for step in outcome.ledger if step.idle}:
        listed = next(iter(idle)) if len(idle) == 1 else f"{len(idle)} other passes"
        found.append(f"nothing to do for {listed}")
    latency = outcome.after.get("latency")
    if latency is not None and latency.how == "predicted":
        spread = ""
        if latency.interval is not None and latency.value:
            low, high = (bound / latency.value for bound in latency.interval)
            spread = f"; the true latency is {low:.2g} to {high:.2g} times that, 95 % of the time"
        found.append(f"* predicted for {outcome.device}, not measured{spread}")
        if assumed := latency.conditions.get("assumed"):
            found.append(
                f"  taken as 1 in the prediction: {', '.join(assumed)} (give data, or sizes with --shape)"
            )
    if judged := _judged_on(outcome):
        found.append(judged)
    return [*found, *outcome.notes]


def _judged_on(outcome: Outcome) -> str | None:
    """On how many samples the metric was measured, or the fidelity where there is no metric."""
    metrics = [
        figure
        for name, figure in outcome.after.items()
        if name in outcome.before and figure.n and figure.how == "measured"
    ]
    figure = metrics[0] if metrics else outcome.after.get("fidelity")
    if figure is None or not figure.n:
        return None
    if figure.conditions.get("inputs") == "seeded":
        return f"fidelity on {figure.n} seeded inputs, on this host: shown, not judged"
    return f"judged on {figure.n} evaluation samples, on this host; intervals are 95 %"


def slowdown(outcome: Outcome) -> float | None:
    """How many times slower than its original the artifact is predicted to be; ``None`` where it is not."""
    before, after = outcome.before.get("latency"), outcome.after.get("latency")
    if before is None or after is None or before.how != after.how or not before.value:
        return None
    ratio = after.value / before.value
    return ratio if ratio > SLOWER else None


def conclusion(outcome: Outcome) -> str:
    """The verdict in one line."""
    missed = [verdict for verdict in outcome.verdicts if not verdict.passes]
    if missed:
        return f"missed: {_listed(missed)}"
    if not outcome.verdicts:
        return "no budget to judge"
    unsure = [verdict for verdict in outcome.verdicts if verdict.status == "inconclusive"]
    if unsure:
        return f"kept, but inconclusive: {_listed(unsure)}"
    return "every budget met" if len(outcome.verdicts) > 1 else "the budget is met"


def advice(outcome: Outcome) -> list[str]:
    """The shortest list of next moves where a budget is missed."""
    missed = {verdict.budget.quantity for verdict in outcome.verdicts if not verdict.passes}
    moves: Mapping[str, str] = {
        "accuracy_drop": "keep sensitive layers in float: passes: [{quantize: {keep_float: [...]}}]; "
        "or give more calibration samples",
        "fidelity": "keep sensitive layers in float, or give more and more typical calibration samples",
        "size": "quantize more layers, or start from a smaller model",
        "latency": "name a faster device, give it more threads, or start from a smaller model",
        "peak_memory": "lower the input's resolution or batch with --shape, or start from a smaller model",
    }
    return [moves[quantity] for quantity in moves if quantity in missed]


def _listed(verdicts: list[Verdict]) -> str:
    return ", ".join(LABELS.get(item.budget.quantity, item.budget.quantity) for item in verdicts)


def _ratio(before: Evidence | None, after: Evidence) -> str:
    if before is None or not before.value:
        return ""
    return f"{after.value / before.value:.2f}"


def limit(verdict: Verdict | None) -> str:
    """Writes a budget's limit: ``≤ 3.00 MiB``."""
    if verdict is None:
        return ""
    budget = verdict.budget
    return f"{'≥' if budget.at_least else '≤'} {number(budget.limit, budget.unit)}"
