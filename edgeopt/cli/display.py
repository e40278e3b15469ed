"""Consoles, and progress on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edgeopt.watch import Watch

Item = TypeVar("Item")

PATIENCE = 2.0
"""Seconds of silence before a progress bar shows."""

WIDTH = 100


def console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, up to 100 columns; NO_COLOR and pipes are respected."""
    stream = sys.stderr if stderr else sys.stdout
    plain = Console(file=stream, highlight=False)
    width = min(plain.width, WIDTH) if plain.is_terminal else WIDTH
    return Console(file=stream, highlight=False, width=width, soft_wrap=False)


def show(renderable: RenderableType) -> None:
    """Prints on stdout; into a pipe or file without the spaces that tables end their lines with."""
    target = console()
    if target.is_terminal:
        target.print(renderable)
        return
    with target.capture() as captured:
        target.print(renderable)
    print("\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n")))


class Terminal(Watch):
    """Shows steps and progress bars on stderr, and only where somebody watches."""

    def __init__(self) -> None:
        self.console = console(stderr=True)

    def step(self, name: str) -> None:
        """Shows the step under way; the next one or the result takes its line."""
        if self.console.is_terminal:
            self.console.print(f"[dim]{name} ...[/dim]", end="\r")

    def progress(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterable[Item]:
        """Shows a bar once the work has taken more than two seconds."""
        if not self.console.is_terminal:
            return items
        return self._bar(items, label, total)

    def _bar(self, items: Iterable[Item], label: str, total: int | None) -> Iterator[Item]:
        if total is None and isinstance(items, Sized):
            total = len(items)
        columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=self.console, transient=True)
        task = bar.add_task(label, total=total)
        started = time.monotonic()
        shown = False
        try:
            for item in items:
                yield item
                bar.advance(task)
                if not shown and time.monotonic() - started > PATIENCE:
                    bar.start()
                    shown = True
        finally:
            if shown:
                bar.stop()
