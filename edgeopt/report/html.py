"""The report as one HTML page: it opens without network, and holds no script.

Measured, emulated and predicted figures stand in tables of their own. Bars and intervals are drawn by the
page itself, so that a mail or a build server shows them as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from edgeopt import fidelity
from edgeopt.budget import Verdict
from edgeopt.evidence import Evidence
from edgeopt.outcome import Outcome, StepRecord, exit_code
from edgeopt.report import rows

if TYPE_CHECKING:
    from jinja2 import Environment

HEADLINES = {0: "every budget kept", 1: "a budget is missed", 6: "inconclusive"}
COLUMNS = (*rows.SHOWN, "fidelity")


@dataclass(frozen=True)
class Bar:
    """One cell of the steps' table: its text, and its length as a share of the column's largest."""

    text: str
    share: float


@dataclass(frozen=True)
class Span:
    """An interval and a limit on one axis, as shares of its width."""

    low: float
    point: float
    high: float
    limit: float
    axis: tuple[str, str]


def render(outcomes: Sequence[Outcome]) -> str:
    """Writes the page."""
    template = _environment().get_template("html.jinja")
    return template.render(
        headline=HEADLINES[exit_code(outcomes)],
        code=exit_code(outcomes),
        outcomes=outcomes,
        rows=rows,
        kinds=kinds,
        steps=steps,
        budgets=budgets,
        layers=layers,
        groups=groups,
        conditions=conditions,
        COLUMNS=COLUMNS,
        FIGURES=rows.FIGURES,
    )


def _environment() -> Environment:
    import jinja2

    text = resources.files("edgeopt.report").joinpath("html.jinja").read_text(encoding="utf-8")
    return jinja2.Environment(
        loader=jinja2.DictLoader({"html.jinja": text}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def kinds(outcome: Outcome) -> Iterator[tuple[str, str, list[rows.Row]]]:
    """Yields each kind of evidence there is, what it means, and its rows."""
    for kind, meaning in rows.KINDS.items():
        if found := rows.figure_rows(outcome, rows.of_kind(outcome, kind)):
            yield kind, meaning, found


def steps(outcome: Outcome) -> list[tuple[StepRecord, list[Bar]]]:
    """Lists the steps that did something, with a bar for every figure of theirs."""
    done = [step for step in outcome.ledger if not step.idle]
    largest = {
        quantity: max(
            (abs(figure.value) for step in done if (figure := step.figures.get(quantity))), default=0.0
        )
        for quantity in COLUMNS
    }
    return [(step, [_bar(step.figures.get(name), largest[name]) for name in COLUMNS]) for step in done]


def _bar(figure: Evidence | None, largest: float) -> Bar:
    if figure is None:
        return Bar("", 0.0)
    share = abs(figure.value) / largest if largest else 0.0
    return Bar(rows.value(figure), round(share, 4))


def budgets(outcome: Outcome) -> list[tuple[Verdict, Span]]:
    """Draws every verdict that has an interval: where it lies beside its limit."""
    return [(verdict, span) for verdict in outcome.verdicts if (span := _span(verdict)) is not None]


def _span(verdict: Verdict) -> Span | None:
    figure = verdict.evidence
    if figure is None or figure.interval is None:
        return None
    low, high = figure.interval
    limit, unit = verdict.budget.limit, verdict.budget.unit
    ends = [low, high, limit, figure.value]
    margin = (max(ends) - min(ends)) * 0.08 or 1.0
    first, width = min(ends) - margin, max(ends) - min(ends) + 2 * margin

    def share(amount: float) -> float:
        return round((amount - first) / width, 4)

    axis = (rows.number(first, unit), rows.number(first + width, unit))
    return Span(share(low), share(figure.value), share(high), share(limit), axis)


def layers(outcome: Outcome) -> list[tuple[str, Bar, Bar]]:
    """Lists what quantization costs layer by layer, the worst first, as the last step that looked found it.

    Of each layer: the fidelity with it alone in integers (empty where that was not tried), and the signal-
    to-noise ratio at its output with all of them.
    """
    ranked = [step.change.details for step in outcome.ledger if step.change.details.get("ranking")]
    told = [step.change.details for step in outcome.ledger if step.change.details.get("signals")]
    alone = dict(ranked[-1]["ranking"]) if ranked else {}
    signals = dict(told[-1]["signals"]) if told else {}
    order = sorted(alone or signals, key=lambda layer: (alone or signals)[layer])
    return [(layer, _decibels(layer, alone), _decibels(layer, signals)) for layer in order]


def groups(outcome: Outcome) -> list[tuple[list[str], Bar]]:
    """Lists what groups of layers alone in integers leave, the worst first, as the last step found it."""
    found = [step.change.details["groups"] for step in outcome.ledger if step.change.details.get("groups")]
    if not found:
        return []
    figures = {" + ".join(layers): decibels for layers, decibels in found[-1]}
    return [(list(layers), _decibels(" + ".join(layers), figures)) for layers, _ in found[-1]]


def _decibels(layer: str, found: Mapping[str, float]) -> Bar:
    if layer not in found:
        return Bar("", 0.0)
    largest = max((value for value in found.values() if value < fidelity.LIMIT), default=0.0)
    share = min(max(found[layer], 0.0) / largest, 1.0) if largest > 0 else 0.0
    return Bar(f"{found[layer]:.1f} dB", round(share, 4))


def conditions(outcome: Outcome) -> list[tuple[str, str]]:
    """Lists under what conditions each figure came about."""
    found = []
    for name, figure in outcome.after.items():
        told = [f"{key} {_plain(held)}" for key, held in figure.conditions.items()]
        if figure.n:
            told.insert(0, f"{figure.n} samples")
        if figure.runtime:
            told.insert(0, figure.runtime)
        found.append(
            (rows.LABELS.get(name, name), f"{figure.how} on {figure.where}: {', '.join(told) or '-'}")
        )
    return found


def _plain(held: object) -> str:
    if isinstance(held, dict):
        return " ".join(f"{key} {_plain(inner)}" for key, inner in held.items())
    if isinstance(held, list | tuple):
        return (
            "x".join(map(str, held))
            if all(isinstance(item, int) for item in held)
            else ", ".join(map(str, held))
        )
    return str(held)
