"""Compiling a model for a device: the corridor from end to end.

load → passes → target → artifact → run → judge. ``compile_job`` is the whole of it.
"""

from __future__ import annotations

import time

from edgeopt.artifact import check_replaceable, destination
from edgeopt.corridor import Corridor
from edgeopt.job import Job
from edgeopt.judging import conclude, judge
from edgeopt.outcome import Outcome
from edgeopt.steps import Store
from edgeopt.watch import QUIET, Watch
from edgeopt.writing import write_artifact, write_evidence


def compile_job(job: Job, store: Store | None = None, watch: Watch = QUIET) -> Outcome:
    """Compiles one model for one device with one target, and judges the artifact.

    Args:
        job: What to do.
        store: Where steps and judgements are kept.
        watch: Shows progress.

    Returns:
        The outcome; an artifact that misses a budget is written all the same.

    Raises:
        EdgeoptError: See ``edgeopt.errors``; nothing is left half-written.
    """
    started = time.process_time()
    check_replaceable(job.output, job.force)
    corridor = Corridor(job, store or Store(), watch)
    corridor.load()
    corridor.open_data()
    for part in corridor.parts.values():
        corridor.lower(part)
    with destination(job.output, force=job.force) as folder:
        artifact = write_artifact(corridor, folder)
        outcome = conclude(corridor, artifact, judge(corridor, artifact), started)
        write_evidence(corridor, folder, outcome)
    return outcome
