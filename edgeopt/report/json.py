"""The report for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence

from edgeopt.outcome import Outcome, exit_code


def render(outcomes: Sequence[Outcome]) -> str:
    """Writes all outcomes as one JSON object."""
    return json.dumps(body(outcomes), indent=2, sort_keys=True, default=str) + "\n"


def body(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """Returns all outcomes as plain data."""
    return {
        "report": 1,
        "exit_code": exit_code(outcomes),
        "outcomes": [outcome.to_json() for outcome in outcomes],
    }
