"""How work in progress is shown: an interface that the command line fills in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

Item = TypeVar("Item")


class Watch:
    """Shows nothing; the base of watches that show something."""

    def step(self, name: str) -> None:
        """Tells that a step begins."""

    def progress(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterable[Item]:
        """Passes items through, showing how many have gone by."""
        return items

    def show_progress(self, items: Iterable[Any], label: str, total: int | None) -> Iterable[Any]:
        """The same in the form that ``Context`` takes."""
        return self.progress(items, label, total)


QUIET = Watch()
