"""Reports: one module per format, found by its name, each with ``render(outcomes) -> str``.

``--report md=out.md --report json=out.json`` writes several in one run. The format of a report never
changes the exit code.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from edgeopt.errors import OutputError, UserError, nearest
from edgeopt.outcome import Outcome
from edgeopt.steps import write_file

_NOT_FORMATS = {"__init__", "rows", "screen"}


def formats() -> list[str]:
    """Lists the known formats, sorted."""
    return sorted({path.stem for path in Path(__file__).parent.glob("*.py")} - _NOT_FORMATS)


def parse(request: str) -> tuple[str, Path]:
    """Reads a request such as ``md=out.md``.

    Raises:
        UserError: It is not of that form, or there is no such format.
    """
    format, equals, path = request.partition("=")
    if not equals or not path:
        raise UserError(f"--report {request!r} is not of the form FORMAT=FILE", hint="--report md=report.md")
    if format not in formats():
        raise UserError(
            f"there is no report format {format!r}",
            nearest=nearest(format, formats()),
            hint=f"one of {', '.join(formats())}",
        )
    return format, Path(path)


def write(outcomes: Sequence[Outcome], requests: Sequence[tuple[str, Path]]) -> None:
    """Writes reports, each under a temporary name first.

    Raises:
        OutputError: A file cannot be written.
    """
    for format, path in requests:
        text = importlib.import_module(f"edgeopt.report.{format}").render(outcomes)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, text)
        except OSError as failure:
            reason = failure.strerror or failure
            raise OutputError(f"cannot write the report: {reason}", where=str(path)) from None
