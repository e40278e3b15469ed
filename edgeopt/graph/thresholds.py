"""Ranges to represent, chosen from a histogram of what was seen.

- ``percentile`` leaves out the same small share of numbers at either end.
- ``entropy`` keeps the distribution as it is, in the sense of Kullback and Leibler: Migacz, 8-bit Inference
  with TensorRT, 2017, for ranges of either or both signs.
- ``mse`` does the least expected squared damage: Nagel et al., A White Paper on Neural Network
  Quantization, 2021, section 3.1.

Each returns (low, high) around zero, for a ``Histogram`` and the range of an integer type.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import numpy as np

Function = Callable[[np.ndarray], np.ndarray]
"""What an operator makes of numbers, one by one."""

Method = Literal["min-max", "moving-average", "percentile", "entropy", "mse"]
"""How a range is chosen; the first two need no histogram."""

METHODS: tuple[Method, ...] = get_args(Method)

PERCENTILE = 99.99
"""Per cent of the numbers that the range of ``percentile`` holds."""

COARSE = 48
"""Ranges that ``entropy`` tries before it looks closer around the best."""

CLOSER = 8
"""How many times closer together those are that it tries next."""

LEAST = 1e-9
"""The least share that a bin counts as expected to have."""

MOST_BINS = 2**15
"""Where zero is so far off that a histogram reaching there had more bins, ``entropy`` takes the extremes."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of numbers in bins of equal width from ``origin`` on.

    Attributes:
        counts: float64 [bins].
        origin: The lower edge of the first bin.
        width: Of one bin.
    """

    counts: np.ndarray
    origin: float
    width: float

    @property
    def centers(self) -> np.ndarray:
        """The middles of the bins."""
        middles: np.ndarray = self.origin + (np.arange(len(self.counts)) + 0.5) * self.width
        return middles


def percentile(
    histogram: Histogram, low: float, high: float, symmetric: bool, share: float = PERCENTILE
) -> tuple[float, float]:
    """Cuts off numbers at either end; symmetric ranges by magnitude.

    The ends lie in the bins of the numbers that have these ranks when all are sorted (the inverse of their
    distribution function, Hyndman and Fan's first definition of a quantile), so within one bin of them.

    Args:
        histogram: What was seen.
        low: The smallest number, zero at most.
        high: The largest, zero at least.
        symmetric: Whether the range reaches equally far on both sides.
        share: Per cent that the range holds.
    """
    cut, count = 1 - Fraction(str(share)) / 100, int(histogram.counts.sum())
    if symmetric:
        order = np.argsort(np.abs(histogram.centers), kind="stable")
        magnitudes = np.abs(histogram.centers)[order] + histogram.width / 2
        total = np.cumsum(histogram.counts[order])
        place = int(np.searchsorted(total, math.ceil((1 - cut) * count)))
        bound = min(float(magnitudes[place]), max(-low, high))
        return -bound, bound
    return (
        min(max(_ranked(histogram, math.ceil(cut / 2 * count)), low), 0.0),
        max(min(_ranked(histogram, math.ceil((1 - cut / 2) * count)), high), 0.0),
    )


def _ranked(histogram: Histogram, rank: int) -> float:
    """The number of a rank, from 1 on, within its bin as if the bin's numbers were spread evenly."""
    total = np.cumsum(histogram.counts)
    place = int(np.searchsorted(total, rank))
    inside = 1 - (total[place] - rank) / histogram.counts[place]
    return float(histogram.origin + (place + inside) * histogram.width)


def entropy(
    histogram: Histogram, low: float, high: float, levels: int, symmetric: bool
) -> tuple[float, float]:
    """Chooses the range whose quantized distribution diverges least from the one seen.

    Both ends shrink together, by whole bins of the longer side. The bin of zero, which is represented
    exactly however often it occurs, as behind a ReLU, counts like its neighbours.

    Args:
        histogram: What was seen.
        low: The smallest number, zero at most.
        high: The largest, zero at least.
        levels: How many integers the range gets.
        symmetric: Whether the range reaches equally far on both sides.
    """
    reach = max(-low, high) / histogram.width
    if reach * 2 > MOST_BINS:
        return (-max(-low, high), max(-low, high)) if symmetric else (low, high)
    counts, zero = _around_zero(histogram)
    if symmetric:  # magnitudes tell it all
        negative, positive = counts[:zero][::-1], counts[zero:]
        folded = np.zeros(max(len(negative), len(positive)))
        folded[: len(negative)] += negative
        folded[: len(positive)] += positive
        counts, zero, levels = folded, 0, max(levels // 2, 1)
    left, right = zero, len(counts) - zero
    longest = max(left, right)
    smooth = counts.copy()
    beside = [counts[index] for index in (zero - 1, zero + 1) if 0 <= index < len(counts)]
    if zero < len(counts):
        smooth[zero] = min(smooth[zero], max(beside, default=0.0))

    diverges = _Divergence(smooth)

    def divergence(kept: int) -> float:
        first, last = zero - left * kept // longest, zero + -(-right * kept // longest)
        return diverges(first, max(last, first + 1), levels)

    least = min(longest, max(1, levels * longest // max(left + right, 1)))
    stride = max(1, (longest - least) // COARSE)
    tried = {kept: divergence(kept) for kept in (*range(least, longest, stride), longest)}
    while True:  # closer and closer around the best
        best = min(tried, key=lambda kept: (tried[kept], -kept))
        if stride == 1:
            break
        reach, stride = stride, max(1, stride // CLOSER)
        near = range(max(least, best - reach + 1), min(longest, best + reach - 1) + 1, stride)
        tried.update((kept, divergence(kept)) for kept in near if kept not in tried)
    share = best / longest
    if symmetric:
        bound = max(-low, high) * share
        return -bound, bound
    return low * share, high * share


def _around_zero(histogram: Histogram) -> tuple[np.ndarray, int]:
    """Extends a histogram to hold zero; returns the counts and the bin that begins next to zero."""
    zero = round(-histogram.origin / histogram.width)
    counts = histogram.counts
    if zero < 0:
        return np.concatenate([np.zeros(-zero), counts]), 0
    if zero > len(counts):
        counts = np.concatenate([counts, np.zeros(zero - len(counts))])
    used = np.flatnonzero(counts)
    last = max(int(used[-1]) + 1, zero) if len(used) else len(counts)
    first = min(int(used[0]), zero) if len(used) else 0
    return counts[first:last], zero - first


class _Divergence:
    """Divergences of one histogram from it quantized, in time that grows with the levels, not the bins.

    All that a range needs of the bins in a level are sums, taken as differences of running sums.
    """

    def __init__(self, counts: np.ndarray) -> None:
        self.counts = counts
        used = counts > 0
        logs = np.zeros_like(counts)
        logs[used] = counts[used] * np.log(counts[used])
        self.sums, self.used, self.logs = (
            np.concatenate([[0.0], np.cumsum(part)]) for part in (counts, used, logs)
        )

    def __call__(self, first: int, last: int, levels: int) -> float:
        """KL divergence of bins [first, last) joined into levels, from all, which is clipped to them."""
        size, total = last - first, self.sums[-1]
        edges = first + np.minimum(-(-np.arange(levels + 1) * max(size, levels) // levels), size)
        inside = np.diff(self.sums[edges])
        kept = self.sums[last] - self.sums[first]
        if total == 0 or kept == 0:
            return np.inf
        expected = np.maximum(inside / np.maximum(np.diff(self.used[edges]), 1) / kept, LEAST)
        logs = np.log(expected)
        # sum of p log p - p log q for the bins as they are, then what is clipped goes to the outermost
        result = self.logs[last] - self.logs[first] - np.dot(inside, logs)
        ends = {first: self.sums[first], last - 1: total - self.sums[last]}
        if size == 1:
            ends = {first: total - kept}
        for place, clipped in ends.items():
            if clipped > 0:
                before = self.counts[place]
                group = logs[(place - first) * levels // max(size, levels)] if before > 0 else np.log(LEAST)
                result += (before + clipped) * np.log(before + clipped) - clipped * group
                result -= before * np.log(before) if before > 0 else 0.0
        return float(result / total - np.log(total))


def least_damage(
    histogram: Histogram,
    low: float,
    high: float,
    levels: int,
    symmetric: bool,
    behind: Function | None = None,
) -> tuple[float, float]:
    """Searches shrunken ranges for the least expected squared error, each end by itself.

    Args:
        histogram: What was seen.
        low: The smallest number, zero at most.
        high: The largest, zero at least.
        levels: How many integers the range gets.
        symmetric: Whether the range reaches equally far on both sides.
        behind: What the only reader makes of the numbers, one by one: damage counts behind it.
    """
    used = histogram.counts > 0
    values, counts = histogram.centers[used], histogram.counts[used]
    wanted = values if behind is None else behind(values)
    best, chosen = np.inf, (low, high)
    fractions = np.linspace(1.0, 0.3 if behind is None else 0.02, 36 if behind is None else 50)

    def damage(a: float, b: float) -> float:
        scale = (b - a) / (levels - 1)
        if scale <= 0:
            return np.inf
        clipped = np.clip(values, a, b)
        rounded = a + np.rint((clipped - a) / scale) * scale
        made = rounded if behind is None else behind(rounded)
        return float(np.dot(counts, (wanted - made) ** 2))

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
