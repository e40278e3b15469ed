"""Round weights so that what each layer makes of quantized inputs is what the float model makes of its own.

Layer after layer, weights and biases of least squared error are solved for in closed form, against the
float model's output and on the inputs that the layers before leave, and then rounded column by column with
the errors handed on (see ``_least_squares``). So errors of earlier layers are made up for as well, as
training layer by layer does (AdaQuant: Hubara et al., ICML 2021), at the price of two runs over the data
and without gradients. The output that a layer's sum with a shortcut makes counts, so that the errors of
the shortcut are made up for too.

Each layer keeps what leaves the least error on calls that took no part in solving, per output channel;
each stretch of layers is kept where the model becomes more faithful on the validation samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt import units
from edgeopt.errors import RuntimeFailure, UserError
from edgeopt.graph.change import Change, Rewrite, Skipped
from edgeopt.graph.names import name_nodes, original_names
from edgeopt.graph.quantization import integer_range, read
from edgeopt.passes._calibration import WORTH, Calls, affordable
from edgeopt.passes._forms import Forms
from edgeopt.passes._judge import Course, Judge, estranged
from edgeopt.passes._least_squares import (
    Moments,
    best_weights,
    channel_steps,
    damped,
    residual,
    round_columns,
    shifted,
)
from edgeopt.passes._products import Product
from edgeopt.passes._walk import Lane, lane, segments
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Samples, Stage

BYTES = 2**32
"""All values of all calls together stay below this, estimated; what is kept at a time is about a tenth."""

LEAST_SAMPLES = 8

STRETCHES = 8
"""In so many stretches a model's layers are judged."""

LEAST_LAYERS = 3
"""Fewer layers are not judged by themselves: later ones make up for what they leave."""

HELD = 4
"""Every so many calls, one takes no part in solving and judges what was solved."""

DAMPING = 0.003
"""The share of the mean squared input that is added to every input's."""

LEAST_ROWS, ROWS_PER_COLUMN, MOST_ROWS = 24576, 8, 32768
"""Rows that are solved for."""

ROUGH_BIAS = 2.0**30
"""The largest integer that a bias may become."""

LARGE = 2**17
"""With more weights than this a product's float output is reckoned from the sums over all rows."""

TWIN = 4
"""Calls by which it is seen whether the float form computes what the original does."""

OVERALL, OVERALL_MACS = 256, 5e10
"""Validation samples that all solved layers together must gain on, and what one run over them may cost."""


@dataclass(frozen=True)
class Gptq(Pass):
    """Solve for the weights and biases of least squared error, and round them with errors handed on.

    Attributes:
        samples: At most this many calibration samples are used, fewer of a large model.
        damping: The share of the mean squared input that is added to every input's.
    """

    name: ClassVar[str] = "gptq"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "approximate"

    samples: int = 512
    damping: float = DAMPING

    def __post_init__(self) -> None:
        if self.samples < 1 or self.damping <= 0:
            raise UserError("gptq needs samples and a damping above zero")

    @property
    def reads(self) -> frozenset[Facet]:
        """Calibration and validation samples, and the float original."""
        return frozenset({"calibration", "validation", "teacher"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Solves every product with constant 8-bit weights, in order.

        Raises:
            UserError: There are no calibration samples.
        """
        data = context.calibration
        if data is None or len(data) == 0:
            raise UserError("gptq needs calibration data", hint="--data PATH")
        params = read(model)
        if not params:
            return Change(summary="no quantized weights to round")
        name_nodes(model)
        state = Forms.of(model, params)
        calls = _fitting(state.plain, data, self.samples)
        original = state.plain if context.teacher is None else context.teacher
        feeds = list(calls)
        judging, few = _judging(state.plain, data, context.validation, feeds)
        judge = Judge.of(original, few) if few else None
        if judge is not None and (reason := estranged(judge.limited(TWIN).decibels(state.plain))):
            return Change(summary=f"left as it is: {reason}")
        lanes = (lane(state.plain, feeds), lane(state.simulated, feeds))
        try:
            change, judged = self._solved(state, lanes, judge, context)
        except RuntimeFailure as failure:
            note = (
                f"weights are rounded to the nearest, since {failure.message[0].lower()}{failure.message[1:]}"
            )
            return Change(summary="left as it is", notes=[note])
        count = len(change.rewrites)
        change.summary = f"{units.number(count, 'layer')} solved" if count else "no layer gains by it"
        change.details |= {"layers": count, "samples": sum(_samples(call) for call in feeds)}
        if judged:
            change.details |= {"fidelity": round(judged[0], 2), "fidelity_after": round(judged[1], 2)}
            change.summary += f", {judged[0]:.1f} -> {judged[1]:.1f} dB" if count else ""
        if not count:
            return change
        if judging:
            before, after = judged if judged and judging == few else _overall(state, original, model, judging)
            change.details |= {"overall": round(before, 2), "overall_after": round(after, 2)}
            if after < before + WORTH:
                reason = f"{before:.1f} dB became {after:.1f} on more validation samples"
                return Change(f"left as it is: {reason}", skipped=change.skipped, details=change.details)
        state.write(model)
        return change

    def _solved(
        self, state: Forms, lanes: tuple[Lane, Lane], judge: Judge | None, context: Context
    ) -> tuple[Change, tuple[float, float] | None]:
        """Goes through both models and solves product after product.

        The layers are parted into stretches; each is kept where the whole model gains by it.

        Returns:
            What was kept, and the fidelity in dB before and after, where it was judged.
        """
        generator = np.random.default_rng(context.seed)
        parts = segments(state.simulated)
        solvable = sum(name in state.products for nodes in parts for name in nodes)
        size = max(-(-solvable // STRETCHES), LEAST_LAYERS)
        change = Change()
        found: list[Rewrite] = []
        start, marks = 0, (state.mark(), lanes[1].mark())
        course = None if judge is None else Course.of(judge, state.simulated)
        before = best = 0.0 if course is None else course.decibels()
        for index, nodes in enumerate(context.progress(parts, "gptq", len(parts))):
            products = [name for name in nodes if name in state.products]
            for name in products:
                if not context.allow(self.name, name):
                    continue
                last = name == products[-1]  # nothing else in this part asks for what comes before
                if _solve(state, state.products[name], lanes, nodes, last, self.damping, generator):
                    names = original_names(lanes[1].nodes[name]) or (name,)
                    found.append(Rewrite(self.name, names[0], names))
                else:
                    change.skipped.append(Skipped(self.name, name, "no channel gains by it"))
            for one in lanes:
                one.advance([name for name in nodes if name in one.left])
            if not found or (len(found) < size and index + 1 < len(parts)):
                continue
            after = best + 1 if course is None else course.decibels()
            if after > best:
                best = after
                change.rewrites += found
            else:
                reason = f"not kept: {best:.2f} dB became {after:.2f} on the validation samples"
                change.skipped += [Skipped(self.name, item.site, reason) for item in found]
                state.back_to(marks[0])
                lanes[1].back_to(marks[1])
                for again in parts[start : index + 1]:
                    lanes[1].advance(again)
            if course is not None:
                course.settle([name for part in parts[start : index + 1] for name in part])
            found, start, marks = [], index + 1, (state.mark(), lanes[1].mark())
        return change, None if course is None else (before, best)


def _overall(
    state: Forms, original: ir.Model, model: ir.Model, calls: Iterable[dict[str, np.ndarray]]
) -> tuple[float, float]:
    """Returns the fidelity in dB to the original before and after solving, on further calls."""
    solved = model.clone()
    state.write(solved)
    judge = Judge.of(original, calls)
    return judge.decibels(model), judge.decibels(solved)


def _samples(call: Mapping[str, np.ndarray]) -> int:
    return max((array.shape[0] for array in call.values() if array.ndim), default=1)


def _fitting(model: ir.Model, data: Samples, samples: int) -> Calls:
    """As many calls as memory allows, small enough that some can be held out."""
    size = Calls.bytes_per_sample(model, data)
    limit = int(np.clip(BYTES // size, min(LEAST_SAMPLES, samples), samples))
    calls = Calls.fitting(model, data, limit)
    return replace(calls, batch=int(np.clip(min(limit, len(data)) // (2 * HELD), 1, calls.batch)))


def _held_out(index: int, calls: int) -> bool:
    return calls >= HELD and index % HELD == HELD - 1


def _judging(
    model: ir.Model, data: Samples, validation: Samples | None, feeds: list[dict[str, np.ndarray]]
) -> tuple[Iterable[dict[str, np.ndarray]], Iterable[dict[str, np.ndarray]]]:
    """The calls that judge all layers together, and those that judge each stretch of them.

    Few samples are validation and calibration at once: then only those that nothing is solved for judge.
    """
    if not validation:
        return (), ()
    if validation.digest == data.digest:
        held = [call for index, call in enumerate(feeds) if _held_out(index, len(feeds))]
        return (), held or feeds
    calls = Calls.fitting(model, validation, OVERALL)
    few = calls.for_trials(model, OVERALL)
    limit = affordable(model, validation, OVERALL_MACS) * Calls.samples_per_call(validation)
    return replace(calls, limit=int(np.clip(limit, few.limit, OVERALL))), few


def _shortcut(product: Product, lanes: tuple[Lane, Lane]) -> tuple[str, str] | None:
    """The other summand of the sum that the product's output goes into, in both models, if known."""
    found = []
    for one in lanes:
        node = one.nodes[product.last]
        while True:
            uses = list(node.outputs[0].uses())
            if len(uses) != 1 or node.outputs[0].is_graph_output():
                return None
            reader = uses[0].node
            if reader.op_type in ("QuantizeLinear", "DequantizeLinear"):
                node = reader
                continue
            if reader.op_type != "Add":
                return None
            other = reader.inputs[1 - uses[0].idx]
            if other is None or other is reader.inputs[uses[0].idx]:
                return None
            if other.is_initializer():
                if node.name != product.last and node.op_type == "Add":
                    return None
                node = reader
                continue
            found.append(other.name or "")
            break
    return found[0], found[1]


def _solve(
    state: Forms,
    product: Product,
    lanes: tuple[Lane, Lane],
    nodes: Sequence[str],
    follow: bool,
    damping: float,
    generator: np.random.Generator,
) -> bool:
    """Solves one product; told to ``follow``, both models go on, the quantized one up to the product.

    Returns:
        Whether some channel gains.
    """
    plain, simulated = lanes
    weight = state.float_weight(product.weight)
    matrix = product.matrix(weight)
    groups, outputs, columns = matrix.shape
    free = product.bias is not None
    output = plain.output(product.last)
    source = simulated.nodes[product.node].inputs[0]
    assert source is not None
    reads = source.name or ""
    sums = _shortcut(product, lanes)
    if sums is not None and not all(one.reaches(nodes, name) for one, name in zip(lanes, sums, strict=True)):
        sums = None  # the other summand comes later, and will make up for this one
    wanted = (output,) if sums is None else (output, sums[0])
    given = (reads,) if sums is None else (reads, sums[1])
    if product.scaled is not None:
        given = (*given, product.scaled[1])
    total = int(np.clip(ROWS_PER_COLUMN * columns, LEAST_ROWS, MOST_ROWS))
    each = -(-total // len(plain.calls))
    fit, held = Moments.empty(groups, outputs, columns), Moments.empty(groups, outputs, columns)
    small, large = matrix.astype(np.float32), groups == 1 and matrix.size > LARGE
    bias = None
    if product.bias is not None and product.operator != "MatMul":
        bias = state.float_weight(product.bias).reshape(groups, 1, outputs).astype(np.float32)
    exactly = plain.follow(nodes, wanted) if follow else plain.run(nodes, wanted)
    before = simulated.before(nodes, given)
    rounded = simulated.follow(before, given) if follow else simulated.run(before, given)
    both = zip(exactly, rounded, strict=True)
    for index, (exact, made) in enumerate(both):
        array = exact[output]
        at = product.positions(array, each, generator)
        rows = product.rows(made[reads], array.shape, at)
        if product.scaled is not None:
            factors = np.broadcast_to(made[product.scaled[1]], (*array.shape[:-1], 1))
            rows = rows * factors.reshape(-1)[at][:, None]
        errors = product.outputs(array, at)
        if not large:
            errors = errors - np.einsum("gnk,gok->gno", rows, small, optimize=True)
        if bias is not None:
            errors -= bias
        if sums is not None and exact[sums[0]].shape == array.shape == made[sums[1]].shape:
            errors += product.outputs(exact[sums[0]] - made[sums[1]], at)
        (held if _held_out(index, len(plain.calls)) else fit).see(rows, errors)
    if large:
        for moments in (fit, held):
            moments.less(matrix)
    if not fit.count:
        return False
    judge = held if held.count else fit
    return _choose(state, product, weight, matrix, fit, judge, free, damping)


def _choose(
    state: Forms,
    product: Product,
    weight: np.ndarray,
    matrix: np.ndarray,
    fit: Moments,
    judge: Moments,
    free: bool,
    damping: float,
) -> bool:
    """Tries how far to go, and keeps per channel what leaves the least error on the held-out rows."""
    quantizer = state.params[state.weights[product.weight]][0]
    low, high = integer_range(quantizer.dtype)
    if quantizer.axis is not None and quantizer.axis % weight.ndim != int(product.transposed):
        return False  # scales of the columns, as where only the file is to be smaller
    square, cross = fit.about_means(free=free)
    stable = damped(square, damping)
    assert quantizer.scale is not None
    per_channel = quantizer.scale.ndim > 0
    scale = quantizer.scale.astype(np.float64).reshape(-1)
    channels = matrix.shape[0] * matrix.shape[1]
    old_steps = np.broadcast_to(scale, (channels,)).reshape(matrix.shape[:2])
    mean_in, mean_error = fit.inputs / fit.count, fit.errors / fit.count

    def shift_of(candidate: np.ndarray) -> np.ndarray:
        if not free:
            return np.zeros(matrix.shape[:2])
        shift: np.ndarray = mean_error - np.einsum("gok,gk->go", candidate - matrix, mean_in)
        return shift

    plain = np.clip(np.rint(matrix / old_steps[..., None]), low, high) * old_steps[..., None]
    options = [(plain, old_steps, np.zeros(matrix.shape[:2]))]
    if free:
        options.append((plain, old_steps, shift_of(plain)))
    best = best_weights(matrix, stable, cross)
    least = _least_steps(state, product, matrix.shape, free)
    targets = [matrix, matrix + 0.5 * (best - matrix), best]
    steps = [channel_steps(one, stable, least, low, high) if per_channel else old_steps for one in targets]
    together = round_columns(np.concatenate(targets, 1), np.concatenate(steps, 1), stable, low, high)
    for grid, step in zip(np.split(together, len(targets), 1), steps, strict=True):
        options.append((grid, step, shift_of(grid)))
    left = np.stack(_left(options, matrix, judge))
    index = left.argmin(0) if per_channel else np.full(matrix.shape[:2], left.sum((1, 2)).argmin())
    if not index.any():
        return False

    def pick(arrays: Sequence[np.ndarray]) -> np.ndarray:
        stacked = np.stack(arrays)
        chosen = index.reshape(1, *index.shape, *[1] * (stacked.ndim - 3))
        taken: np.ndarray = np.take_along_axis(stacked, chosen, 0)[0]
        return taken

    grid = pick([item[0] for item in options])
    chosen = pick([item[1] for item in options])
    shift = pick([item[2] for item in options])
    bias = None
    if product.bias is not None:
        old = state.float_weight(product.bias)
        bias = old + shift.reshape(old.shape)
    state.set(product, product.unmatrix(grid, weight.shape), chosen, bias)
    return True


def _left(
    options: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], matrix: np.ndarray, judge: Moments
) -> list[np.ndarray]:
    """The mean squared error per output with each choice of weights, steps and shifts, less a constant."""
    weights = {id(grid): grid for grid, _, _ in options}  # one stands twice, with and without a shift
    changed = {key: residual(grid - matrix, judge) for key, grid in weights.items()}
    return [changed[id(grid)] + shifted(grid - matrix, shift, judge) for grid, _, shift in options]


def _least_steps(state: Forms, product: Product, shape: tuple[int, ...], free: bool) -> np.ndarray:
    """The smallest step of each output with which its bias is an int32."""
    step = state.input_step(product)
    if not free or product.bias is None or not step:
        return np.zeros(shape[:2])
    bias = np.abs(state.float_weight(product.bias)).reshape(shape[:2])
    least: np.ndarray = 2 * bias / (step * ROUGH_BIAS)
    return least
