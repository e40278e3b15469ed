"""The one screen that a person sees after a compilation."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgeopt.outcome import Outcome
from edgeopt.report import rows

_COLOURS = {"met": "green", "missed": "red", "inconclusive": "yellow"}


def screen(outcome: Outcome) -> RenderableType:
    """Lays the outcome out for a console of 100 columns."""
    title = Text.assemble((outcome.name, "bold"), f" on {outcome.device}, {outcome.target}")
    shown = rows.figure_rows(outcome, rows.of_kind(outcome, "measured", "predicted"))
    parts: list[RenderableType] = [title, _ledger(outcome), _figures(shown + rows.unjudged_rows(outcome))]
    if emulated := rows.figure_rows(outcome, rows.of_kind(outcome, "emulated")):
        parts += [Text(f"emulated: {rows.KINDS['emulated']}", style="dim"), _figures(emulated)]
    parts += [Padding(Text(sentence, style="dim"), (0, 0, 0, 2)) for sentence in rows.sentences(outcome)]
    colour = "bold green" if outcome.exit_code == 0 else "bold red"
    parts.append(Text.assemble((rows.conclusion(outcome), colour), f": {outcome.path}"))
    parts += [Padding(Text(f"try: {move}"), (0, 0, 0, 2)) for move in rows.advice(outcome)]
    return Group(*parts)


def _ledger(outcome: Outcome) -> Table:
    table = _table(rows.LEDGER, left=2)
    for row in rows.ledger_rows(outcome):
        table.add_row(*(Text(cell) for cell in row.cells))
    return table


def _figures(shown: list[rows.Row]) -> Table:
    table = _table(rows.FIGURES, left=1)
    for row in shown:
        *cells, status = row.cells
        table.add_row(*(Text(cell) for cell in cells), Text(status, style=_COLOURS.get(status, "")))
    return table


def _table(header: tuple[str, ...], left: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 1), header_style="dim")
    for index, name in enumerate(header):
        wraps = name == "what it did"
        table.add_column(
            name, justify="left" if index < left else "right", no_wrap=not wraps, overflow="fold"
        )
    return table
