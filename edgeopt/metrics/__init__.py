"""The metrics: one file each, found by their names, or a user's ``package.module:function``.

The metric ``top1`` is the object ``METRIC`` of ``top1.py``. ``top1(logits)`` reads the output of that
name. Installed packages add theirs with the entry point group ``edgeopt.metrics``.
"""

from __future__ import annotations

import copy
import importlib
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from edgeopt import user_code
from edgeopt.errors import UserError, nearest
from edgeopt.metrics.base import Metric, UserMetric, parse_drop

__all__ = ["Metric", "UserMetric", "find", "names", "parse_drop"]


def names() -> list[str]:
    """Lists every known metric, sorted."""
    stems = {path.stem for path in Path(__file__).parent.glob("*.py")} - {"__init__", "base"}
    return sorted(stems | {point.name for point in entry_points(group="edgeopt.metrics")})


def find(name: str, *, base: Path | None = None, code: bool = True) -> Metric:
    """Finds a metric.

    Args:
        name: Such as ``top1``, ``top1(logits)`` or ``package.module:function``.
        base: The folder of the recipe, searched first for code.
        code: False under ``--no-code``.

    Raises:
        UserError: There is none of that name, or it is code and refused.
    """
    if user_code.is_code(name):
        found: Any = user_code.load(name, base=base, allowed=code)
        return _as_metric(found, name)
    match = re.fullmatch(r"([\w-]+)(?:\((.+)\))?", name)
    plain, output = match.groups() if match else (name, None)
    if plain not in (known := names()):
        raise UserError(
            f"there is no metric {plain!r}",
            nearest=nearest(plain, known),
            hint=f"one of {', '.join(known)}, or package.module:function",
        )
    metric = _load(plain)
    if output is not None:
        metric = copy.copy(metric)
        metric.output = output
    return metric


def _load(name: str) -> Metric:
    for point in entry_points(group="edgeopt.metrics"):
        if point.name == name:
            return _as_metric(point.load(), name)
    metric: Metric = importlib.import_module(f"edgeopt.metrics.{name}").METRIC
    return metric


def _as_metric(found: Any, name: str) -> Metric:
    if isinstance(found, Metric):
        return found
    if isinstance(found, type) and issubclass(found, Metric):
        return found()
    if not callable(found):
        raise UserError(f"{name!r} is no function and cannot be a metric")
    return UserMetric(found, name.rpartition(":")[2])
