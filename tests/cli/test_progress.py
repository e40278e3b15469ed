"""Progress bars: on a terminal, behind two seconds, and nowhere else."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from edgeopt.cli import display
from edgeopt.cli.display import Terminal


def terminal(watched: bool) -> tuple[Terminal, io.StringIO]:
    shown = io.StringIO()
    found = Terminal()
    found.console = Console(file=shown, force_terminal=watched, width=80, color_system=None)
    return found, shown


def test_a_bar_says_what_is_done_and_how_much_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "PATIENCE", -1.0)
    watch, shown = terminal(watched=True)
    assert list(watch.progress(iter(range(4)), "calibration", 4)) == [0, 1, 2, 3]
    assert "calibration" in shown.getvalue() and "4/4" in shown.getvalue()


def test_quick_work_shows_no_bar() -> None:
    watch, shown = terminal(watched=True)
    assert list(watch.progress([1, 2, 3], "calibration")) == [1, 2, 3]
    assert shown.getvalue() == ""


def test_nobody_watching_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "PATIENCE", -1.0)
    watch, shown = terminal(watched=False)
    assert list(watch.progress([1, 2, 3], "calibration")) == [1, 2, 3]
    watch.step("static-int8")
    assert shown.getvalue() == ""
