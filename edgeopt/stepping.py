"""Running passes as steps of the store: what was computed once is taken from there."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from edgeopt import host
from edgeopt.errors import EdgeoptError, PassError
from edgeopt.graph.change import Change
from edgeopt.passes.base import Context, Entry, Facet, Facets, Options, Pass, Plan, Verify
from edgeopt.steps import Store, digest, tool_versions
from edgeopt.watch import QUIET, Watch


@dataclass
class State:
    """A model between two steps, loaded from the store only when somebody looks at it.

    Attributes:
        digest: Its identity: the original's digest, or the key of the step that made it.
        store: Where it lies.
        held: The model, once loaded.
    """

    digest: str
    store: Store
    held: ir.Model | None = None

    @property
    def model(self) -> ir.Model:
        """The model; whoever edits it clones it first."""
        if self.held is None:
            self.held = self.store.model(self.digest)
            if self.held is None:
                raise PassError("the store of steps lost a model", hint="edgeopt cache clear")
        return self.held


@dataclass(frozen=True)
class Step:
    """A step that was taken.

    Attributes:
        options: The pass that ran.
        change: What it did.
        state: The model after it.
        cpu_seconds: Processor time when it was computed.
        cached: It came from the store.
    """

    options: Pass
    change: Change
    state: State
    cpu_seconds: float
    cached: bool


@dataclass
class Stepper:
    """Takes steps for one part of a model.

    Attributes:
        store: The store of steps.
        facets: Everything that passes may declare to read.
        teacher: The digest of the float original, which stands for the facet ``teacher``.
        seed: The seed of everything random.
        verify: How rewrites are proved.
        watch: Shows progress.
    """

    store: Store
    facets: Facets
    teacher: str
    seed: int = 0
    verify: Verify = "fast"
    watch: Watch = QUIET

    def run(self, state: State, options: Options) -> Iterator[Step]:
        """Runs a pass, or every pass that a plan names, one step each."""
        if isinstance(options, Pass):
            yield self._take(state, options)
            return
        if not isinstance(options, Plan):
            raise PassError(f"{options.name!r} is neither a pass nor a plan")
        ledger: list[Entry] = []
        while True:
            with named(options.name):
                chosen = options.next(state.model, self._context(options), ledger)
            if chosen is None:
                return
            step = self._take(state, chosen)
            ledger.append(Entry(chosen, step.change, step.state.model, step.cpu_seconds))
            state = step.state
            yield step

    def computed(
        self,
        state: State,
        name: str,
        parts: Sequence[Any],
        make: Callable[[ir.Model], tuple[ir.Model, Change]],
    ) -> tuple[State, Change, float, bool]:
        """Returns what ``make`` gives for a model, from the store where it was made before.

        Args:
            state: The input; ``make`` may edit its clone, or return another model.
            name: The step's name.
            parts: Everything beside the input that the result depends on.
            make: Returns the new model and what was done.

        Returns:
            The new state, the change, processor seconds when computed, and whether it was stored.
        """
        key = digest(name, state.digest, parts, self.seed, host.isa(), tool_versions())
        record = self.store.record(key)
        if record is not None and self.store.holds(key):
            return State(key, self.store), Change.from_json(record["change"]), record["cpu_seconds"], True
        self.watch.step(name)
        started = time.process_time()
        with named(name):
            model, change = make(state.model.clone())
        seconds = time.process_time() - started
        self.store.keep(key, {"change": change.to_json(), "cpu_seconds": seconds}, model)
        return State(key, self.store, model), change, seconds, False

    def _take(self, state: State, step: Pass) -> Step:
        facets = {facet: self._digest(facet) for facet in sorted(step.reads)}
        parts = [step.version, step.options(), facets, self.verify]
        after, change, seconds, cached = self.computed(
            state, step.name, parts, lambda model: (model, step.apply(model, self._context(step)))
        )
        return Step(step, change, after, seconds, cached)

    def _context(self, options: Options) -> Context:
        return Context(
            facets=self.facets,
            reads=options.reads,
            seed=self.seed,
            verify=self.verify,
            show_progress=self.watch.show_progress,
        )

    def _digest(self, facet: Facet) -> str | None:
        if facet == "teacher":
            return self.teacher
        value = getattr(self.facets, facet)
        if value is None:
            return None
        if facet == "budget":
            return digest([dataclasses.asdict(budget) for budget in value])
        return str(value.digest)


class named:
    """Turns an unforeseen exception of a pass into an error that names the pass.

    With EDGEOPT_DEBUG it goes on as it is, to the command line, which lets it end with its traceback.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, (EdgeoptError, OSError, MemoryError)):
            return
        if isinstance(error, Exception) and not os.environ.get("EDGEOPT_DEBUG"):
            raise PassError(
                f"the pass {self.name!r} failed: {type(error).__name__}: {error}",
                hint="leave it out of the recipe, and report it; EDGEOPT_DEBUG=1 shows the traceback",
            ) from error
