"""Values observed over data in constant memory.

Every tapped value is reduced at once to its extremes and a histogram of at most 4096 bins, so nothing is kept
of the data and one run over them is enough for every way of choosing ranges (see ``thresholds.py``). The
width of a bin is a power of two and zero is an edge: the narrowest width with which 4096 bins reach from the
smallest number to the largest, so at least 2047 do. Where a number falls outside, bins are joined two by two,
whole into whole. So the histogram is, number for number, the one that a second run over the data would fill
in knowing their range, in whatever order and parts they came; float32 numbers are scaled by a power of two,
which rounds nothing, and none is counted in a neighbour's bin.

Infinities, NaN and numbers beyond 1e30 are not ranges but marks, as attention masks hold them: they are
counted and set no range.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgeopt.graph import thresholds
from edgeopt.graph.execute import Executor, Feeds
from edgeopt.graph.quantization import QuantParams, integer_range
from edgeopt.graph.stages import Stages, can_be_cut
from edgeopt.graph.thresholds import PERCENTILE, Function, Histogram, Method

BINS = 4096
"""What a histogram has at most."""

NARROWEST = 2.0**-120
"""Of a bin: its inverse is a float32."""

MARK = 1e30
"""From this magnitude on a number is a mark, such as a mask's -3.4e38, and not a quantity."""

CHUNK = 2**15
"""Numbers that are sorted into bins at a time: they stay in the processor's cache."""

BYTES_PER_RUN = 2**28
"""Tapped values of a call that are held together stay below this; with more, the model runs in stages."""

CHANNEL_ENTRIES = 64
"""Samples whose channels are looked at one by one."""

WHOLE = 0.02
"""So far from a whole number what float32 arithmetic makes of pixels may lie."""

PIXELS = 128
"""Whole numbers that span fewer steps are no pixels but flags or counts."""

MOMENTUM = 0.1
"""What a call weighs in the moving average of extremes."""


@dataclass(slots=True)
class Observer:
    """What has been seen of one value.

    Attributes:
        histogram: Whether numbers are counted, as all methods but the extremes need.
        low: The smallest number seen; ``inf`` before any.
        high: The largest.
        average: The moving average of each call's extremes (low, high).
        peaks: The two largest magnitudes that any two entries of the first axis, mostly samples, reached.
        entries: How many entries of the first axis were seen.
        channels: The smallest and largest number of each channel (axis 1) of images [batch, channels, height,
            width], over the first 64 entries.
        channel_entries: Over how many entries.
        marks: How many infinities, NaN and numbers beyond 1e30 were left out.
        whole: Whether all numbers were whole, as pixels are.
        counts: The histogram: numbers in bins of ``width``, the first of which begins at ``first * width``.
        first: The bin of the smallest number, counted from zero; negative below it.
        width: A power of two, or 0 while all numbers were the same.
    """

    histogram: bool = True
    low: float = np.inf
    high: float = -np.inf
    average: tuple[float, float] | None = None
    peaks: tuple[float, float] = (0.0, 0.0)
    entries: int = 0
    channels: tuple[np.ndarray, np.ndarray] | None = None
    channel_entries: int = 0
    marks: int = 0
    whole: bool = True
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    first: int = 0
    width: float = 0.0

    def see(self, array: np.ndarray) -> None:
        """Takes in one array of any shape."""
        array = np.asarray(array, np.float32)
        flat = array.reshape(-1)
        if flat.size == 0:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (abs(low) < MARK and abs(high) < MARK):
            kept = flat[np.abs(flat) < MARK]  # NaN compares false
            self.marks += flat.size - kept.size
            if kept.size == 0:
                return
            array, flat, low, high = kept, kept, float(kept.min()), float(kept.max())
        alone = self.low
        self.low, self.high = min(self.low, low), max(self.high, high)
        before = self.average or (low, high)
        self.average = (before[0] + MOMENTUM * (low - before[0]), before[1] + MOMENTUM * (high - before[1]))
        self._rank(array, max(-low, high))
        if self.whole:
            self.whole = _are_whole(flat[:CHUNK]) and _are_whole(flat[CHUNK:])
        if array.ndim == 4 and self.channel_entries < CHANNEL_ENTRIES:
            self._see_channels(array)
        if self.histogram:
            self._cover(alone)
            self._count(flat)

    def _see_channels(self, array: np.ndarray) -> None:
        low, high = array.min((0, 2, 3)), array.max((0, 2, 3))
        if self.channels is not None and len(self.channels[0]) == len(low):
            low, high = np.minimum(self.channels[0], low), np.maximum(self.channels[1], high)
        self.channels = low, high
        self.channel_entries += array.shape[0]

    def _rank(self, array: np.ndarray, highest: float) -> None:
        """Notes the two largest magnitudes among entries of the first axis."""
        rows = array.shape[0] if array.ndim > 1 and array.shape[0] <= 64 else 1
        self.entries += rows
        if highest <= self.peaks[1]:
            return
        if rows == 1:
            ranked = [highest]
        else:
            parts = array.reshape(rows, -1)
            ranked = sorted(np.maximum(parts.max(1), -parts.min(1)).tolist())[-2:]
        first, second = sorted([*self.peaks, *ranked])[-2:][::-1]
        self.peaks = (first, second)

    def _count(self, flat: np.ndarray) -> None:
        if self.width == 0.0:  # one number only so far
            self.counts[0] += flat.size
            return
        inverse = np.float32(1 / self.width)
        size = min(CHUNK, flat.size)
        rows = 2 if self.low == 0 else 1  # behind a ReLU equal neighbours would wait for each other
        first = np.full(size, self.first, np.float32)
        first[1::2] -= (rows - 1) * BINS
        counts = np.zeros(rows * BINS, np.int64)
        scaled, index = np.empty(size, np.float32), np.empty(size, np.int32)
        for start in range(0, flat.size, CHUNK):
            part = flat[start : start + CHUNK]
            into, bins = scaled[: part.size], index[: part.size]
            np.multiply(part, inverse, out=into)
            np.floor(into, out=into)
            np.subtract(into, first[: part.size], out=into)  # whole numbers that are near each other: exact
            np.copyto(bins, into, casting="unsafe")
            counts += np.bincount(bins, minlength=rows * BINS)
        self.counts += counts.reshape(rows, BINS).sum(0)

    def _cover(self, alone: float) -> None:
        """Widens the histogram to the extremes; ``alone`` is the only number before, while there was one."""
        if self.low == self.high:
            return
        if self.width == 0.0:
            before, self.counts[0] = self.counts[0], 0.0
            span = (self.high - self.low) / BINS
            self.width = max(2.0 ** math.frexp(span)[1], NARROWEST)  # the next power of two beyond
            while not self._fits():
                self.width *= 2
            self.first = math.floor(self.low / self.width)
            if before:
                self.counts[math.floor(alone / self.width) - self.first] = before
            return
        while not self._fits():
            pairs = np.concatenate([np.zeros(self.first % 2), self.counts, np.zeros(self.first % 2)])
            self.counts = np.zeros(BINS)
            joined = pairs.reshape(-1, 2).sum(1)
            self.counts[: len(joined)] = joined
            self.first //= 2
            self.width *= 2
        if more := self.first - math.floor(self.low / self.width):
            self.counts = np.concatenate([np.zeros(more), self.counts[:-more]])
            self.first -= more

    def _fits(self) -> bool:
        return math.floor(self.high / self.width) - math.floor(self.low / self.width) < BINS

    def seen(self) -> Histogram | None:
        """The histogram from the bin of the smallest number to that of the largest; ``None`` without two."""
        if self.width == 0.0:
            return None
        last = math.floor(self.high / self.width)
        return Histogram(self.counts[: last - self.first + 1], self.first * self.width, self.width)

    def pixels(self, dtype: ir.DataType) -> tuple[float, float] | None:
        """The range in which every whole number has a level, where pixels were seen that it holds."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        first, last = integer_range(dtype)
        if not self.whole or not PIXELS <= high - low < last - first + 0.5 or last - first > 255:
            return None
        spare = (last - first - round(high - low)) // 2 if low < 0 else 0  # darker ones may come as well
        return float(round(low) - spare), float(round(low) - spare + last - first)

    def range(
        self,
        method: Method,
        dtype: ir.DataType,
        symmetric: bool = False,
        behind: Function | None = None,
        percentile: float = PERCENTILE,
    ) -> tuple[float, float]:
        """Returns the range to represent: (low, high), zero included.

        Args:
            method: How it is chosen.
            dtype: The integer type.
            symmetric: Whether it reaches equally far on both sides.
            behind: What the only reader makes of the numbers: damage counts behind it (``mse`` alone).
            percentile: Per cent of the numbers that the range holds (``percentile`` alone).
        """
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if not np.isfinite(low) or not np.isfinite(high):
            return 0.0, 0.0
        if method == "moving-average" and self.average is not None:
            return min(self.average[0], 0.0), max(self.average[1], 0.0)
        seen = self.seen()
        if method == "min-max" or seen is None:
            return low, high
        first, last = integer_range(dtype)
        levels = last - first + 1
        if method == "percentile":
            return thresholds.percentile(seen, low, high, symmetric, percentile)
        if method == "entropy":
            return thresholds.entropy(seen, low, high, levels, symmetric)
        return thresholds.least_damage(seen, low, high, levels, symmetric, behind)


def _are_whole(numbers: np.ndarray) -> bool:
    return bool(np.abs(numbers - np.rint(numbers)).max(initial=0.0) < WHOLE)


def parameters(low: float, high: float, dtype: ir.DataType, symmetric: bool = False) -> QuantParams:
    """Makes per-tensor parameters for a range, which is widened to hold zero exactly.

    A range of zero width gets the scale 1 (nothing but zeros was seen).
    """
    first, last = integer_range(dtype)
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        bound = max(-low, high)
        middle = 0 if dtype.is_signed() else (last + 1) // 2
        scale = np.float32(bound / (last - middle)) or np.float32(1)
        return QuantParams(dtype, np.asarray(scale), _zero(middle, dtype))
    scale = np.float32((high - low) / (last - first)) or np.float32(1)
    zero = int(np.clip(np.rint(first - low / scale), first, last))
    return QuantParams(dtype, np.asarray(scale), _zero(zero, dtype))


def _zero(zero: int, dtype: ir.DataType) -> np.ndarray | None:
    return np.asarray(zero, dtype.numpy()) if zero else None


def channel_scales(weight: np.ndarray, axis: int | None, dtype: ir.DataType) -> np.ndarray:
    """Returns symmetric min-max scales of a constant: one per channel of ``axis``, or one alone.

    Returns:
        float32 of shape [channels], or (). A channel of zeros gets the scale 1.
    """
    last = integer_range(dtype)[1]
    if axis is None:
        bound = np.abs(weight).max(initial=0.0)
    else:
        others = tuple(index for index in range(weight.ndim) if index != axis % weight.ndim)
        bound = np.abs(weight).max(axis=others, initial=0.0)
    scale = np.asarray(bound / last, np.float32)
    return np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale).astype(np.float32)


def observe(
    model: ir.Model, names: Sequence[str], samples: Iterable[Feeds], *, histogram: bool = True
) -> dict[str, Observer]:
    """Observes values of a model over samples.

    All values are tapped in one run of the data.

    Args:
        model: The model.
        names: Values of its main graph: inputs or results of nodes.
        samples: The calls' inputs: a list or another iterable that can be repeated.
        histogram: Whether numbers are counted; without, ``min-max`` and ``moving-average`` alone are known.
    """
    observers = {name: Observer(histogram) for name in names}
    for name, array in tapped(model, names, samples):
        observers[name].see(array)
    return observers


def channel_maxima(model: ir.Model, names: Sequence[str], samples: Iterable[Feeds]) -> dict[str, np.ndarray]:
    """Returns the largest magnitude seen in each channel (axis 1) of values [batch, channels, ...]."""
    maxima: dict[str, np.ndarray] = {}
    for name, array in tapped(model, names, samples):
        others = tuple(axis for axis in range(array.ndim) if axis != 1)
        found = np.abs(array).max(axis=others)
        maxima[name] = np.maximum(maxima[name], found) if name in maxima else found
    return maxima


def tapped(
    model: ir.Model, names: Sequence[str], samples: Iterable[Feeds]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the arrays of values, call by call; where they are large, not all of a call are held at once."""
    inputs = {value.name for value in model.graph.inputs}
    made = {output.name: output for node in model.graph for output in node.outputs}
    results = [name for name in names if name not in inputs]
    groups = [results]
    first = next(iter(samples), None)
    if first is not None and activation_bytes(model, first, results) > BYTES_PER_RUN:
        groups = _groups(model, first, set(results))
        if can_be_cut(model):
            stages = Stages(model, [[made[name] for name in group] for group in groups])
            for feeds in samples:
                yield from ((name, feeds[name]) for name in names if name in inputs)
                yield from stages.run(feeds)
            return
    for number, group in enumerate(groups):
        with Executor(model, group, optimize=True) as executor:
            for feeds in samples:
                if number == 0:
                    yield from ((name, feeds[name]) for name in names if name in inputs)
                if group:
                    yield from executor.run(feeds, group).items()


def _groups(model: ir.Model, feeds: Feeds, names: set[str]) -> list[list[str]]:
    """Parts results of nodes, in the graph's order, so that those of a call stay below the limit."""
    groups: list[list[str]] = [[]]
    total = 0
    for name in [value.name or "" for node in model.graph for value in node.outputs if value.name in names]:
        size = activation_bytes(model, feeds, [name])
        if groups[-1] and total + size > BYTES_PER_RUN:
            groups.append([])
            total = 0
        groups[-1].append(name)
        total += size
    return groups


def activation_bytes(model: ir.Model, feeds: Feeds, names: Sequence[str] | None = None) -> int:
    """Estimates the bytes of values in one call, by default of all results of nodes.

    Symbolic dimensions are bound by the feeds; an unknown one counts, as the first axis, as the longest
    first axis of any input, and elsewhere as the longest axis behind the first two.
    """
    bound: dict[str, int] = {}
    calls = max((array.shape[0] for array in feeds.values() if array.ndim), default=1)
    for value in model.graph.inputs:
        if value.shape is None or value.name not in feeds:
            continue
        for dim, size in zip(value.shape, feeds[value.name or ""].shape, strict=False):
            if not isinstance(dim, int) and dim.value is not None:
                bound[str(dim.value)] = size
    largest = max((array.size for array in feeds.values()), default=1)
    unknown = max((size for array in feeds.values() for size in array.shape[2:]), default=1)
    total = 0
    wanted = None if names is None else set(names)
    for node in model.graph:
        for output in node.outputs:
            if wanted is not None and output.name not in wanted:
                continue
            if output.shape is None:
                total += 4 * largest
                continue
            size = 4
            for index, dim in enumerate(output.shape):
                other = unknown if index else calls
                size *= dim if isinstance(dim, int) else bound.get(str(dim.value), other)
            total += size
    return total
