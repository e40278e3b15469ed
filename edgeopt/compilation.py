"""The corridor: load → passes → target → artifact → run → judge.

``compile_job`` is the whole of it; everything below it is one room's door each.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeopt import artifact as artifacts
from edgeopt import evaluate, host, predict
from edgeopt.artifact import Artifact
from edgeopt.budget import Budget, Verdict, judge_all
from edgeopt.data import Data, open_data
from edgeopt.errors import DataError, EdgeoptError, PassError
from edgeopt.evidence import Evidence
from edgeopt.fidelity import compare
from edgeopt.graph import opset
from edgeopt.graph.change import Change
from edgeopt.graph.cost import model_size
from edgeopt.graph.execute import Executor
from edgeopt.graph.names import name_nodes
from edgeopt.job import Job, PartSource
from edgeopt.load import load
from edgeopt.outcome import Outcome, StepRecord
from edgeopt.passes import names as pass_names
from edgeopt.passes.base import Context, Entry, Facets, Options, Pass, Plan, Samples
from edgeopt.session import signature
from edgeopt.steps import Store, digest, model_digest, tool_versions
from edgeopt.targets.base import refuse
from edgeopt.watch import QUIET, Watch

IR_OPSET = 21
"""The opset that passes work in: the first whose QuantizeLinear knows int4, int16 and blocks."""

DEFAULT_FIDELITY = 15.0
"""The budget, in dB, where there are data but no labels."""


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
    lowered = {name: corridor.lower(part) for name, part in corridor.parts.items()}
    with artifacts.destination(job.output, force=job.force) as folder:
        artifact = corridor.write(lowered, folder)
        judgement = corridor.judge(artifact)
        outcome = corridor.conclude(artifact, judgement, lowered, time.process_time() - started)
        corridor.write_evidence(outcome, folder)
    return outcome


@dataclass
class Part:
    """One part of a model on its way down the corridor.

    Attributes:
        name: Its name.
        original: The float model as loaded, in the user's opset.
        digest: Of the original.
        calibrate: Model calls for calibration, or ``None``.
        validate: Model calls for validation, or ``None``.
        ledger: The steps so far.
        notes: Sentences for the user.
    """

    name: str
    original: ir.Model
    digest: str
    calibrate: Samples | None = None
    validate: Samples | None = None
    ledger: list[StepRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class State:
    """A model between two steps, loaded from the store only when somebody looks at it."""

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
