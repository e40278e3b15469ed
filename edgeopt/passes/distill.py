"""Train the scales, biases and weights of a whole quantized model to compute what the float model does.

Quantization-aware training by distillation, without labels: the float original is the teacher, and the loss
is the mean squared error of each output relative to its power, every output counting alike. All scales of
activations are learned at once (Esser et al., Learned Step Size Quantization, ICLR 2020), which no local
measure of a range can do, as how much a value may be cut off depends on all that follows; biases, and
weights on their grids, may be trained with them, straight through the rounding. Where block after block is
trained (``reconstruct``) inner values are the target; here the outputs alone, so it does not matter what
was done to the weights before, and it comes behind every other step that recovers accuracy.

Scales that are equal stay equal, as a runtime may tie them, those that it fixes stay, and none falls below
half of what it was, so that biases which fitted into integers still fit. Zero points stay.

The number of iterations is fixed before the start, from an estimate of their cost, so a run ends at the
same place on every machine. At several points of the way the model is judged on validation samples; the
best of them is kept if it gains at least 0.1 dB, else the model is left as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.errors import ModelError, RuntimeFailure, UserError
from edgeopt.graph.autograd import Segment, to_numpy
from edgeopt.graph.autograd.operators import Tensor, require_torch
from edgeopt.graph.change import Change, Rewrite
from edgeopt.graph.execute import Executor
from edgeopt.graph.names import name_nodes
from edgeopt.graph.quantization import read as read_quantization
from edgeopt.graph.quantization import strip
from edgeopt.passes._blocks import Block, varying
from edgeopt.passes._calibration import WORTH, Calls
from edgeopt.passes._judge import Judge
from edgeopt.passes._learned_weights import Moved
from edgeopt.passes._training import (
    Trainable,
    constant,
    find_trainable,
    output_units,
    scale_groups,
    set_initializers,
    step_of,
)
from edgeopt.passes._training_calls import (
    draw_order,
    input_shapes,
    joined,
    one_thread,
    read_evenly,
    run_each,
    seconds_of,
)
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Samples, Stage

HELD_BYTES = 2**29
"""Inputs and outputs of all training samples together stay below this; fewer samples are used then."""

BYTES_PER_RUN = 2**28
"""Activations of samples that run together stay below this; a batch is run in parts then."""

OVERALL = 256
"""Validation samples that judge at most."""

CHECKPOINTS = 5
"""So often on the way the model is judged."""

LEAST_ITERATIONS, MOST_ITERATIONS = 10, 20000

HELD = 4
"""Where validation and calibration are the same few calls, every so many judges, and is not trained on."""


@dataclass(frozen=True)
class Distill(Pass):
    """Train scales, biases and weights of the whole quantized model against the float model's outputs.

    Attributes:
        seconds: About how many CPU seconds the training may take; the number of iterations follows.
        iterations: At most so many iterations.
        batch: Samples of an iteration.
        samples: At most this many calibration samples are used.
        scales: The learning rate of activations' scales, relative; 0 leaves them.
        biases: The learning rate of biases, in quantization steps of what they are added to; 0 leaves them.
        weights: The learning rate of weights, in quantization steps; 0 leaves them.
    """

    name: ClassVar[str] = "distill"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "approximate"

    seconds: float = 120.0
    iterations: int = 2000
    batch: int = 8
    samples: int = 1024
    scales: float = 0.005
    biases: float = 0.01
    weights: float = 0.003

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.iterations < 1 or self.batch < 1 or self.samples < 1:
            raise UserError("distill needs time, iterations, a batch and samples, all above zero")
        if min(self.scales, self.biases, self.weights) < 0 or not self.scales + self.biases + self.weights:
            raise UserError("distill needs learning rates of at least 0, and one above it")

    @property
    def reads(self) -> frozenset[Facet]:
        """Rules, calibration and validation samples, and the float original."""
        return frozenset({"rules", "calibration", "validation", "teacher"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Trains the model.

        Raises:
            MissingExtra: torch is not installed.
        """
        data = context.calibration
        if data is None or len(data) == 0:
            return Change(summary="no calibration data to train on")
        if not read_quantization(model):
            return Change(summary="no quantized values to train")
        torch = require_torch()
        name_nodes(model)
        trainable = self._trainable(model, context)
        if not trainable.names:
            return Change(summary="nothing that could be trained")
        if not context.allow(self.name, "model"):
            return Change(summary="left as it is")
        try:
            with one_thread(torch):
                return self._trained(model, trainable, data, context)
        except ModelError as refusal:
            return Change(summary="left as it is", notes=[f"training is not possible: {refusal.message}"])
        except RuntimeFailure as failure:
            return Change(summary="left as it is", notes=[f"training is not possible: {failure.message}"])

    def _trainable(self, model: ir.Model, context: Context) -> Trainable:
        """What of the model is to be trained."""
        groups = scale_groups(model, None if context.rules is None else context.rules.quantization)
        everything = Block(tuple(varying(model.graph)), (), ())
        found = find_trainable(model.graph, everything, set(), groups)
        return Trainable(
            found.weights if self.weights else [],
            found.biases if self.biases else [],
            found.scales if self.scales else [],
        )

    def _trained(self, model: ir.Model, trainable: Trainable, data: Samples, context: Context) -> Change:
        torch = require_torch()
        if context.teacher is None:
            original = model.clone()
            strip(original)
        else:
            original = context.teacher
        lessons, judge = _read(model, original, data, context, self)
        before = judge.decibels(model)
        student = _Student.of(model, trainable, self)
        each = seconds_of(model, varying(model.graph), lessons.shapes, lessons.samples_of(self.batch))
        most = min(self.iterations, MOST_ITERATIONS)
        count = int(np.clip(self.seconds / max(each, 1e-9), min(LEAST_ITERATIONS, most), most))
        size = self.batch if lessons.joins else max(1, self.batch // lessons.largest)
        order = draw_order(np.random.default_rng(context.seed), count * size, len(lessons.calls))
        optimizer = torch.optim.Adam(student.groups)
        reached: list[float] = []
        best, kept = before, None
        marks = {-(-count * (index + 1) // CHECKPOINTS) for index in range(CHECKPOINTS)}
        for step in context.progress(range(count), "distillation", count):
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * 0.5 * (1 + np.cos(np.pi * step / count))
            optimizer.zero_grad(set_to_none=True)
            for feeds, wanted, share in lessons.batch(order[step * size : (step + 1) * size]):
                loss = share * student.loss(feeds, wanted, lessons.power)
                loss.backward()
            optimizer.step()
            student.bound()
            if step + 1 in marks:
                arrays = student.arrays()
                candidate = model.clone()
                set_initializers(candidate, arrays)
                reached.append(judge.decibels(candidate))
                if reached[-1] > best:
                    best, kept = reached[-1], arrays
        change = Change(
            details={
                "fidelity": round(before, 2),
                "fidelity_after": round(best, 2),
                "checkpoints": [round(value, 2) for value in reached],
                "iterations": count,
                "samples": sum(_rows(call) for call in lessons.calls),
            }
        )
        if kept is None or best < before + WORTH:
            change.summary = f"left as it is: {before:.1f} dB became at best {max(reached):.1f}"
            change.details["fidelity_after"] = change.details["fidelity"]
            return change
        set_initializers(model, kept)
        change.rewrites.append(Rewrite(self.name, "model", ()))
        change.summary = f"{_listed(trainable)} trained, {before:.1f} -> {best:.1f} dB"
        return change


def _listed(trainable: Trainable) -> str:
    parts = (("scale", trainable.scales), ("bias", trainable.biases), ("weight", trainable.weights))
    plurals = {"scale": "scales", "bias": "biases", "weight": "weights"}
    named = [f"{len(found)} {name if len(found) == 1 else plurals[name]}" for name, found in parts if found]
    return named[0] if len(named) == 1 else ", ".join(named[:-1]) + " and " + named[-1]


def _rows(call: Mapping[str, np.ndarray]) -> int:
    return max((array.shape[0] for array in call.values() if array.ndim), default=1)


@dataclass(slots=True)
class _Lessons:
    """What the model is taught: inputs, and the original's outputs.

    Attributes:
        calls: The inputs of each call.
        wanted: The original's outputs of each call.
        power: The mean square of every output.
        joins: Whether calls may be joined to one, and how many at a time, 0 for none.
        shapes: Shapes of the inputs of the first call.
    """

    calls: list[dict[str, np.ndarray]]
    wanted: list[dict[str, np.ndarray]]
    power: dict[str, float]
    joins: int
    shapes: dict[str, tuple[int, ...]]

    @property
    def largest(self) -> int:
        """Samples of the largest call."""
        return max(_rows(call) for call in self.calls)

    def samples_of(self, batch: int) -> float:
        """How many times the first call's cost an iteration has."""
        return batch / max(_rows(self.calls[0]), 1) if self.joins else max(1, batch // self.largest)

    def batch(
        self, indices: Sequence[int] | np.ndarray
    ) -> Iterable[tuple[dict[str, np.ndarray], dict[str, np.ndarray], float]]:
        """Returns calls, joined where possible, with the outputs wanted and their share in the loss."""
        size = max(self.joins, 1)
        for start in range(0, len(indices), size):
            chosen = [int(index) for index in indices[start : start + size]]
            share = len(chosen) / len(indices)
            if len(chosen) == 1:
                yield self.calls[chosen[0]], self.wanted[chosen[0]], share
            else:
                feeds = joined([self.calls[index] for index in chosen])
                yield feeds, joined([self.wanted[index] for index in chosen]), share


def _read(
    model: ir.Model, original: ir.Model, data: Samples, context: Context, options: Distill
) -> tuple[_Lessons, Judge]:
    """Reads the samples and runs the original on them; parts from them those that judge."""
    names = [value.name or "" for value in model.graph.outputs]
    calls, joins = read_evenly(model, data, options.samples, HELD_BYTES, BYTES_PER_RUN)
    validation = context.validation
    if validation is not None and len(validation) and validation.digest != data.digest:
        judge = Judge.of(original, Calls.fitting(model, validation, OVERALL).for_trials(model, OVERALL))
    else:
        held = [call for index, call in enumerate(calls) if index % HELD == HELD - 1]
        judge = Judge.of(original, held or calls)
        calls = [call for index, call in enumerate(calls) if not held or index % HELD != HELD - 1]
    with Executor(original, optimize=True) as executor:
        wanted = [run_each(executor, call, names) for call in calls]
    wanted = [{name: array for name, array in one.items() if array.dtype.kind == "f"} for one in wanted]
    power = {
        name: max(
            sum(float(np.square(one[name], dtype=np.float64).sum()) for one in wanted)
            / max(sum(one[name].size for one in wanted), 1),
            1e-12,
        )
        for name in wanted[0]
    }
    if not power:
        raise ModelError("no output is in floating point")
    return _Lessons(calls, wanted, power, joins, input_shapes(calls[0])), judge


@dataclass(slots=True)
class _Student:
    """The model under training.

    Attributes:
        segment: The quantized model.
        trainable: What is trained.
        start: The numbers before, by names of initializers.
        weights: The weights.
        units: What a move of 1 of a bias is.
        moves: Per bias or group of scales how far it was moved, in its unit.
        groups: What the optimizer gets.
    """

    segment: Segment
    trainable: Trainable
    start: dict[str, Tensor]
    weights: Moved
    units: dict[str, float]
    moves: dict[str, Tensor]
    groups: list[dict[str, Any]]

    @classmethod
    def of(cls, model: ir.Model, trainable: Trainable, options: Distill) -> _Student:
        torch = require_torch()
        names = [value.name or "" for value in model.graph.outputs]
        segment = Segment(model, None, names, trainable.names)
        start = {name: constant(model, name, segment.device) for name in trainable.names}
        steps = {weight.name: step_of(model, weight, segment.device) for weight in trainable.weights}
        weights = Moved(trainable.weights, start, steps, options.weights)
        scales = [group[0] for group in trainable.scales]
        moves = {name: torch.zeros_like(start[name]) for name in (*trainable.biases, *scales)}
        parts = (
            (weights.tensors, options.weights),
            ([moves[name] for name in trainable.biases], options.biases),
            ([moves[name] for name in scales], options.scales),
        )
        for tensors, _ in parts:
            for tensor in tensors:
                tensor.requires_grad_()
        groups = [{"params": tensors, "lr": rate, "rate": rate} for tensors, rate in parts if tensors]
        units = output_units(model, trainable.biases)
        return cls(segment, trainable, start, weights, units, moves, groups)

    def others(self) -> dict[str, Tensor]:
        """Biases and scales as they stand."""
        torch = require_torch()
        current = {
            name: self.start[name] + self.units[name] * self.moves[name] for name in self.trainable.biases
        }
        for group in self.trainable.scales:
            scale = self.start[group[0]] * torch.exp(self.moves[group[0]])
            current.update({name: scale.reshape(self.start[name].shape) for name in group})
        return current

    def loss(
        self, feeds: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], power: Mapping[str, float]
    ) -> Tensor:
        """The mean squared error of every output relative to its power, on average."""
        got = self.segment(feeds, {**self.weights.values(), **self.others()})
        targets = self.segment.placed(wanted)
        errors = [(got[name] - targets[name]).square().mean() / power[name] for name in power]
        return sum(errors) / len(errors)

    def bound(self) -> None:
        """Keeps scales between half and twice what they were."""
        torch = require_torch()
        with torch.no_grad():
            for group in self.trainable.scales:
                self.moves[group[0]].clamp_(-np.log(2.0), np.log(2.0))

    def arrays(self) -> dict[str, np.ndarray]:
        """The numbers as they stand, weights on their grids."""
        torch = require_torch()
        with torch.no_grad():
            final = {**self.weights.final(), **self.others()}
        return {name: to_numpy(tensor).astype(np.float32) for name, tensor in final.items()}
