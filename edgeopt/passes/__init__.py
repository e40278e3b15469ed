"""The passes: one file each, found by their names.

The pass ``fold-batch-norm`` is the class ``FoldBatchNorm`` of ``fold_batch_norm.py`` (or of the folder
``fold_batch_norm/``). Installed packages add theirs with the entry point group ``edgeopt.passes``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from edgeopt.errors import UserError, nearest
from edgeopt.graph.change import Change
from edgeopt.passes.base import Context, Facets, Options, Pass, Plan

__all__ = ["Change", "Context", "Facets", "Options", "Pass", "Plan", "make", "names"]

_NOT_PASSES = {"__init__", "base"}


@cache
def _installed() -> tuple[EntryPoint, ...]:
    """The passes of installed packages; finding them reads every package's metadata, so it is done once."""
    return tuple(entry_points(group="edgeopt.passes"))


def names() -> list[str]:
    """Lists every known pass, sorted."""
    folder = Path(__file__).parent
    stems = {path.stem for path in folder.glob("*.py")} | {
        path.parent.name for path in folder.glob("*/__init__.py")
    }
    ours = {stem.replace("_", "-") for stem in stems - _NOT_PASSES if not stem.startswith("_")}
    return sorted(ours | {point.name for point in _installed()})


def find(name: str) -> type[Options]:
    """Finds a pass or plan by its name.

    Raises:
        UserError: There is none of that name.
    """
    if name not in (known := names()):
        raise UserError(
            f"there is no pass {name!r}", nearest=nearest(name, known), hint="edgeopt passes list"
        )
    for point in _installed():
        if point.name == name:
            loaded: type[Options] = point.load()
            return loaded
    module = importlib.import_module(f"edgeopt.passes.{name.replace('-', '_')}")
    found: type[Options] = getattr(module, "".join(part.capitalize() for part in name.split("-")))
    return found


def make(name: str, options: Mapping[str, Any] | None = None) -> Options:
    """Makes a pass from its name and options, as a recipe gives them."""
    return find(name).from_options(options or {})
