"""Train the scales, biases and weights of a whole quantized model to compute what the float model does.

Quantization-aware training by distillation, without labels: the float original is the teacher, and the loss
is the mean squared error of each output relative to its power, every output counting alike. All scales of
activations are learned at once (Esser et al., Learned Step Size Quantization, ICLR 2020), which no local
measure of a range can do, as how much a value may be cut off depends on all that follows; biases, and
weights on their grids, may be trained with them, straight through the rounding. Where block after block is
trained (``reconstruct``) inner values are the target; here the outputs alone, so it does not matter what
was done to the weights before, and it comes behind every other step that recovers accuracy.

Scales that are equal stay equal, as a runtime may tie them, those that it fixes stay, as do those of
what takes few levels (an image's pixels), whose errors jump with the scale; and none falls below half of
what it was, so that biases which fitted into integers still fit. Zero points stay.

The number of iterations is fixed before the start, from an estimate of their cost, so a run ends at the
same place on every machine. At several points of the way the model is judged on validation samples; the
best of them is kept if it gains at least 0.1 dB, else the model is left as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.errors import ModelError, RuntimeFailure, UserError
from edgeopt.graph.autograd import Segment, to_numpy
from edgeopt.graph.autograd.operators import require_torch
from edgeopt.graph.change import Change, Rewrite
from edgeopt.graph.names import name_nodes
from edgeopt.graph.quantization import read as read_quantization
from edgeopt.graph.quantization import strip
from edgeopt.passes._blocks import Block, varying
from edgeopt.passes._calibration import WORTH
from edgeopt.passes._lessons import Lessons, rows_of
from edgeopt.passes._student import Rates, Student
from edgeopt.passes._training import (
    Trainable,
    find_trainable,
    scale_groups,
    set_initializers,
)
from edgeopt.passes._training_calls import (
    PASSES,
    draw_order,
    one_thread,
)
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Samples, Stage

LEVELS = 1024
"""The scale of what takes no more levels stays: learned scales suppose errors of rounding that are spread."""

JUDGING, LEAST_JUDGING = 0.06, 16
"""The share of the time that one judgement may take, and the samples that it has at least."""

CHECKPOINTS = 5
"""So often on the way the model is judged."""

ROUNDS = 8
"""So often each sample is trained on at most; small sets are learned by heart soon."""

LEAST_ITERATIONS = 30
"""Of few samples this many are made all the same."""

WORTHWHILE = 60
"""Where time allows fewer, they would be worth less than they cost."""


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
    scales: float = 0.003
    biases: float = 0.003
    weights: float = 0.001

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
        if context.teacher is None:
            original = model.clone()
            strip(original)
        else:
            original = context.teacher
        lessons = Lessons.of(model, data, context, self.samples)
        size = self.batch if lessons.joins else max(1, self.batch // lessons.largest)
        each = lessons.seconds(model, size)
        most = max(LEAST_ITERATIONS, ROUNDS * len(lessons.calls) // size)
        count = int(min(self.seconds / max(each, 1e-9), self.iterations, most))
        if self.seconds < each * min(WORTHWHILE, self.iterations, most):
            return Change(
                summary=f"left as it is: {self.seconds:g} s are {count} iterations, too few to learn"
            )
        run = each / (PASSES * self.batch)
        judge = lessons.taught(original, count * size, max(LEAST_JUDGING, int(JUDGING * self.seconds / run)))
        few = _of_few_levels(
            model, trainable, next(iter(lessons.batch(range(min(size, len(lessons.calls))))))[0]
        )
        trainable.scales = [group for group in trainable.scales if not few.intersection(group)]
        if not trainable.names:
            return Change(summary="nothing that could be trained")
        before = judge.decibels(model)
        student = Student.of(model, trainable, Rates(self.scales, self.biases, self.weights))
        order = draw_order(np.random.default_rng(context.seed), count * size, len(lessons.calls))[
            : count * size
        ]
        best, kept, reached = before, None, []
        for arrays in _learned(student, lessons, order, count, context):
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
                "samples": sum(rows_of(call) for call in lessons.calls),
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


def _learned(
    student: Student, lessons: Lessons, order: np.ndarray, count: int, context: Context
) -> Iterator[dict[str, np.ndarray]]:
    """Trains, and at several points of the way yields what has been learned."""
    optimizer = require_torch().optim.Adam(student.groups)
    marks = {-(-count * (index + 1) // CHECKPOINTS) for index in range(CHECKPOINTS)}
    size = len(order) // count
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
            yield student.arrays()


def _listed(trainable: Trainable) -> str:
    parts = (("scale", trainable.scales), ("bias", trainable.biases), ("weight", trainable.weights))
    plurals = {"scale": "scales", "bias": "biases", "weight": "weights"}
    named = [f"{len(found)} {name if len(found) == 1 else plurals[name]}" for name, found in parts if found]
    return named[0] if len(named) == 1 else ", ".join(named[:-1]) + " and " + named[-1]


def _of_few_levels(model: ir.Model, trainable: Trainable, feeds: Mapping[str, np.ndarray]) -> set[str]:
    """Finds the scales of what takes few levels, as an image's 8-bit pixels do."""
    torch = require_torch()
    learned = {name for group in trainable.scales for name in group}
    readers = {
        node.inputs[0].name or "": node.inputs[1].name or ""
        for node in varying(model.graph)
        if node.op_type == "QuantizeLinear" and node.inputs[0] is not None and node.inputs[1] is not None
    }
    readers = {name: scale for name, scale in readers.items() if scale in learned}
    inner = [name for name in readers if name not in feeds]
    with torch.no_grad():
        made = Segment(model, None, inner, quantized=False)(feeds)
    found = set()
    for name, scale in readers.items():
        numbers = to_numpy(made[name]) if name in made else feeds[name]
        levels = np.unique(numbers).size
        if levels <= LEVELS and levels * 4 < numbers.size:
            found.add(scale)
    return found
