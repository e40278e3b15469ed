"""The corridor: load → passes → target → artifact → run → judge.

``compile_job`` is the whole of it; everything below it is one room's door each.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt import artifact as artifacts
from edgeopt import evaluate, golden, host, metrics, predict, preprocess, user_code
from edgeopt.artifact import Artifact
from edgeopt.budget import Budget, judge_all
from edgeopt.data import Data, open_data
from edgeopt.errors import DataError
from edgeopt.evidence import Evidence
from edgeopt.fidelity import compare
from edgeopt.graph import opset
from edgeopt.graph.change import Change
from edgeopt.graph.cost import model_size
from edgeopt.graph.execute import Executor
from edgeopt.graph.names import name_nodes, original_names
from edgeopt.harness import Harness, record_calls
from edgeopt.job import Job, default_passes, describe, make_steps
from edgeopt.load import load, refuse_unknown_operators
from edgeopt.outcome import Outcome, StepRecord
from edgeopt.passes.base import Facets, Options, Samples
from edgeopt.platform import Device
from edgeopt.runners.host import OnnxSession
from edgeopt.session import Session, signature
from edgeopt.stepping import State, Stepper
from edgeopt.steps import Store, digest, hash_file, model_digest, tool_versions
from edgeopt.targets.base import refuse
from edgeopt.watch import QUIET, Watch

DEFAULT_FIDELITY = Budget("fidelity", 15.0, "dB", explicit=False)
"""The budget where there are evaluation data but no labels."""


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
    artifacts.check_replaceable(job.output, job.force)
    corridor = Corridor(job, store or Store(), watch)
    corridor.load()
    corridor.open_data()
    for part in corridor.parts.values():
        corridor.lower(part)
    with artifacts.destination(job.output, force=job.force) as folder:
        artifact = corridor.write(folder)
        outcome = corridor.conclude(artifact, corridor.judge(artifact), started)
        corridor.write_evidence(folder, outcome)
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


@dataclass
class Part:
    """One part of a model on its way down the corridor.

    Attributes:
        name: Its name.
        original: The float model as loaded, with names for all nodes.
        digest: Of the original.
        calibrate: Model calls for calibration, or ``None``.
        validate: Model calls for validation, or ``None``.
        state: The model as the last step left it.
        figures: The float model's figures, by quantity.
    """

    name: str
    original: ir.Model
    digest: str
    state: State
    calibrate: Samples | None = None
    validate: Samples | None = None
    figures: Mapping[str, Evidence] = field(default_factory=dict)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The inputs' shapes in one call, as the calibration data have them; empty without data."""
        first = None if self.calibrate is None else next(iter(self.calibrate.feeds()), None)
        return {} if first is None else {name: array.shape for name, array in first.items()}

    def calls(self, seed: int) -> Iterator[Mapping[str, np.ndarray]]:
        """A few model calls: of validation data, or seeded ones where there are no data."""
        if self.validate is not None:
            return iter(self.validate.feeds())
        return iter(golden.seeded_calls(self.original, seed))


class Corridor:
    """One job under way."""

    def __init__(self, job: Job, store: Store, watch: Watch) -> None:
        self.job = job
        self.store = store
        self.watch = watch
        self.rules = job.platform.rules
        self.device = job.platform.device.name
        self.parts: dict[str, Part] = {}
        self.data = Data(None, None, None)
        self.metric: metrics.Metric | None = None
        self.harness: Harness | None = None
        self.ledger: list[StepRecord] = []
        self.notes: list[str] = []
        self.precisions: dict[str, str] = {}

    # ---- load

    def load(self) -> None:
        """Loads every part."""
        for name, source in self.job.parts.items():
            self.watch.step(f"load {name}" if len(self.job.parts) > 1 else "load")
            model = load(
                source.source,
                weights=source.weights,
                shapes=source.shapes or None,
                example=source.example,
                allow_code=self.job.allow_code,
                base=self.job.base,
            )
            spec = self.job.data
            if spec is not None and spec.preprocess is not None and spec.preprocess.fold:
                model = preprocess.fold(model, spec.preprocess)
            name_nodes(model)
            refuse_unknown_operators(model)
            found = model_digest(model, self.store)
            self.parts[name] = Part(name, model, found, State(found, self.store, model))

    # ---- data

    def open_data(self) -> None:
        """Opens the data, checks all parts of them, and records calls where there is a harness."""
        spec = self.job.data
        asked = [budget for budget in self.job.budgets if budget.quantity in ("accuracy_drop", "fidelity")]
        if spec is None:
            if asked:
                raise DataError(
                    f"the budget on {asked[0].quantity.replace('_', ' ')} cannot be judged without data",
                    hint="give --data",
                )
            self.notes.append(
                "without data the artifact is not judged; with --data it can be quantized to static int8 "
                "and its accuracy proven"
            )
            return
        if spec.harness is None and len(self.parts) > 1:
            raise DataError(
                f"a model of {len(self.parts)} parts needs a harness that runs them together",
                hint="data: {harness: package.module:function}",
            )
        if spec.metric is not None:
            self.metric = metrics.find(spec.metric, base=self.job.base, code=self.job.allow_code)
            for budget in asked:
                if budget.quantity == "accuracy_drop":
                    self.metric.check_budget(budget)
        if spec.harness is not None:
            self.harness = Harness.load(spec.harness, base=self.job.base, code=self.job.allow_code)
        only = next(iter(self.parts.values()))
        graph = only.original.graph
        self.data = open_data(
            spec,
            None if spec.harness else signature(graph.inputs),
            self.metric,
            outputs=() if spec.harness else signature(graph.outputs),
            base=self.job.base,
            code=self.job.allow_code,
        )
        self.notes.extend(self.data.notes)
        if self.harness is None:
            only.calibrate, only.validate = self.data.calibrate, self.data.validate
            return
        self.watch.step("record calls")
        with _opened(self.originals()) as sessions:
            for kind in ("calibrate", "validate"):
                samples = getattr(self.data, kind)
                if samples is not None and self.harness is not None:
                    calls = record_calls(self.harness, sessions, samples)
                    for name, part in self.parts.items():
                        setattr(part, kind, calls[name])

    def originals(self) -> dict[str, Session]:
        """Opens the float original of every part."""
        return {
            name: OnnxSession(part.original, threads=self.job.threads) for name, part in self.parts.items()
        }

    # ---- passes

    def lower(self, part: Part) -> None:
        """Raises a part's opset, runs the passes, and prepares it for the runtime."""
        stepper = Stepper(
            store=self.store,
            facets=Facets(
                rules=self.rules,
                calibration=part.calibrate,
                validation=part.validate,
                teacher=part.original,
                predictor=predict.RooflinePredictor(self.job.platform, self.job.threads, part.shapes),
                budget=self.job.budgets,
            ),
            teacher=part.digest,
            seed=self.job.seed,
            verify=self.job.verify,
            watch=self.watch,
        )
        part.figures = self.figures(part, part.state, exact=True)
        state, change, seconds, cached = stepper.computed(part.state, "raise-opset", [opset.TARGET], _raise)
        part.state = state
        self.note(part, change)
        self.precisions[part.name] = "float32"
        checked = False
        for options in self.job.steps if self.job.steps is not None else make_steps(default_passes()):
            if options.stage != "structure" and not checked:
                refuse(self.job.target.check(part.state.model, self.job.platform), self.job.platform)
                checked = True
            for step in stepper.run(part.state, options):
                part.state = step.state
                if "scheme" in step.change.details:
                    self.precisions[part.name] = str(step.change.details["scheme"])
                self.note(part, step.change)
                exact = step.options.keeps == "exact"
                self.record(part, step.options, step.change, step.cpu_seconds, step.cached, exact)
        target = self.job.target
        state, change, seconds, cached = stepper.computed(
            part.state,
            "prepare",
            [target.name, target.version, target.options(), self.rules.digest],
            lambda model: target.prepare(model, self.job.platform),
        )
        part.state = state
        self.note(part, change)
        self.record(part, None, change, seconds, cached, False)

    def record(
        self, part: Part, step: Options | None, change: Change, seconds: float, cached: bool, exact: bool
    ) -> None:
        """Adds a line to the ledger."""
        name = "prepare" if step is None else step.name
        changed = {} if step is None else _changed_options(step)
        figures = self.figures(part, part.state, exact=exact)
        self.ledger.append(StepRecord(part.name, name, changed, change, seconds, cached, figures))

    def note(self, part: Part, change: Change) -> None:
        """Takes over a step's sentences for the user."""
        prefix = f"{part.name}: " if len(self.parts) > 1 else ""
        self.notes.extend(prefix + text for text in change.notes if prefix + text not in self.notes)

    def figures(self, part: Part, state: State, *, exact: bool) -> dict[str, Evidence]:
        """Determines what a model is worth: size, latency, peak memory, and fidelity to the original.

        The fidelity of exact steps is that of the step before, and is not measured again.
        """
        validation = None if exact or part.validate is None else part.validate.digest
        key = digest(
            "figures", state.digest, part.digest, self.job.platform.digest, self.job.threads, validation
        )
        record = self.store.record(key)
        if record is None:
            size = Evidence("size", model_size(state.model), "B", "predicted", self.device)
            latency = predict.predict(state.model, self.job.platform, self.job.threads, part.shapes).latency
            memory = predict.peak_memory(int(size.value), state.model, self.job.platform, part.shapes)
            found = [size, latency, memory]
            if validation is not None and part.validate is not None:
                with Executor(part.original, optimize=True) as expected, Executor(state.model) as actual:
                    near = compare(expected.run, actual.run, part.validate.feeds())
                if near.value is not None:
                    found.append(
                        Evidence(
                            "fidelity", near.value, "dB", "measured", "host", near.interval(), near.samples
                        )
                    )
            record = {figure.quantity: figure.to_json() for figure in found}
            self.store.keep(key, record)
        return {name: Evidence.from_json(data) for name, data in record.items()}

    # ---- target and artifact

    def write(self, folder: Path) -> Artifact:
        """Emits every part into the artifact's folder and writes its manifest."""
        self.watch.step("write")
        job = self.job
        parts: dict[str, dict[str, Any]] = {}
        roles: dict[str, str] = {}
        for part in self.parts.values():
            root = folder / part.name if len(self.parts) > 1 else folder
            root.mkdir(exist_ok=True)
            prefix = f"{part.name}/" if len(self.parts) > 1 else ""
            emitted = job.target.emit(part.state.model, job.platform, root)
            self.notes.extend(note for note in emitted.notes if note not in self.notes)
            roles.update({prefix + file.path: file.role for file in emitted.files})
            inputs = signature(part.original.graph.inputs)
            outputs = signature(part.original.graph.outputs)
            vectors = golden.write_golden(
                part.state.model,
                part.calls(job.seed),
                self.rules,
                self.precisions[part.name],
                folder / "golden" / prefix,
                folder,
            )
            roles.update({vectors["inputs"]: "golden", vectors["outputs"]: "golden"})
            for name, text in job.target.snippets(emitted, inputs).items():
                (root / name).write_text(text, encoding="utf-8")
                roles[prefix + name] = "snippet"
            contracts: dict[str, Any] = {"golden": vectors, "precision": self.precisions[part.name]}
            if part.calibrate is not None:
                ranges = golden.input_ranges(part.calibrate.feeds())
                contracts["histograms"] = golden.histograms(part.calibrate.feeds(), ranges)
            parts[part.name] = artifacts.part_manifest(emitted, inputs, outputs, prefix=prefix, **contracts)
        head = {
            "name": job.name,
            "device": self.device,
            "target": job.target.name,
            "format": job.target.format,
            "runtime": {
                "name": job.platform.runtime.name,
                "version": job.platform.runtime_version,
                "floors": self.rules.floors,
            },
        }
        return artifacts.write_manifest(folder, head, parts, roles)

    # ---- run and judge

    def judge(self, artifact: Artifact) -> evaluate.Judgement | None:
        """Runs the artifact on this host against the float original, on data that nothing has seen."""
        spec, evaluation = self.job.data, self.data.evaluate
        if spec is None or evaluation is None:
            return None
        key = digest(
            "judgement",
            artifact.digest,
            [part.digest for part in self.parts.values()],
            evaluation.digest,
            [spec.metric, None if self.metric is None else user_code.digest(self.metric)],
            None if self.harness is None else self.harness.digest,
            self.job.limit,
            self.job.threads,
            host.isa(),
            tool_versions(),
        )
        record = self.store.record(key)
        if record is not None:
            return evaluate.Judgement.from_json(record)
        self.watch.step("judge")
        with _opened(self.originals()) as originals, _opened(artifact.open(self.job.threads)) as sessions:
            judgement = evaluate.judge(
                originals,
                sessions,
                evaluation,
                self.metric,
                harness=self.harness,
                limit=self.job.limit,
                batch=1 if "dynamic-int8" in self.precisions.values() else evaluate.BATCH,
                progress=self.watch.show_progress,
                digest=artifact.digest,
                seed=self.job.seed,
                relative=self.drop_unit == "%",
            )
        self.store.keep(key, judgement.to_json())
        return judgement

    def conclude(self, artifact: Artifact, judgement: evaluate.Judgement | None, started: float) -> Outcome:
        """Joins all evidence and judges the budgets."""
        job = self.job
        before = self.total([part.figures for part in self.parts.values()])
        last = {record.part: record.figures for record in self.ledger}
        after = self.total(list(last.values()))
        grown = artifact.size - after["size"].value
        after["size"] = Evidence("size", artifact.size, "B", "measured", self.device)
        after["peak_memory"] = _shifted(after["peak_memory"], grown)
        after.pop("fidelity", None)
        if judgement is not None:
            if judgement.original is not None:
                before[judgement.original.quantity] = judgement.original
            after.update(judgement.evidence(self.drop_unit))
            self.notes.extend(note for note in judgement.notes if note not in self.notes)
        elif job.data is None:
            after.update(self.seeded_fidelity(artifact))
        after = {name: replace(figure, artifact=artifact.digest) for name, figure in after.items()}
        judged = after if judgement is not None else {k: v for k, v in after.items() if k != "fidelity"}
        return Outcome(
            name=job.name,
            device=self.device,
            target=job.target.name,
            path=job.output,
            digest=artifact.digest,
            ledger=self.ledger,
            before=before,
            after=after,
            verdicts=judge_all(self.budgets(), judged),
            notes=self.notes,
            cpu_seconds=time.process_time() - started,
            strict=job.strict,
        )

    @property
    def drop_unit(self) -> str | None:
        """The unit of the budget on the accuracy drop, where there is one."""
        return next((item.unit for item in self.budgets() if item.quantity == "accuracy_drop"), None)

    def budgets(self) -> list[Budget]:
        """The user's budgets, and the default one on accuracy or fidelity where there are data."""
        found = list(self.job.budgets)
        asked = {budget.quantity for budget in found}
        if self.data.evaluate is not None and not asked & {"accuracy_drop", "fidelity"}:
            found.append(DEFAULT_FIDELITY if self.metric is None else self.metric.default_budget())
        return found

    def total(self, figures: Sequence[Mapping[str, Evidence]]) -> dict[str, Evidence]:
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
        shared = (len(figures) - 1) * self.rules.memory
        joined["peak_memory"] = _shifted(joined["peak_memory"], -shared)
        return joined

    def seeded_fidelity(self, artifact: Artifact) -> dict[str, Evidence]:
        """Compares the artifact with the original on seeded inputs: shown, never judged."""
        if len(self.parts) > 1:
            return {}
        part = next(iter(self.parts.values()))
        with _opened(self.originals()) as originals, _opened(artifact.open(self.job.threads)) as sessions:
            expected, actual = originals[part.name], sessions[part.name]
            near = compare(expected.run, actual.run, part.calls(self.job.seed))
        if near.value is None:
            return {}
        conditions = {"inputs": "seeded", "isa": host.isa()}
        return {
            "fidelity": Evidence(
                "fidelity", near.value, "dB", "measured", "host", None, near.samples, conditions=conditions
            )
        }

    # ---- evidence

    def write_evidence(self, folder: Path, outcome: Outcome) -> None:
        """Writes what names the artifact's digest: figures, ledger, provenance."""
        job = self.job
        report = outcome.to_json()
        ledger = report.pop("ledger")
        _write_json(folder / "metrics.json", report)
        _write_json(folder / "ledger.json", {"artifact": outcome.digest, "steps": ledger})
        sources = {
            name: {
                "source": str(source.source) if isinstance(source.source, (str, Path)) else "in memory",
                "digest": self.parts[name].digest,
                "weights": None if source.weights is None else hash_file(source.weights),
                "shapes": {key: list(shape) for key, shape in source.shapes.items()},
            }
            for name, source in job.parts.items()
        }
        parts = {
            "calibrate": self.data.calibrate,
            "validate": self.data.validate,
            "evaluate": self.data.evaluate,
        }
        _write_json(
            folder / "provenance.json",
            {
                "artifact": outcome.digest,
                "models": sources,
                "data": {name: None if part is None else part.digest for name, part in parts.items()},
                "device": {"name": self.device, "profiles": job.platform.digest},
                "seed": job.seed,
                "verify": job.verify,
                "tools": tool_versions(),
                "host": host.isa(),
                "original_names": {
                    name: [  # in the order of the model file, whose nodes have lost their names
                        {"node": node.name or "", "original": list(original_names(node))}
                        for node in part.state.model.graph
                    ]
                    for name, part in self.parts.items()
                },
            },
        )


def _raise(model: ir.Model) -> tuple[ir.Model, Change]:
    before = model.opset_imports.get("", 0)
    raised, reason = opset.raise_opset(model)
    if reason is not None:
        return raised, Change(notes=[reason])
    return raised, Change(summary=f"opset {before} -> {raised.opset_imports.get('', before)}")


@contextlib.contextmanager
def _opened(sessions: Mapping[str, Session]) -> Iterator[Mapping[str, Session]]:
    try:
        yield sessions
    finally:
        for session in sessions.values():
            session.close()


def _shifted(figure: Evidence, by: float, interval: tuple[float, float] | None = None) -> Evidence:
    """Adds an amount to a figure, and to its interval the amount's own."""
    low, high = interval or (by, by)
    moved = None if figure.interval is None else (figure.interval[0] + low, figure.interval[1] + high)
    return replace(figure, value=figure.value + by, interval=moved)


def _changed_options(step: Options) -> dict[str, Any]:
    """The options that differ from their defaults."""
    return {
        item.name: getattr(step, item.name)
        for item in fields(step)
        if getattr(step, item.name) != item.default
    }


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")
