"""Train a quantized model's weights, biases and ranges, block by block, to compute what it does in float.

Each block (see ``_blocks``) is trained on calibration samples, without labels, to make from the quantized
model's values what the float model makes of its own (block reconstruction: Li et al., BRECQ, ICLR 2021;
see ``_training`` for what moves and how). A block's result is kept where the whole model becomes more
faithful on the validation samples, else what was there before. All changes are written back as
initializers: weights stay float, on their grids.

The float model is the model itself with its quantizers passing values on, so inner values compare even
where channels were rescaled before; the outputs of the original judge. So this pass comes right behind the
quantization: once biases were corrected or weights trained, that float form is not the original's any more,
and the model is left as it is. With ``start: gptq`` it first solves for the weights in closed form itself
(see ``gptq``) and trains from there. How often each block is trained
is fixed before the start from an estimate of its cost, so a run ends at the same place on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from edgeopt import fidelity
from edgeopt.errors import ModelError, UserError
from edgeopt.graph.autograd import Segment, to_numpy
from edgeopt.graph.autograd.operators import Tensor, require_torch
from edgeopt.graph.autograd.running import read
from edgeopt.graph.change import Change, Rewrite, Skipped
from edgeopt.graph.cost import cost
from edgeopt.graph.execute import Executor
from edgeopt.graph.names import name_nodes, original_names
from edgeopt.graph.quantization import read as read_quantization
from edgeopt.passes._blocks import Block, find_blocks
from edgeopt.passes._judge import estranged
from edgeopt.passes._training import Schedule, find_trainable, scale_groups, set_initializers, train
from edgeopt.passes._training_calls import (
    draw_order,
    input_shapes,
    one_thread,
    read_calls,
    run_each,
    seconds_of,
)
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Stage
from edgeopt.passes.gptq import Gptq

BYTES = 2**31
"""The activations of all samples together stay below this, estimated; fewer samples are used then."""

MOST_ITERATIONS = 400
LEAST_ITERATIONS = 20


@dataclass(frozen=True)
class Reconstruct(Pass):
    """Train weights, biases and ranges of a quantized model block by block.

    Attributes:
        seconds: About how many CPU seconds the training may take; the number of iterations follows.
        iterations: At most so many iterations a block.
        batch: Samples of an iteration.
        samples: At most this many calibration samples are used.
        rates: Learning rates of weights, in quantization steps; each is tried on every block, and the best
            kept; 0 leaves weights as they are.
        biases: The learning rate of biases; 0 leaves them.
        scales: The learning rate of activations' scales, relative; 0 leaves them.
        layers: Products in a block at least, if a plain chain gives fewer.
        start: ``gptq`` to train from what that pass makes, empty to train from rounded weights.
        rounding: ``straight-through`` to move weights over their grid (AdaQuant), ``adaptive`` to choose for
            each which way it is rounded (AdaRound), which needs weights that are not on their grid yet, so
            no ``start``.
    """

    name: ClassVar[str] = "reconstruct"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "approximate"

    seconds: float = 120.0
    iterations: int = 300
    batch: int = 8
    samples: int = 256
    rates: tuple[float, ...] = (0.03, 0.003)
    biases: float = 0.05
    scales: float = 0.005
    layers: int = 1
    start: Literal["", "gptq"] = ""
    rounding: Literal["straight-through", "adaptive"] = "straight-through"

    def __post_init__(self) -> None:
        if self.start and self.rounding == "adaptive":
            raise UserError("reconstruct cannot choose how to round weights that gptq has rounded already")
        if self.seconds <= 0 or self.iterations < 1 or self.batch < 1 or self.samples < 1 or not self.rates:
            raise UserError("reconstruct needs time, iterations, samples and a rate, all above zero")

    @property
    def _tried(self) -> tuple[float, ...]:
        """The rates that are tried; choices have one of their own."""
        return self.rates if self.rounding == "straight-through" else (0.0,)

    @property
    def reads(self) -> frozenset[Facet]:
        """Rules, calibration and validation samples, and the float original."""
        return frozenset({"rules", "calibration", "validation", "teacher"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Trains every block in turn.

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
        blocks = find_blocks(model.graph, least=self.layers)
        groups = scale_groups(model, None if context.rules is None else context.rules.quantization)
        try:
            trial = _Trial.of(model, context, self)
        except ModelError as refusal:
            return Change(summary="left as it is", notes=[f"training is not possible: {refusal.message}"])
        if reason := estranged(trial.twin()):
            return Change(summary=f"left as it is: {reason}")
        change = Change()
        before = best = trial.fidelity()
        if self.start:
            change.rewrites += Gptq().apply(model, context).rewrites
            best = trial.fidelity()
        with one_thread(torch):
            taken: set[str] = set() if self.scales else {name for group in groups.values() for name in group}
            counts = _iterations(model, blocks, trial.shapes, trial.batch, self)
            kept = 0
            generator = np.random.default_rng(context.seed)
            for block, count in context.progress(
                list(zip(blocks, counts, strict=True)), "reconstruction", len(blocks)
            ):
                order = draw_order(generator, count, len(trial.calls))
                trainable = find_trainable(model.graph, block, taken, groups)
                site = _site(block)
                if trainable.weights and context.allow(self.name, site):
                    schedules = [
                        Schedule(count, rate, self.biases, self.scales, self.rounding == "adaptive")
                        for rate in self._tried
                    ]
                    batches = trial.batches(block)
                    old = {name: _array(model, name) for name in trainable.names}
                    trained = [
                        train(model, block, trainable, batches, schedule, order) for schedule in schedules
                    ]
                    after = _best(trial, trained)
                    if after > best:
                        change.rewrites.append(
                            Rewrite(self.name, site, tuple(original_names(block.layers[0])))
                        )
                        kept, best = kept + 1, after
                    else:
                        set_initializers(model, old)
                        reason = f"{best:.2f} dB became {after:.2f} on the validation samples"
                        change.skipped.append(Skipped(self.name, site, reason))
                trial.advance(block)
        change.summary = f"{kept} of {len(blocks)} blocks trained, {before:.1f} -> {best:.1f} dB"
        change.details = {
            "fidelity": round(before, 2),
            "fidelity_after": round(best, 2),
            "iterations": counts,
            "batch": trial.batch,
            "samples": trial.batch * len(trial.calls),
        }
        return change


def _best(trial: _Trial, candidates: Sequence[Mapping[str, np.ndarray]]) -> float:
    """Puts the candidate in place that makes the model most faithful; returns the fidelity it gives."""
    judged = []
    for arrays in candidates:
        set_initializers(trial.model, arrays)
        judged.append(trial.fidelity())
    set_initializers(trial.model, candidates[int(np.argmax(judged))])
    return max(judged)


def _site(block: Block) -> str:
    layers = block.layers or list(block.nodes)
    return (original_names(layers[0]) or (layers[0].name or "",))[0]


def _array(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return np.array(tensor.numpy())


def _iterations(
    model: ir.Model,
    blocks: Sequence[Block],
    shapes: Mapping[str, Sequence[int]],
    batch: int,
    options: Reconstruct,
) -> list[int]:
    """Shares out the time over the blocks: as many iterations for each, within limits."""
    seconds = [seconds_of(model, block.nodes, shapes, batch) for block in blocks]
    whole = max(sum(seconds), 1e-9)
    each = int(
        np.clip(
            options.seconds / (whole * len(options._tried)),
            LEAST_ITERATIONS,
            min(options.iterations, MOST_ITERATIONS),
        )
    )
    return [each] * len(blocks)


@dataclass(slots=True)
class _Trial:
    """The samples, as the values that flow at the place reached: quantized, and in float.

    Attributes:
        model: The model that is trained.
        exact_model: The same as it was before any training, whose float form is the target.
        calls: Per calibration call its quantized values.
        exact: Per calibration call its float values.
        judging: Per validation call its quantized values.
        wanted: Per validation call the original's outputs.
        shapes: Shapes of the inputs of one sample.
        batch: Samples of one call.
        reached: How many blocks have been passed.
    """

    model: ir.Model
    exact_model: ir.Model
    calls: list[dict[str, Tensor]]
    exact: list[dict[str, Tensor]]
    judging: list[dict[str, Tensor]]
    wanted: list[dict[str, np.ndarray]]
    shapes: dict[str, tuple[int, ...]]
    batch: int
    passed: set[ir.Node] = field(default_factory=set)
    _next: list[dict[str, Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, model: ir.Model, context: Context, options: Reconstruct) -> _Trial:
        """Reads the samples, several to a call where the model computes each by itself."""
        data = context.calibration
        assert data is not None
        validation = (
            context.validation if context.validation is not None and len(context.validation) else data
        )
        first = next(data.feeds())
        size = max(sum(node.written_bytes for node in cost(model, input_shapes(first)).nodes), 1)
        count = int(np.clip(BYTES // size, 2 * options.batch, options.samples))
        calls = read_calls(model, data, count, options.batch)
        judging = read_calls(model, validation, int(np.clip(BYTES // (4 * size), 8, 64)), options.batch)
        teacher = context.teacher
        with Executor(model if teacher is None else teacher, optimize=True) as executor:
            names = [value.name or "" for value in model.graph.outputs]
            if teacher is None or not set(names) <= set(executor.outputs):
                float_model = Segment(model, quantized=False)
                wanted = [
                    {name: to_numpy(tensor) for name, tensor in float_model(feeds).items()}
                    for feeds in judging
                ]
            else:
                wanted = [run_each(executor, feeds, names) for feeds in judging]
        place = Segment(model)._place
        from edgeopt.graph.autograd.dtypes import to_torch

        def placed(feeds: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
            return {name: place(to_torch(array, name)) for name, array in feeds.items()}

        batch = max(array.shape[0] for array in calls[0].values() if array.ndim)
        return cls(
            model,
            model.clone(),
            [placed(feeds) for feeds in calls],
            [placed(feeds) for feeds in calls],
            [placed(feeds) for feeds in judging],
            wanted,
            input_shapes(first),
            batch,
        )

    def batches(self, block: Block) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Returns per call the block's inputs in the quantized model and its outputs in float."""
        torch = require_torch()
        segment = Segment(self.exact_model, block.inputs, block.outputs, quantized=False)
        with torch.no_grad():
            self._next = [segment(values) for values in self.exact]
        return [
            ({name: values[name] for name in block.inputs}, outputs)
            for values, outputs in zip(self.calls, self._next, strict=True)
        ]

    def twin(self) -> float:
        """Returns the fidelity of the model without quantization to the original, on one call."""
        torch = require_torch()
        result = fidelity.Fidelity()
        with torch.no_grad():
            got = Segment(self.model, quantized=False)(self.judging[0])
        result.add(self.wanted[0], {name: to_numpy(tensor) for name, tensor in got.items()})
        return result.balanced

    def fidelity(self) -> float:
        """Runs the rest of the model, from the place reached, on the validation samples."""
        torch = require_torch()
        names = [value.name or "" for value in self.model.graph.outputs]
        segment = Segment(self.model, list(self.judging[0]), names)
        result = fidelity.Fidelity()
        with torch.no_grad():
            for values, wanted in zip(self.judging, self.wanted, strict=True):
                got = {name: to_numpy(tensor) for name, tensor in segment(values).items()}
                result.add(wanted, got)
        return result.balanced

    def advance(self, block: Block) -> None:
        """Moves all values behind the block, and forgets those that nothing reads any more."""
        torch = require_torch()
        self.passed.update(block.nodes)
        with torch.no_grad():
            if not self._next:
                exact = Segment(self.exact_model, block.inputs, block.outputs, quantized=False)
                self._next = [exact(values) for values in self.exact]
            segment = Segment(self.model, block.inputs, block.outputs)
            for values, outputs in zip(self.exact, self._next, strict=True):
                values.update(outputs)
            for values in (*self.calls, *self.judging):
                values.update(segment(values))
        self._next = []
        needed = self._needed()
        for values in (*self.calls, *self.exact, *self.judging):
            for name in [name for name in values if name not in needed]:
                del values[name]

    def _needed(self) -> set[str]:
        needed = {value.name or "" for value in self.model.graph.outputs}
        for node in self.model.graph:
            if node not in self.passed:
                needed.update(value.name or "" for value in read(node))
        return needed
