"""Calibration: from data to the parameters of every site, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgeopt import fidelity
from edgeopt.errors import ModelError
from edgeopt.graph.cost import cost
from edgeopt.graph.execute import Executor, Feeds
from edgeopt.graph.observers import (
    Observer,
    activation_bytes,
    channel_scales,
    observe,
    parameters,
)
from edgeopt.graph.placement import Constant, Placement, place
from edgeopt.graph.quantization import (
    Parameters,
    QuantParams,
    Site,
    integer_range,
    with_rounded_constants,
    write,
)
from edgeopt.graph.thresholds import PERCENTILE, Function, Method
from edgeopt.passes._leaky import around, halves
from edgeopt.passes._saturating import function_of, only_reader
from edgeopt.passes.base import Divisible, Samples
from edgeopt.platform import QuantizationRules, TensorRule

METHODS: tuple[Method, ...] = ("mse", "min-max")
"""How ranges of activations are tried where the observer is to be chosen."""

WORTH = 0.1
"""dB on the validation samples that a step must bring to be kept."""

NEARER = 0.9
"""A table has a scale per row where that leaves less than this part of the noise of one per column."""

FEWEST, MOST = 64, 256
"""So many samples set ranges and judge where alternatives are compared: more of a small model."""

MACS = 2e10
"""Multiply-accumulates that such a run over the samples may cost: about a second."""

BATCH = 8
"""Samples per call of the calibration, where the model takes several and memory allows it."""

BYTES_PER_CALL = 2**27
"""Activations of one call stay below this where a smaller batch can do that."""

BYTES_OF_OUTPUTS = 2**27
"""Outputs of the float model are held for further trials while all of them together stay below this."""

BYTES_PER_TRIAL = 2**30
"""Trials, which compare alternatives, run over so many bytes of activations each."""


@dataclass(frozen=True, slots=True)
class Calls:
    """Model calls that can be iterated again and again, evenly spread over the samples.

    Data often come in an order, by class or source, so the first of them are not like the others.

    Attributes:
        data: The samples.
        batch: How many of them make a call, where the model can.
        limit: How many there are at most.
    """

    data: Samples
    batch: int
    limit: int

    @classmethod
    def fitting(cls, model: ir.Model, data: Samples, limit: int) -> Calls:
        """Chooses the batch by the memory that the model's activations take."""
        first = next(data.feeds(), None)
        size = max(activation_bytes(model, first), 1) if first is not None else 1
        return cls(data, int(np.clip(BYTES_PER_CALL // size, 1, BATCH)), limit)

    @staticmethod
    def samples_per_call(data: Samples) -> int:
        """For how many samples a call counts that is read by itself: one, but where calls were recorded."""
        first = next(data.feeds(), None)
        return 1 if first is None else _rows(first, BATCH)

    @staticmethod
    def bytes_per_sample(model: ir.Model, data: Samples) -> int:
        """Estimates the bytes of all activations of one sample."""
        first = next(data.feeds(), None)
        return 1 if first is None else max(activation_bytes(model, first) // _rows(first, BATCH), 1)

    def for_trials(self, model: ir.Model, most: int = 64) -> Calls:
        """Returns fewer calls, so that a trial is cheap: ``most`` samples, or down to 2 of a large model."""
        size = self.bytes_per_sample(model, self.data)
        return Calls(self.data, self.batch, min(self.limit, int(np.clip(BYTES_PER_TRIAL // size, 2, most))))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        seen = 0
        for feeds in self._chosen().feeds(self.batch):
            if seen >= self.limit:
                return
            yield feeds
            seen += _rows(feeds, BATCH)

    def _chosen(self) -> Samples:
        first = next(self.data.feeds(), None)
        if first is None or not isinstance(self.data, Divisible):
            return self.data
        return self.data.limited(-(-self.limit // _rows(first, BATCH)))


def _rows(feeds: Feeds, most: int) -> int:
    """For how many samples a call counts.

    One that was recorded as it is may hold more than a batch, and its first axis need not be samples.
    """
    return min(max((array.shape[0] for array in feeds.values() if array.ndim), default=1), most)


@dataclass(frozen=True, slots=True)
class Watched:
    """Calls that show how many have gone by, each time they are iterated.

    Attributes:
        calls: The calls.
        progress: Wraps an iterable with a progress bar.
        label: What is being done.
    """

    calls: Calls
    progress: Callable[[Iterable[Feeds], str, int | None], Iterable[Feeds]]
    label: str

    def __iter__(self) -> Iterator[Feeds]:
        first = next(self.calls.data.feeds(), None)
        each = 1 if first is None else _rows(first, BATCH)
        batch = self.calls.batch if each == 1 else 1  # recorded calls stay as they are
        count = min(-(-self.calls.limit // (each * batch)), -(-len(self.calls.data) // batch))
        return iter(self.progress(self.calls, self.label, count))


def affordable(model: ir.Model, samples: Samples, most: float = MACS) -> int:
    """How many calls like the first may be run for so many multiply-accumulates."""
    first = next(samples.feeds(), None)
    if first is None:
        return 0
    known = {value.name for value in model.graph.inputs}
    shapes = {name: array.shape for name, array in first.items() if name in known}
    try:
        macs = cost(model, shapes).macs
    except ModelError:  # the data's shapes are not those declared: nobody knows what it costs
        return 0
    return int(most // max(macs, 1))


def comparing(model: ir.Model, data: Samples) -> Calls:
    """Returns the calls by which alternatives for a whole model are compared."""
    calls = Calls.fitting(model, data, int(np.clip(affordable(model, data), FEWEST, MOST)))
    return calls if calls.limit <= FEWEST else calls.for_trials(model, MOST)


class Reference:
    """What a model makes of some calls, for comparing others with it; outputs are held while they are small.

    Args:
        model: The model; it is not changed.
        calls: The calls.
    """

    def __init__(self, model: ir.Model, calls: Calls) -> None:
        self.calls = calls
        self._model: ir.Model = model
        self._held: list[dict[str, np.ndarray]] | None = None

    def pairs(self) -> Iterator[tuple[Feeds, dict[str, np.ndarray]]]:
        """Yields every call with the model's outputs."""
        if self._held is not None:
            yield from zip(self.calls, self._held, strict=True)
            return
        held, size = [], 0
        with Executor(self._model, optimize=True) as executor:
            for feeds in self.calls:
                outputs = executor.run(feeds)
                size += sum(array.nbytes for array in outputs.values() if isinstance(array, np.ndarray))
                if size <= BYTES_OF_OUTPUTS:
                    held.append(outputs)
                yield feeds, outputs
        self._held = held if size <= BYTES_OF_OUTPUTS else None


def worth(model: ir.Model, params: Parameters, calls: Calls | Reference) -> float:
    """Returns the fidelity in dB of a model with some quantization to itself without.

    Args:
        model: The model without quantization.
        params: The quantization.
        calls: What both are run on; for several trials what the model, or one that computes the same,
            makes of it.
    """
    quantized = model.clone()
    write(quantized, params)
    reference = calls if isinstance(calls, Reference) else Reference(model, calls)
    found = fidelity.Fidelity()
    with Executor(with_rounded_constants(quantized)) as executor:
        for feeds, wanted in reference.pairs():
            found.add(wanted, executor.run(feeds))
    return found.balanced


def int8_worth(
    model: ir.Model,
    rules: QuantizationRules,
    keep: set[str],
    calls: Iterable[Feeds],
    judging: Calls | Reference,
) -> float:
    """Returns the fidelity in dB of static int8, with ranges from ``calls``, to the model in float."""
    placement, observers = calibrate(model, rules, calls, keep)
    return worth(model, scales(model, placement, observers, "mse"), judging)


def calibrate(
    model: ir.Model,
    rules: QuantizationRules,
    calls: Iterable[Feeds],
    keep: set[str],
    known: dict[str, Observer] | None = None,
    *,
    histogram: bool = True,
    placing: Callable[[ir.Model, QuantizationRules, set[str], set[str]], Placement] = place,
) -> tuple[Placement, dict[str, Observer]]:
    """Places the quantization, as ``placing`` decides, and observes the values that need ranges.

    Values that turn out to hold masks are given up, with the nodes that wanted them; what that asks for
    anew is observed in another run. Without ``histogram`` only ``min-max`` and ``moving-average`` are known.
    """
    observers = dict(known or {})
    while True:
        unfit = {name for name, observer in observers.items() if observer.marks}
        placement = placing(model, rules, keep, unfit)
        missing = [name for name in placement.observed if name not in observers]
        if not missing:
            return placement, observers
        observers.update(observe(model, missing, calls, histogram=histogram))


def scales(
    model: ir.Model,
    placement: Placement,
    observers: dict[str, Observer],
    method: Method,
    percentile: float = PERCENTILE,
) -> Parameters:
    """Turns observed ranges and constants into parameters for every site."""
    params: dict[Site, list[QuantParams]] = {}
    ranges: dict[str, QuantParams] = {}
    before = _before_leaky(model, placement) if method == "mse" else {}
    for behind, (name, slope) in before.items():
        dtype = _dtype(placement.rules[Site(name)])
        if (pair := around(observers[name], slope, dtype, placement.slope_factor)) is not None:
            ranges[name], ranges[behind] = pair
    flat = _before_functions(model, placement) if method == "mse" else {}
    for where, origin in placement.activations.items():
        if origin not in ranges:
            rule = placement.rules[where]
            ranges[origin] = _activation(observers[origin], rule, method, percentile, flat.get(origin))
        params[where] = [ranges[origin]]
        ranges.setdefault(where.value, ranges[origin])
    _share_scales(model, placement, params)
    smallest = _smallest_scales(model, placement, ranges)
    for where, constant in placement.constants.items():
        tensor = model.graph.initializers[constant.value].const_value
        assert tensor is not None
        dtype = _dtype(constant.rule)
        if constant.rule.symmetric:
            axis = _nearer_axis(tensor.numpy(), constant)
            scale = channel_scales(tensor.numpy(), axis, dtype)
            if constant.value in smallest:
                least = smallest[constant.value]
                scale = np.maximum(scale, least if scale.ndim else least.max()).astype(np.float32)
            params[where] = [QuantParams(dtype, scale, None, None if scale.ndim == 0 else axis)]
        else:
            array = tensor.numpy()
            params[where] = [parameters(float(array.min()), float(array.max()), dtype)]
    return params


def _nearer_axis(array: np.ndarray, constant: Constant) -> int | None:
    """The axis of a constant along which scales leave less noise, where there is a choice."""
    if constant.other is None or constant.axis is None or not array.size:
        return constant.axis
    magnitudes = np.abs(array)
    noise = []
    for axis in (constant.axis, constant.other):
        largest = magnitudes.max(axis=tuple(other for other in range(array.ndim) if other != axis))
        noise.append(float(np.square(largest[largest > 0], dtype=np.float64).mean()) if largest.any() else 0)
    return constant.other if noise[1] < NEARER * noise[0] else constant.axis


def _before_leaky(model: ir.Model, placement: Placement) -> dict[str, tuple[str, float]]:
    """Returns per quantized output of a leaky ReLU its input, if nobody else reads it, and its slope."""
    found = {}
    for node in model.graph:
        value = node.inputs[0] if node.op_type == "LeakyRelu" else None
        if value is None or len(value.uses()) > 1 or value.is_graph_output():
            continue
        one, other = (Site(item.name or "") for item in (value, node.outputs[0]))
        if one in placement.activations and placement.rules.get(one) == placement.rules.get(other):
            slope = node.attributes.get_float("alpha", 0.01) or 0.01
            free = not placement.rules[one].symmetric and placement.rules[one].scale is None
            if 0 < slope < 1 and free and placement.activations[one] == one.value:
                found[other.value] = (one.value, slope)
    return found


def _share_scales(model: ir.Model, placement: Placement, params: dict[Site, list[QuantParams]]) -> None:
    """Gives positive sides of split leaky ReLUs the scales of their sums, so that they are rounded once."""
    for positive, total in halves(model).items():
        one, other = Site(positive), Site(total)
        if one not in params or other not in params or placement.rules[one] != placement.rules[other]:
            continue
        joined = params[other][0]
        zero = np.asarray(integer_range(joined.dtype)[0], joined.dtype.numpy())
        shared = replace(joined, zero_point=zero if zero else None)
        for where, origin in placement.activations.items():
            if origin == placement.activations[one]:
                params[where] = [shared]


def _before_functions(model: ir.Model, placement: Placement) -> dict[str, Function]:
    """Returns, per value that sets no range but its own and that a function alone reads, the function."""
    origins = list(placement.activations.values())
    found = {}
    for node in model.graph:
        for value in node.outputs:
            name = value.name or ""
            if placement.activations.get(Site(name)) != name or origins.count(name) > 1:
                continue
            reader = only_reader(value)
            if reader is not None and (function := function_of(reader)) is not None:
                found[name] = function
    return found


def _activation(
    observer: Observer,
    rule: TensorRule,
    method: Method,
    percentile: float,
    behind: Function | None = None,
) -> QuantParams:
    dtype = _dtype(rule)
    if rule.scale is not None:
        zero = np.asarray(rule.zero_point, dtype.numpy()) if rule.zero_point else None
        return QuantParams(dtype, np.asarray(rule.scale, np.float32), zero)
    pixels = None if rule.symmetric else observer.pixels(dtype)
    low, high = pixels or observer.range(method, dtype, rule.symmetric, behind, percentile)
    return parameters(low, high, dtype, rule.symmetric)


def _smallest_scales(
    model: ir.Model, placement: Placement, ranges: dict[str, QuantParams]
) -> dict[str, np.ndarray]:
    """Returns per weight the smallest scales with which every int32 bias fits, with a bit to spare."""
    smallest: dict[str, np.ndarray] = {}
    for _, source, weight, bias, axis in placement.biases:
        tensor = model.graph.initializers[bias].const_value
        scale = ranges[source].scale if source in ranges else None
        if tensor is None or scale is None:
            continue
        needed = np.abs(tensor.numpy().reshape(-1).astype(np.float64)) / (float(scale) * 2.0**30)
        least = np.asarray(needed.max(initial=0.0)) if axis is None else needed
        smallest[weight] = np.maximum(smallest.get(weight, np.zeros_like(least)), least)
    return smallest


def _dtype(rule: TensorRule) -> ir.DataType:
    return ir.DataType[rule.dtype.upper()]
