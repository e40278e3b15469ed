"""Every error a user can meet, with the exit code that it ends in.

    EdgeoptError                 3
    ├── UserError                2   usage, recipe, profile, model or data
    │   ├── ModelError
    │   ├── DataError
    │   ├── RecipeError
    │   ├── ProfileError
    │   ├── OutputError              an output that cannot be, or must not be, written
    │   └── MissingExtra             names the extra to install
    ├── PassError                3   a pass failed
    ├── RuntimeFailure           3   a runtime failed to load or run an artifact
    ├── UnreachableError         4   a board or the emulator cannot be reached
    └── IntegrityError           5   a digest or signature does not match

An error is one sentence, the place where it arose, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class EdgeoptError(Exception):
    """Base of all errors that edgeopt raises on purpose.

    Args:
        message: One plain sentence: what is wrong.
        where: The file, line, node or tensor it concerns.
        nearest: Names that were probably meant.
        hint: What to do next.
    """

    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        nearest: Sequence[str] = (),
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.nearest = tuple(nearest)
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.message]
        if self.where:
            lines.append(f"  {self.where}")
        if self.nearest:
            lines.append(f"  nearest: {', '.join(self.nearest)}")
        if self.hint:
            lines.append(f"  try: {self.hint}")
        return "\n".join(lines)


class UserError(EdgeoptError):
    """Something the user gave cannot be used."""

    exit_code = 2


class ModelError(UserError):
    """The model is corrupt, incomplete or not supported."""


class DataError(UserError):
    """The data do not fit the model or the metric."""


class RecipeError(UserError):
    """The recipe is not valid."""


class ProfileError(UserError):
    """A device or runtime profile is missing or not valid."""


class OutputError(UserError):
    """An output cannot be, or must not be, written."""


class MissingExtra(UserError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed",
            hint=f"pip install 'edgeopt[{extra}]'",
        )


class PassError(EdgeoptError):
    """A pass failed."""


class RuntimeFailure(EdgeoptError):
    """A runtime failed to load or run an artifact."""


class UnreachableError(EdgeoptError):
    """A board or the emulator cannot be reached."""

    exit_code = 4


class IntegrityError(EdgeoptError):
    """A digest or signature does not match."""

    exit_code = 5


def nearest(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Returns up to ``limit`` of the ``known`` names that resemble ``name`` most."""
    return difflib.get_close_matches(name, list(known), n=limit, cutoff=0.4)
