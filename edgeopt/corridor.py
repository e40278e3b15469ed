"""One job under way: from loading its parts to their models prepared for the runtime."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt import golden, metrics, predict, preprocess
from edgeopt.budget import Budget
from edgeopt.data import Data, open_data
from edgeopt.errors import DataError, ProfileError
from edgeopt.evidence import Evidence
from edgeopt.fidelity import compare
from edgeopt.graph import opset
from edgeopt.graph.change import Change
from edgeopt.graph.cost import model_size
from edgeopt.graph.execute import Executor
from edgeopt.graph.names import name_nodes
from edgeopt.graph.quantization import with_rounded_constants
from edgeopt.graph.shapes import without_weights
from edgeopt.harness import Harness
from edgeopt.job import Job, default_passes, make_steps, placed
from edgeopt.load import load, refuse_unknown_operators
from edgeopt.outcome import StepRecord
from edgeopt.passes.base import Facets, Options, Samples
from edgeopt.recording import recorded_calls
from edgeopt.runners.host import OnnxSession
from edgeopt.session import Session, signature
from edgeopt.stepping import State, Stepper
from edgeopt.steps import Store, digest, model_digest, tool_versions
from edgeopt.targets.base import refuse
from edgeopt.watch import Watch


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
        bytes: What the original takes on disk, its external data included.
    """

    name: str
    original: ir.Model
    digest: str
    state: State
    calibrate: Samples | None = None
    validate: Samples | None = None
    figures: Mapping[str, Evidence] = field(default_factory=dict)
    bytes: int = 0

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
    """One job under way.

    Attributes:
        job: What is to be done.
        parts: The parts of the model, by name.
        data: The data, opened.
        metric: What judges, or ``None``.
        harness: What runs the parts together, or ``None``.
        ledger: The steps so far.
        notes: Sentences for the user.
        precisions: Per part the scheme that its artifact carries.
    """

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
        uncovered = predict.coverage(job.platform)
        self.notes: list[str] = [] if uncovered is None else [uncovered]
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
            size = stored_bytes(model, source.source)
            spec = self.job.data
            if spec is not None and spec.preprocess is not None and spec.preprocess.fold:
                model = preprocess.fold(model, spec.preprocess)
            name_nodes(model)
            refuse_unknown_operators(model)
            found = model_digest(model, self.store)
            state = State(found, self.store, model)
            self.parts[name] = Part(name, model, found, state, bytes=size)

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
            quantized = "be quantized to static int8 and " if self.rules.quantization is not None else ""
            proven = f"with --data it can {quantized}have its accuracy proven"
            self.notes.append(f"without data the artifact is not judged; {proven}")
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
        self._check_asked(asked)
        if self.harness is None:
            only.calibrate, only.validate = self.data.calibrate, self.data.validate
            return
        self.watch.step("record calls")
        digests = [part.digest for part in self.parts.values()]
        for kind in ("calibrate", "validate"):
            samples = getattr(self.data, kind)
            if samples is None:
                continue
            calls = recorded_calls(
                self.harness, lambda: opened(self.originals()), digests, samples, self.store
            )
            for name, part in self.parts.items():
                setattr(part, kind, calls[name])

    def _check_asked(self, asked: Sequence[Budget]) -> None:
        """Refuses budgets that the data cannot judge."""
        for budget in asked:
            name = budget.quantity.replace("_", " ")
            if self.data.evaluate is None:
                raise DataError(
                    f"the budget on {name} cannot be judged: the data have no evaluation part",
                    hint="add evaluation.npz, or evaluate: in the recipe",
                )
            if budget.quantity == "accuracy_drop" and self.metric is None:
                raise DataError("the budget on accuracy drop needs a metric", hint="--metric top1")

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
        target = self.job.target.fitted(part.shapes)
        part.figures = self.figures(part, part.state, exact=True)
        state, change, seconds, cached = stepper.computed(part.state, "raise-opset", [opset.TARGET], _raise)
        part.state = state
        self.note(part, change)
        self.precisions[part.name] = "float32"
        checked = False
        steps = self.job.steps if self.job.steps is not None else make_steps(default_passes())
        for options, place in zip(steps, self.job.places or [""] * len(steps), strict=True):
            if options.stage != "structure" and not checked:
                refuse(target.check(part.state.model, self.job.platform), self.job.platform)
                checked = True
            with placed(place):
                self._run(part, stepper, options)
        self.refuse_floats(part)
        state, change, seconds, cached = stepper.computed(
            part.state,
            "prepare",
            [target.name, target.version, target.options(), self.rules.digest],
            lambda model: target.prepare(model, self.job.platform),
        )
        part.state = state
        self.note(part, change)
        self.record(part, None, change, seconds, cached, False)

    def _run(self, part: Part, stepper: Stepper, options: Options) -> None:
        """Runs a pass, or all that a plan names, and notes what each did."""
        for step in stepper.run(part.state, options):
            part.state = step.state
            if "scheme" in step.change.details:
                self.precisions[part.name] = str(step.change.details["scheme"])
            self.note(part, step.change)
            exact = step.options.keeps == "exact"
            self.record(part, step.options, step.change, step.cpu_seconds, step.cached, exact)

    def refuse_floats(self, part: Part) -> None:
        """Refuses a model in floats where the runtime's float kernels need what the core lacks.

        Raises:
            ProfileError: The device cannot run it.
        """
        platform, precision = self.job.platform, self.precisions[part.name]
        if platform.lacking is not None and precision in ("float32", "float16"):
            device = platform.device
            raise ProfileError(
                f"the device {device.name!r} cannot run {precision} with {platform.runtime.name}: "
                f"its float kernels for {device.cpu.arch} need {platform.lacking}, "
                f"which a {device.cpu.clusters[0].core} lacks",
                hint="static-int8 runs there: give --data",
            )

    def record(
        self, part: Part, step: Options | None, change: Change, seconds: float, cached: bool, exact: bool
    ) -> None:
        """Adds a line to the ledger."""
        name = "prepare" if step is None else step.name
        changed = {} if step is None else changed_options(step)
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
            "figures",
            state.digest,
            part.digest,
            self.job.platform.digest,
            self.job.threads,
            part.shapes,
            validation,
            tool_versions(),
        )
        record = self.store.record(key)
        if record is None:
            size = Evidence("size", model_size(state.model), "B", "predicted", self.device)
            latency = predict.predict(state.model, self.job.platform, self.job.threads, part.shapes).latency
            memory = predict.peak_memory(int(size.value), state.model, self.job.platform, part.shapes)
            found = [size, latency, memory]
            if validation is not None and part.validate is not None:
                simulated = with_rounded_constants(state.model)
                with Executor(part.original, optimize=True) as expected, Executor(simulated) as actual:
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


@contextlib.contextmanager
def opened(sessions: Mapping[str, Session]) -> Iterator[Mapping[str, Session]]:
    """Closes sessions at the end of a block."""
    try:
        yield sessions
    finally:
        for session in sessions.values():
            session.close()


def stored_bytes(model: ir.Model, source: Any) -> int:
    """The bytes of a model's own file and external data; of a model without a file, those it would take."""
    if isinstance(source, (str, Path)) and str(source).endswith(".onnx"):
        outside = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
        lengths = (item.nbytes for item in outside if isinstance(item, ir.ExternalTensor))
        return Path(source).stat().st_size + sum(lengths)
    return model_size(model) + len(without_weights(model).SerializeToString())


def _raise(model: ir.Model) -> tuple[ir.Model, Change]:
    before = model.opset_imports.get("", 0)
    raised, reason = opset.raise_opset(model)
    notes = [] if reason is None else [reason]
    if raised is model:
        return raised, Change(notes=notes)
    return raised, Change(summary=f"opset {before} -> {raised.opset_imports.get('', before)}", notes=notes)


def changed_options(step: Options) -> dict[str, Any]:
    """The options that differ from their defaults."""
    return {
        item.name: getattr(step, item.name)
        for item in fields(step)
        if getattr(step, item.name) != item.default
    }
