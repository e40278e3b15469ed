"""Ranges of values, observed over data in constant memory.

Every tapped value is reduced at once to its extremes and a histogram of 2048 bins, whose width doubles
when a value falls outside, so nothing is kept of the data and one run over them is enough. Ranges come
from the extremes (``min-max``) or are those for which quantization is expected to do the least squared
damage to what was seen (``mse``), as in Nagel et al., A White Paper on Neural Network Quantization,
2021, section 3.1.

Infinities, NaN and numbers beyond 1e30 are not ranges but marks, as attention masks hold them: they are
counted and set no range.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgeopt.graph.execute import Executor, Feeds
from edgeopt.graph.quantization import QuantParams, integer_range

BINS = 2048
MARK = 1e30
"""From this magnitude on a number is a mark, such as a mask's -3.4e38, and not a quantity."""

SEEN_PER_CALL = 2**15
"""Elements of one value that enter the histogram per call, evenly spaced; extremes see all."""

BYTES_PER_RUN = 2**29
"""Tapped values of one run together stay below this; more than that are tapped in several runs."""

Method = Literal["min-max", "mse"]


@dataclass(slots=True)
class Observer:
    """What has been seen of one value.

    Attributes:
        low: The smallest number seen; ``inf`` before any.
        high: The largest.
        marks: How many infinities, NaN and numbers beyond 1e30 were left out.
        counts: The histogram over [origin, origin + BINS * width).
    """

    low: float = np.inf
    high: float = -np.inf
    marks: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    origin: float = 0.0
    width: float = 0.0

    def see(self, array: np.ndarray) -> None:
        """Takes in one array of any shape."""
        flat = np.asarray(array, np.float32).reshape(-1)
        if flat.size == 0:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (abs(low) < MARK and abs(high) < MARK):
            kept = flat[np.abs(flat) < MARK]  # NaN compares false
            self.marks += flat.size - kept.size
            if kept.size == 0:
                return
            flat, low, high = kept, float(kept.min()), float(kept.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._cover(low, high)
        if self.width == 0.0:  # one number only so far
            self.counts[0] += flat.size
            return
        step = -(-flat.size // SEEN_PER_CALL)
        seen = flat[::step]
        index = ((seen - np.float32(self.origin)) * np.float32(1 / self.width)).astype(np.int32)
        self.counts += step * np.bincount(np.clip(index, 0, BINS - 1), minlength=BINS)

    def _cover(self, low: float, high: float) -> None:
        """Widens the histogram until it covers a range: bins are joined two by two."""
        if self.width == 0.0:
            first = self.origin if self.counts[0] else low
            low, high = min(low, first), max(high, first)
            if high > low:
                before, self.counts[0] = self.counts[0], 0.0
                self.origin, self.width = low, (high - low) * (1 + 1e-6) / BINS
                self.counts[min(int((first - low) / self.width), BINS - 1)] += before
            else:
                self.origin = low
            return
        while low < self.origin or high >= self.origin + BINS * self.width:
            joined = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros(BINS)
            if low < self.origin:
                self.origin -= BINS * self.width
                self.counts[BINS // 2 :] = joined
            else:
                self.counts[: BINS // 2] = joined
            self.width *= 2

    def range(
        self, method: Method, dtype: ir.DataType, symmetric: bool = False, slope: float = 1.0
    ) -> tuple[float, float]:
        """Returns the range to represent: (low, high), zero included.

        Args:
            method: How it is chosen.
            dtype: The integer type.
            symmetric: Whether it reaches equally far on both sides.
            slope: What the only reader multiplies negative numbers by, as a leaky ReLU does: damage to
                them counts as little.
        """
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if not np.isfinite(low) or not np.isfinite(high):
            return 0.0, 0.0
        if method == "min-max" or self.width == 0.0:
            return low, high
        centers = self.origin + (np.arange(BINS) + 0.5) * self.width
        used = self.counts > 0
        return _least_damage(centers[used], self.counts[used], low, high, dtype, symmetric, slope)


def _least_damage(
    values: np.ndarray,
    counts: np.ndarray,
    low: float,
    high: float,
    dtype: ir.DataType,
    symmetric: bool,
    slope: float,
) -> tuple[float, float]:
    """Searches shrunken ranges for the least expected squared error, each end by itself."""
    first, last = integer_range(dtype)
    best, chosen = np.inf, (low, high)
    fractions = np.linspace(1.0, 0.3 if slope == 1.0 else 0.02, 36)
    counts = np.where(values < 0, slope * slope, 1.0) * counts

    def damage(a: float, b: float) -> float:
        scale = (b - a) / (last - first)
        if scale <= 0:
            return np.inf
        clipped = np.clip(values, a, b)
        rounded = a + np.rint((clipped - a) / scale) * scale
        return float(np.dot(counts, (values - rounded) ** 2))

    for fraction in fractions:
        a, b = low * fraction, high * fraction
        if symmetric:
            b = max(-a, b)
            a = -b
        if (error := damage(a, b)) < best:
            best, chosen = error, (a, b)
    if symmetric:
        return chosen
    for fraction in fractions:
        for a, b in ((low * fraction, chosen[1]), (chosen[0], high * fraction)):
            if (error := damage(a, b)) < best:
                best, chosen = error, (a, b)
    return chosen


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


def observe(model: ir.Model, names: Sequence[str], samples: Iterable[Feeds]) -> dict[str, Observer]:
    """Observes values of a model over samples.

    All values are tapped in one run of the data, unless those of one call exceed 512 MB together.

    Args:
        model: The model.
        names: Values of its main graph: inputs or results of nodes.
        samples: The calls' inputs; it is iterated once per group of values, so a list or another
            iterable that can be repeated.
    """
    observers = {name: Observer() for name in names}
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
    """Yields the arrays of values, call by call, in as few runs of the data as memory allows."""
    inputs = {value.name for value in model.graph.inputs}
    results = [name for name in names if name not in inputs]
    groups = [results]
    first = next(iter(samples), None)
    if first is not None and (size := activation_bytes(model, first, results)) > BYTES_PER_RUN:
        count = min(-(-size // BYTES_PER_RUN), len(results))
        groups = [results[index::count] for index in range(count)]
    for number, group in enumerate(groups):
        with Executor(model, group, optimize=True) as executor:
            for feeds in samples:
                if number == 0:
                    yield from ((name, feeds[name]) for name in names if name in inputs)
                if group:
                    yield from executor.run(feeds, group).items()


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
