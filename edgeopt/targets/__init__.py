"""The targets: one module or folder per runtime, found by the runtime profile's ``target``.

The target ``onnxruntime`` is the class ``Onnxruntime`` of ``onnxruntime.py`` or ``onnxruntime/``.
Installed packages add theirs with the entry point group ``edgeopt.targets``.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
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
        UserError: There is none of that name, or it has no such option.
    """
    if name not in (known := names()):
        raise UserError(f"there is no target {name!r}", nearest=nearest(name, known))
    for point in entry_points(group="edgeopt.targets"):
        if point.name == name:
            loaded: type[Target] = point.load()
            return _made(name, loaded, options)
    module = importlib.import_module(f"edgeopt.targets.{name}")
    found: type[Target] = getattr(module, name.capitalize())
    return _made(name, found, options)


def _made(name: str, target: type[Target], options: Mapping[str, Any]) -> Target:
    known = [item.name for item in dataclasses.fields(target)]
    for key in options:
        if key not in known:
            raise UserError(f"the target {name} has no option {key!r}", nearest=nearest(key, known))
    return target(**options)
