"""Running the artifact against its original, and concluding: figures, budgets, verdicts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgeopt import evaluate, host, user_code
from edgeopt.artifact import Artifact
from edgeopt.budget import Budget, judge_all
from edgeopt.corridor import Corridor, opened
from edgeopt.evidence import Evidence
from edgeopt.fidelity import compare
from edgeopt.outcome import Outcome
from edgeopt.steps import digest, tool_versions

DEFAULT_FIDELITY = Budget("fidelity", 15.0, "dB", explicit=False)
"""The budget where there are evaluation data but no labels."""


def judge(corridor: Corridor, artifact: Artifact) -> evaluate.Judgement | None:
    """Runs the artifact on this host against the float original, on data that nothing has seen."""
    spec, evaluation = corridor.job.data, corridor.data.evaluate
    if spec is None or evaluation is None:
        return None
    key = digest(
        "judgement",
        artifact.digest,
        [part.digest for part in corridor.parts.values()],
        evaluation.digest,
        [spec.metric, None if corridor.metric is None else user_code.digest(corridor.metric)],
        None if corridor.harness is None else corridor.harness.digest,
        corridor.job.limit,
        corridor.job.threads,
        host.isa(),
        tool_versions(),
    )
    record = corridor.store.record(key)
    if record is not None:
        return evaluate.Judgement.from_json(record)
    corridor.watch.step("judge")
    with opened(corridor.originals()) as originals, opened(artifact.open(corridor.job.threads)) as sessions:
        judgement = evaluate.judge(
            originals,
            sessions,
            evaluation,
            corridor.metric,
            harness=corridor.harness,
            limit=corridor.job.limit,
            batch=1 if "dynamic-int8" in corridor.precisions.values() else evaluate.BATCH,
            progress=corridor.watch.show_progress,
            digest=artifact.digest,
            seed=corridor.job.seed,
            relative=drop_unit(corridor) == "%",
            calibration=_calibrated(corridor),
        )
    corridor.store.keep(key, judgement.to_json())
    return judgement


def _calibrated(corridor: Corridor) -> Iterator[Mapping[str, Any]] | None:
    """The calls that static quantization chose its ranges by, where the model is judged call by call."""
    parts = list(corridor.parts.values())
    if corridor.harness is not None or len(parts) != 1 or parts[0].calibrate is None:
        return None
    return parts[0].calibrate.feeds() if "static-int8" in corridor.precisions.values() else None


def conclude(
    corridor: Corridor, artifact: Artifact, judgement: evaluate.Judgement | None, started: float
) -> Outcome:
    """Joins all evidence and judges the budgets."""
    job = corridor.job
    before = total(corridor, [part.figures for part in corridor.parts.values()])
    original = sum(part.bytes for part in corridor.parts.values())
    before["size"] = Evidence("size", original, "B", "measured", corridor.device)
    last = {record.part: record.figures for record in corridor.ledger}
    after = total(corridor, list(last.values()))
    grown = artifact.size - after["size"].value
    after["size"] = Evidence("size", artifact.size, "B", "measured", corridor.device)
    after["peak_memory"] = _shifted(after["peak_memory"], grown)
    after.pop("fidelity", None)
    if judgement is not None:
        if judgement.original is not None:
            before[judgement.original.quantity] = judgement.original
        after.update(judgement.evidence(drop_unit(corridor)))
        corridor.notes.extend(note for note in judgement.notes if note not in corridor.notes)
    elif job.data is None:
        after.update(seeded_fidelity(corridor, artifact))
    after = {name: replace(figure, artifact=artifact.digest) for name, figure in after.items()}
    judged = dict(after)
    if judgement is None:
        judged.pop("fidelity", None)  # on seeded inputs it is shown, never judged
    return Outcome(
        name=job.name,
        device=corridor.device,
        target=job.target.name,
        path=job.output,
        digest=artifact.digest,
        ledger=corridor.ledger,
        before=before,
        after=after,
        verdicts=judge_all(budgets(corridor), judged),
        notes=corridor.notes,
        cpu_seconds=time.process_time() - started,
        strict=job.strict,
    )


def drop_unit(corridor: Corridor) -> str | None:
    """The unit of the budget on the accuracy drop, where there is one."""
    return next((item.unit for item in budgets(corridor) if item.quantity == "accuracy_drop"), None)


def budgets(corridor: Corridor) -> list[Budget]:
    """The user's budgets, and the default one on accuracy or fidelity where there are data."""
    found = list(corridor.job.budgets)
    asked = {budget.quantity for budget in found}
    if corridor.data.evaluate is not None and not asked & {"accuracy_drop", "fidelity"}:
        found.append(DEFAULT_FIDELITY if corridor.metric is None else corridor.metric.default_budget())
    return found


def total(corridor: Corridor, figures: Sequence[Mapping[str, Evidence]]) -> dict[str, Evidence]:
    """Joins the figures of all parts: one call of each, all of them loaded at once."""
    if len(figures) == 1:
        return dict(figures[0])
    joined = {}
    for quantity in ("size", "latency", "peak_memory"):
        found = [part[quantity] for part in figures]
        total = found[0]
        for figure in found[1:]:
            total = _shifted(total, figure.value, figure.interval)
        joined[quantity] = total
    shared = (len(figures) - 1) * corridor.rules.memory
    joined["peak_memory"] = _shifted(joined["peak_memory"], -shared)
    return joined


def seeded_fidelity(corridor: Corridor, artifact: Artifact) -> dict[str, Evidence]:
    """Compares the artifact with the original on seeded inputs: shown, never judged."""
    if len(corridor.parts) > 1:
        return {}
    part = next(iter(corridor.parts.values()))
    with opened(corridor.originals()) as originals, opened(artifact.open(corridor.job.threads)) as sessions:
        expected, actual = originals[part.name], sessions[part.name]
        near = compare(expected.run, actual.run, part.calls(corridor.job.seed))
    if near.value is None:
        return {}
    conditions = {"inputs": "seeded", "isa": host.isa()}
    return {
        "fidelity": Evidence(
            "fidelity", near.value, "dB", "measured", "host", None, near.samples, conditions=conditions
        )
    }


def _shifted(figure: Evidence, by: float, interval: tuple[float, float] | None = None) -> Evidence:
    """Adds an amount to a figure, and to its interval the amount's own."""
    low, high = interval or (by, by)
    moved = None if figure.interval is None else (figure.interval[0] + low, figure.interval[1] + high)
    return replace(figure, value=figure.value + by, interval=moved)
