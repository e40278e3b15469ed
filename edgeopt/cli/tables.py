"""Tables on the terminal, never wider than 100 columns, and JSON."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import click

from edgeopt.errors import UserError

WIDTH = 100


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Sequence[int] = (0,),
    gives: int = 0,
) -> str:
    """Lays out a table; one column gives way where the lines would be too long.

    Args:
        header: The columns' titles.
        rows: The cells.
        left: The columns that are aligned to the left; numbers stand to the right.
        gives: The column that is cut.
    """
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    limit = min(WIDTH, shutil.get_terminal_size().columns) if sys.stdout.isatty() else WIDTH
    excess = sum(widths) + 2 * (len(widths) - 1) - limit
    if excess > 0:
        widths[gives] = max(12, widths[gives] - excess)
    lines = []
    for row in [header, *rows]:
        cells = [shorten(cell, width) for cell, width in zip(row, widths, strict=True)]
        aligned = [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def shorten(text: str, width: int) -> str:
    """Cuts a text in the middle, where names differ least."""
    if len(text) <= width:
        return text
    end = (width - 2) * 2 // 3
    return f"{text[: width - 2 - end]}..{text[-end:]}"


def write_json(data: Any) -> None:
    """Prints one JSON object on stdout."""
    click.echo(json.dumps(data, indent=2, default=str))


def parse_shapes(texts: Sequence[str]) -> dict[str, list[int]]:
    """Reads ``NAME=1,3,224,224``.

    Raises:
        UserError: A text is not of that form.
    """
    shapes: dict[str, list[int]] = {}
    for text in texts:
        name, equals, sizes = text.rpartition("=")
        parts = sizes.split(",") if sizes else []
        if not equals or not name or any(not part.strip().isdigit() or int(part) < 1 for part in parts):
            raise UserError(f"--shape {text!r} is not of the form NAME=1,3,224,224")
        shapes[name] = [int(part) for part in parts]
    return shapes
