"""Is int8 faster there? What a compilation ships, compared with its rivals on the emulated core.

Whether integers pay depends on core and runtime. Where the emulator is set up, the model is compiled in
float, float16 and as the platform's plan quantizes it, and the instructions of one inference of each are
counted on the device's board. Counts are no time: how many instructions a cycle takes differs from kernel
to kernel. So each candidate is weighed in several ways, of which each is right for some kernels: as if
every instruction took alike, as if the vector units were the limit, and as if loads, stores and cache
misses were. Only what holds by every weighing is concluded, and only then another precision than the plan's
is shipped, within the budgets.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgeopt.artifact import open_artifact
from edgeopt.compilation import compile_job
from edgeopt.cores import Core, known_cores
from edgeopt.data import SeededSamples
from edgeopt.errors import EdgeoptError
from edgeopt.evidence import Evidence
from edgeopt.job import Job, describe, make_steps, structure_passes
from edgeopt.outcome import Outcome
from edgeopt.platform import Device
from edgeopt.runners.emulator import Emulator
from edgeopt.runners.emulator.counts import Counts
from edgeopt.runners.emulator.place import find_place
from edgeopt.runners.shipping import RUNTIMES
from edgeopt.steps import Store, digest, tool_versions
from edgeopt.watch import QUIET, Watch
from edgeopt.writing import write_metrics

MARGIN = 0.05
"""A difference in work below this share is none."""

SAMPLES = 8
"""Evaluation samples of a rival before it is chosen: it is judged on all of them only if it wins."""

Conclusion = Literal["less work", "more work", "not decided"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One precision beside another.

    Attributes:
        ratios: Its work over the other's, by each way of weighing.
    """

    ratios: Mapping[str, float]

    @property
    def conclusion(self) -> Conclusion:
        """What holds by every weighing."""
        if max(self.ratios.values()) < 1 - MARGIN:
            return "less work"
        return "more work" if min(self.ratios.values()) > 1 + MARGIN else "not decided"

    def __str__(self) -> str:
        low, high = min(self.ratios.values()), max(self.ratios.values())
        return f"{low:.2f} to {high:.2f}"


def weigh(counts: Counts, core: Core) -> dict[str, float]:
    """The work of one inference by each way of weighing, in units of its own.

    ``vector`` gives each class the cycles that its multiply-accumulates take on this core's vector units,
    by ``cores.yaml``; ``memory`` charges a hit one cycle, a miss of the first level 10 and of the last 100,
    which is the order of magnitude on Arm's cores.
    """
    classes = counts.classes
    floats, integers = core.macs["float32"], core.macs.get("int8", core.macs["float32"])
    widening = integers if "dotprod" not in core.isa else 2 * floats  # without dot products int8 means SMLAL
    vector = (
        (classes["fmla"] + classes["simd"] + classes["float"]) * 4 / floats
        + classes["mla"] * 8 / widening
        + classes["dot"] * 16 / integers
        + classes["matmul"] * 32 / integers
    )
    work = {"instructions": float(counts.total), "vector": vector}
    if counts.memory:
        misses = [value for key, value in counts.memory.items() if key.startswith("misses")]
        work["memory"] = counts.memory["accesses"] + 10 * misses[0] + 100 * misses[-1]
    return work


def compare(one: Counts, other: Counts, core: Core) -> Comparison:
    """Weighs one precision against another."""
    mine, theirs = weigh(one, core), weigh(other, core)
    return Comparison({name: mine[name] / max(theirs[name], 1.0) for name in mine if theirs[name]})


def compile_chosen(job: Job, store: Store | None = None, watch: Watch = QUIET) -> Outcome:
    """Compiles a job, and ships another precision where that is less work by every weighing.

    Without the emulator, or where the job itself says what the passes are, this is ``compile_job``.

    Args:
        job: What to do.
        store: Where steps, judgements and counts are kept.
        watch: Shows progress.

    Raises:
        EdgeoptError: See ``edgeopt.errors``; trouble with the emulator is a note, never an error.
    """
    store = store or Store()
    outcome = compile_job(job, store, watch)
    if not comparable(job):
        return outcome
    with tempfile.TemporaryDirectory(prefix="edgeopt-rivals-") as folder:
        try:
            rivals = _rivals(job, store, watch, Path(folder), outcome)
            counted = _count(job, store, watch, {_precision(outcome): outcome.path, **rivals})
        except EdgeoptError as failure:
            note = f"precisions were not compared on the emulator: {failure.message}"
            return _kept(replace(outcome, notes=[*outcome.notes, note]))
        core = known_cores()[job.platform.device.cpu.clusters[0].core]
        shipped = _precision(outcome)
        best = choose(shipped, {name: counts for name, (counts, _) in counted.items()}, core)
        if best != shipped:
            chosen = replace(job, steps=_steps(best), places=(), output=Path(folder) / "chosen")
            if compile_job(chosen, store, watch).exit_code <= outcome.exit_code:
                outcome = compile_job(replace(chosen, output=job.output, force=True), store, watch)
            else:
                best = shipped
    return _kept(_explained(outcome, shipped, counted, core))


def compile(
    model: Any,
    device: str | Device,
    *,
    data: Any = None,
    budget: Mapping[str, str | float] | None = None,
    emulate: bool = True,
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
        emulate: Compare precisions on the emulator, where it is set up, and ship the one with the least work.
        store: Where steps are kept; by default the user's cache.
        watch: Shows progress.
        options: Further arguments of ``edgeopt.job.describe``: target, metric, passes, output, ...

    Returns:
        The outcome, with the artifact's path, the evidence and the verdicts.

    Raises:
        EdgeoptError: See ``edgeopt.errors``.
    """
    job = describe(model, device=device, data=data, budget=budget, **options)
    return (compile_chosen if emulate else compile_job)(job, store, watch)


def comparable(job: Job) -> bool:
    """Whether precisions of a job can be compared: by the platform's own plan, on a board that can count."""
    device = job.platform.device
    if job.steps is not None or len(job.parts) != 1 or job.platform.accelerator is not None:
        return False
    place = find_place()
    arch = "aarch64" if device.cpu.arch == "aarch64" else "armv7"
    return (
        arch == "aarch64"
        and device.cpu.clusters[0].core in known_cores()
        and job.platform.runtime.target in RUNTIMES
        and place.has("aarch64")
        and place.counter is not None
    )


def choose(shipped: str, counted: Mapping[str, Counts], core: Core) -> str:
    """The precision that is less work than the shipped one by every weighing, else the shipped one."""
    better = {
        name: compare(counts, counted[shipped], core)
        for name, counts in counted.items()
        if name != shipped and compare(counts, counted[shipped], core).conclusion == "less work"
    }
    return min(better, key=lambda name: max(better[name].ratios.values()), default=shipped)


def _precision(outcome: Outcome) -> str:
    return str(next(iter(open_artifact(outcome.path).parts.values()))["precision"])


def _steps(precision: str) -> Any:
    quantize = [] if precision == "float32" else [("quantize", {"scheme": precision})]
    return make_steps([*structure_passes(), *quantize])


def _rivals(job: Job, store: Store, watch: Watch, folder: Path, outcome: Outcome) -> dict[str, Path]:
    """Compiles the model in the other precisions that the runtime has, without budgets."""
    found: dict[str, Path] = {}
    for precision in ("float32", "float16"):
        if precision != _precision(outcome) and precision in job.platform.rules.precisions:
            limit = None if job.data is None else SAMPLES
            rival = replace(job, steps=_steps(precision), places=(), budgets=(), limit=limit)
            rival = replace(rival, output=folder / precision)
            compile_job(rival, store, watch)
            found[precision] = folder / precision
    return found


def _count(
    job: Job, store: Store, watch: Watch, artifacts: Mapping[str, Path]
) -> dict[str, tuple[Counts, Evidence]]:
    """Counts one inference of each artifact on the device's board; the store remembers."""
    found: dict[str, tuple[Counts, Evidence]] = {}
    shapes = next(iter(job.parts.values())).shapes
    with Emulator(counting=True) as runner:
        runner.choose(job.platform.device)
        for precision, path in artifacts.items():
            key = digest(
                "instructions",
                open_artifact(path).digest,
                job.platform.digest,
                {name: list(sizes) for name, sizes in shapes.items()},
                runner.place.parts(),
                tool_versions(),
            )
            if (known := store.record(key)) is not None:
                found[precision] = Counts(**known["counts"]), Evidence.from_json(known["evidence"])
                continue
            watch.step(f"count {precision} on the emulator")
            session = next(iter(runner.open(path, threads=job.threads).values()))
            samples = SeededSamples(session.inputs, 1, job.seed, shapes)
            counts = runner.count(session, next(samples.feeds()))
            conditions = {"threads": job.threads, "batch": 1}
            evidence = replace(
                runner.evidence(counts, session, conditions), artifact=open_artifact(path).digest
            )
            session.close()
            fields = {"classes": dict(counts.classes), "memory": dict(counts.memory)}
            store.keep(key, {"counts": fields, "evidence": evidence.to_json()})
            found[precision] = counts, evidence
    return found


def _explained(
    outcome: Outcome, planned: str, counted: Mapping[str, tuple[Counts, Evidence]], core: Core
) -> Outcome:
    """Adds the counts to the outcome, and the sentences that say what follows from them."""
    shipped = _precision(outcome)
    float_counts, float_evidence = counted["float32"]
    after = counted[shipped][1]
    comparisons = {
        name: compare(counts, float_counts, core)
        for name, (counts, _) in counted.items()
        if name != "float32"
    }
    detail = {
        name: {"ratios": dict(found.ratios), "conclusion": found.conclusion}
        for name, found in comparisons.items()
    }
    after = replace(after, detail={**after.detail, "beside_float32": detail}, artifact=outcome.digest)
    return replace(
        outcome,
        before={**outcome.before, "instructions": float_evidence},
        after={**outcome.after, "instructions": after},
        notes=[*outcome.notes, *sentences(planned, shipped, comparisons, str(after.conditions.get("core")))],
    )


def sentences(planned: str, shipped: str, comparisons: Mapping[str, Comparison], core: str) -> Sequence[str]:
    """What was found, how sure it is, and what ships for that reason."""
    said = {
        "less work": "less by every way of weighing, so very likely faster",
        "more work": "more by every way of weighing, so very likely slower",
        "not decided": "which decides nothing",
    }
    found = [
        f"{name} is {comparison} of float32's work on an emulated {core}: {said[comparison.conclusion]}"
        for name, comparison in comparisons.items()
    ]
    if shipped != planned:
        found.append(
            f"{shipped} ships instead of {planned}, which is more work there; "
            f"--no-emulate (in Python emulate=False) keeps {planned}"
        )
    return found


def _kept(outcome: Outcome) -> Outcome:
    """Writes the figures beside the artifact again."""
    write_metrics(outcome.path, outcome)
    return outcome
