"""What a run tells GitHub Actions by itself: annotations, and the job's summary.

See "Workflow commands for GitHub Actions" in GitHub's documentation.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from edgeopt.outcome import Outcome
from edgeopt.report import md, rows


def announce(outcomes: Sequence[Outcome]) -> None:
    """Writes an annotation for every budget that is not plainly met, and the summary; elsewhere nothing."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    for outcome in outcomes:
        for verdict in outcome.verdicts:
            if verdict.status == "met":
                continue
            level = "warning" if verdict.passes else "error"
            quantity = verdict.budget.quantity
            label = rows.LABELS.get(quantity, quantity)
            found = rows.value(verdict.evidence, interval=True) or "not judged"
            where = f"{outcome.name} on {outcome.device}"
            text = f"{where}: {label} {found}, {verdict.status}: {rows.limit(verdict)}"
            print(f"::{level} title=edgeopt::{text.replace('%', '%25')}", file=sys.stderr)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(md.render(outcomes) + "\n")
