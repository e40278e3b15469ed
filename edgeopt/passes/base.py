"""The contract of a pass, and what a pass may see.

A pass is a frozen dataclass whose fields are its options. ``apply`` edits the model it is given in
place (the corridor cloned it first) and returns a ``Change``; a tensor is replaced, never written
into. A pass declares its ``stage``, what it ``keeps`` and which facets of the context it ``reads``;
a facet that it did not declare cannot be read, so a step's key is complete.

A *plan* chooses passes: ``next`` names the pass to run now, or ``None`` at the end. The corridor runs
each as a step of its own and records it in the ledger.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import onnx_ir as ir

from edgeopt.errors import EdgeoptError, UserError, nearest
from edgeopt.graph.change import Change

if TYPE_CHECKING:
    from edgeopt.budget import Budget
    from edgeopt.platform import RuntimeVersion

Stage = Literal["structure", "prune", "quantize", "schedule"]
Keeps = Literal["exact", "approximate"]
Facet = Literal["rules", "calibration", "validation", "teacher", "predictor", "budget"]
Verify = Literal["fast", "full", "off"]

STAGES: tuple[Stage, ...] = ("structure", "prune", "quantize", "schedule")
FACETS: tuple[Facet, ...] = ("rules", "calibration", "validation", "teacher", "predictor", "budget")

Item = TypeVar("Item")


class Samples(Protocol):
    """Data as a pass sees them: model calls, one after another, never evaluation data."""

    @property
    def digest(self) -> str:
        """SHA-256 of the samples, in order."""
        ...

    def __len__(self) -> int:
        """The number of samples."""
        ...

    def feeds(self, batch: int = 1) -> Iterator[dict[str, np.ndarray]]:
        """Streams the inputs of model calls, up to ``batch`` samples a call where the model can."""
        ...

    @property
    def labels(self) -> np.ndarray | None:
        """One label a sample, or ``None``."""
        ...


@runtime_checkable
class Divisible(Protocol):
    """Samples that can be read in part."""

    def limited(self, limit: int | None) -> Samples:
        """Returns at most ``limit`` of the samples, evenly spread over all of them."""
        ...


class Predictor(Protocol):
    """The latency model of a platform."""

    @property
    def digest(self) -> str:
        """SHA-256 of everything the prediction depends on."""
        ...

    def latency(self, model: ir.Model) -> float:
        """Predicts the median latency of one call, in seconds."""
        ...


class UndeclaredFacet(EdgeoptError):
    """A pass read a facet of the context that it had not declared."""


@dataclass(slots=True)
class Facets:
    """Everything a context can serve. What is absent, as data may be, is ``None``."""

    rules: RuntimeVersion | None = None
    calibration: Samples | None = None
    validation: Samples | None = None
    teacher: ir.Model | None = None
    predictor: Predictor | None = None
    budget: Sequence[Budget] | None = None


@dataclass
class Context:
    """What a pass may see: the facets it declared, and its surroundings.

    Logging, progress, the scratch folder and cancelling must not change a pass's result.

    Attributes:
        facets: All facets there are.
        reads: The facets that may be read; ``None`` for all (tests and interactive use).
        seed: The seed of everything random.
        verify: How rewrites are proved.
        limit: How many rewrites ``allow`` lets through; ``None`` for all.
        show_progress: Wraps an iterable with a progress bar.
    """

    facets: Facets = field(default_factory=Facets)
    reads: frozenset[Facet] | None = None
    seed: int = 0
    verify: Verify = "fast"
    limit: int | None = None
    show_progress: Callable[[Iterable[Any], str, int | None], Iterable[Any]] | None = None
    allowed: int = 0

    log: ClassVar[logging.Logger] = logging.getLogger("edgeopt")

    def allow(self, rule: str, site: str) -> bool:
        """Asks whether one rewrite may be made; every rewrite asks first, in a fixed order.

        The counter behind it lets bisecting find the rewrite that broke a model (as LLVM's
        opt-bisect-limit does).
        """
        self.allowed += 1
        permitted = self.limit is None or self.allowed <= self.limit
        self.log.debug("%s %d: %s at %s", "do" if permitted else "skip", self.allowed, rule, site)
        return permitted

    def progress(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterable[Item]:
        """Passes items through, showing a progress bar where somebody watches."""
        return items if self.show_progress is None else self.show_progress(items, label, total)

    @cached_property
    def scratch(self) -> Path:
        """A folder for temporary files, deleted with the context."""
        self._scratch = tempfile.TemporaryDirectory(prefix="edgeopt-")
        return Path(self._scratch.name)

    @property
    def rules(self) -> RuntimeVersion | None:
        """What the platform's runtime can do and demands; ``None`` without a device."""
        self._declared("rules")
        return self.facets.rules

    @property
    def calibration(self) -> Samples | None:
        """The calibration samples."""
        self._declared("calibration")
        return self.facets.calibration

    @property
    def validation(self) -> Samples | None:
        """The validation samples, which decide between alternatives."""
        self._declared("validation")
        return self.facets.validation

    @property
    def teacher(self) -> ir.Model | None:
        """The float original."""
        self._declared("teacher")
        return self.facets.teacher

    @property
    def predictor(self) -> Predictor | None:
        """The latency model of the platform."""
        self._declared("predictor")
        return self.facets.predictor

    @property
    def budget(self) -> Sequence[Budget] | None:
        """The user's budgets."""
        self._declared("budget")
        return self.facets.budget

    def _declared(self, facet: Facet) -> None:
        if self.reads is not None and facet not in self.reads:
            raise UndeclaredFacet(f"the pass reads the facet {facet!r}, which it does not declare")


@dataclass(frozen=True)
class Options:
    """What passes and plans share: a name, a version, and fields that are options."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    stage: ClassVar[Stage] = "structure"
    keeps: ClassVar[Keeps] = "exact"

    @property
    def reads(self) -> frozenset[Facet]:
        """The facets that the pass reads with these options."""
        return frozenset()

    def options(self) -> dict[str, Any]:
        """Returns the options as plain data, in the order of the fields."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Options:
        """Makes the pass from plain data, as a recipe gives them.

        Raises:
            UserError: An option is unknown, or its value is of the wrong type.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in options:
            if key not in known:
                raise UserError(f"the pass {cls.name} has no option {key!r}", nearest=nearest(key, known))
        if not options:
            return cls()
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(cls).validate_python(dict(options))
        except ValidationError as failure:
            first = failure.errors()[0]
            option = ".".join(str(part) for part in first["loc"])
            message = first["msg"][0].lower() + first["msg"][1:]
            raise UserError(
                f"the option {option} of the pass {cls.name} is {first['input']!r}: {message}"
            ) from None


@dataclass(frozen=True)
class Pass(Options, ABC):
    """One transformation of a model."""

    @abstractmethod
    def apply(self, model: ir.Model, context: Context) -> Change:
        """Edits the model in place and returns what it did."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A step of the ledger, as a plan sees it: the pass that ran and what came of it.

    Attributes:
        step: The pass.
        change: What it did.
        model: The model after it.
        cpu_seconds: Processor time when it was computed, also where it now came from the store, so that a
            resumed plan ends where an uninterrupted one does.
    """

    step: Pass
    change: Change
    model: ir.Model
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Plan(Options, ABC):
    """Chooses the passes to run, one after another."""

    @abstractmethod
    def next(self, model: ir.Model, context: Context, ledger: Sequence[Entry]) -> Pass | None:
        """Names the next pass, or ``None`` at the end.

        Args:
            model: The model as it stands.
            context: As for a pass.
            ledger: The steps that this plan has named so far.
        """
