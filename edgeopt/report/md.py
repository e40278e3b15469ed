"""The report in Markdown: for pull requests and job summaries."""

from __future__ import annotations

from collections.abc import Sequence

from edgeopt.outcome import Outcome, exit_code
from edgeopt.report import rows


def render(outcomes: Sequence[Outcome]) -> str:
    """Writes a summary table, then a section for every outcome."""
    verdict = {0: "every budget kept", 1: "a budget is missed", 6: "inconclusive"}[exit_code(outcomes)]
    lines = [f"# edgeopt: {verdict}", ""]
    if len(outcomes) > 1:
        table = [(item.name, item.device, item.target, rows.conclusion(item)) for item in outcomes]
        lines += _table(("model", "device", "target", "verdict"), table)
    for outcome in outcomes:
        lines += [f"## {outcome.name} on {outcome.device}, {outcome.target}", ""]
        for kind, meaning in rows.KINDS.items():
            if found := rows.figure_rows(outcome, rows.of_kind(outcome, kind)):
                lines += [f"### {kind.capitalize()}: {meaning}", ""]
                lines += _table(rows.FIGURES, [row.cells for row in found])
        if unjudged := rows.unjudged_rows(outcome):
            lines += ["### Not judged", "", *_table(rows.FIGURES, [row.cells for row in unjudged])]
        lines += ["### Steps", ""]
        lines += _table(rows.LEDGER, [row.cells for row in rows.ledger_rows(outcome)])
        lines += [f"- {_escape(sentence)}" for sentence in rows.sentences(outcome)]
        lines += [f"- try: {_escape(move)}" for move in rows.advice(outcome)]
        lines += ["", f"Artifact `{outcome.path}`, manifest sha256 `{outcome.digest}`.", ""]
    return "\n".join(lines)


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] * len(header)
    return [*("| " + " | ".join(map(_escape, row)) + " |" for row in (header, rule, *body)), ""]


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")
