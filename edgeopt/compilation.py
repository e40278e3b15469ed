"""Compiling a model for a device: the corridor from end to end.

load → passes → target → artifact → run → judge. ``compile_job`` is the whole of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from edgeopt.artifact import check_replaceable, destination
from edgeopt.corridor import Corridor
from edgeopt.job import Job, describe
from edgeopt.judging import conclude, judge
from edgeopt.outcome import Outcome
from edgeopt.platform import Device
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


def compile(
    model: Any,
    device: str | Device,
    *,
    data: Any = None,
    budget: Mapping[str, str | float] | None = None,
    store: Store | None = None,
    watch: Watch = QUIET,
    **options: Any,
) -> Outcome:
    """Compiles a model for a device and judges the artifact: what ``edgeopt compile`` does.

    Args:
        model: A path, ``package.module:build``, ``onnx.ModelProto``, ``onnx_ir.Model``, or a
            ``torch.nn.Module`` with ``example=`` inputs.
        device: A device's name, the path of a profile, or a ``Device``.
        data: A path, or the mapping that a recipe holds under ``data``.
        budget: Limits by quantity: ``{"size": "3 MiB", "accuracy_drop": "1 pp"}``.
        store: Where steps are kept; by default the user's cache.
        watch: Shows progress.
        options: Further arguments of ``edgeopt.job.describe``: target, metric, passes, output, ...

    Returns:
        The outcome, with the artifact's path, the evidence and the verdicts.

    Raises:
        EdgeoptError: See ``edgeopt.errors``.
    """
    return compile_job(describe(model, device=device, data=data, budget=budget, **options), store, watch)
