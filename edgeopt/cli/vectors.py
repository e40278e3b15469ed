"""Golden vectors beside a benchmark: what is fast and wrong is of no use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeopt.session import Session


def check(path: Path, opened: dict[str, Session], notes: list[str]) -> dict[str, Any]:
    """Whether an artifact's golden vectors pass, by part; notes say which do not.

    Args:
        path: A model or artifact; a model has none.
        opened: Its sessions, by part.
        notes: Added to.
    """
    from edgeopt import golden
    from edgeopt.artifact import is_artifact, open_artifact

    if not path.is_dir() or not is_artifact(path):
        return {}
    found: dict[str, Any] = {}
    for part, manifest in open_artifact(path).parts.items():
        found[part] = checked = golden.check(path, manifest, opened[part])
        if checked is not None and checked["passed"] is False:
            notes.append(
                f"the golden vectors of {path.name} fail there: {part} is off by "
                f"{checked['deviation']:.2g} of its largest value, {checked['tolerance']:.2g} is allowed"
            )
    return found


def lines(golden: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> Iterator[str]:
    """One line for every artifact that has golden vectors.

    Args:
        golden: What ``check`` found, by role.
        names: The artifact's name by role.
    """
    for key, parts in golden.items():
        checked = [entry for entry in parts.values() if entry is not None]
        if checked:
            worst = max(entry["deviation"] for entry in checked)
            said = "pass there" if all(entry["passed"] is not False for entry in checked) else "FAIL there"
            yield f"{names[key]}: golden vectors {said}, off by {worst:.2g} at most"
