"""The targets: one module or folder per runtime, found by the runtime profile's ``target``.

The target ``onnxruntime`` is the class ``Onnxruntime`` of ``onnxruntime.py`` or ``onnxruntime/``.
Installed packages add theirs with the entry point group ``edgeopt.targets``.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from edgeopt.errors import UserError, nearest
from edgeopt.session import Session
from edgeopt.targets.base import Target

__all__ = ["Session", "Target", "make", "names"]


def names() -> list[str]:
    """Lists every known target, sorted."""
    folder = Path(__file__).parent
    stems = {path.stem for path in folder.glob("*.py")} | {
        path.parent.name for path in folder.glob("*/__init__.py")
    }
    ours = {stem for stem in stems - {"__init__", "base"} if not stem.startswith("_")}
    return sorted(ours | {point.name for point in entry_points(group="edgeopt.targets")})


def make(name: str, **options: Any) -> Target:
    """Makes a target by its name.

    Raises:
        UserError: There is none of that name.
    """
    if name not in (known := names()):
        raise UserError(f"there is no target {name!r}", nearest=nearest(name, known))
    for point in entry_points(group="edgeopt.targets"):
        if point.name == name:
            loaded: type[Target] = point.load()
            return loaded(**options)
    module = importlib.import_module(f"edgeopt.targets.{name}")
    found: type[Target] = getattr(module, name.capitalize())
    return found(**options)
