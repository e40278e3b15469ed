"""Scales around a leaky ReLU whose kernel multiplies in fixed point.

On either side of zero the kernel multiplies by a whole number over ``factor``, a power of two: by k = factor
x input scale / output scale where positive, by m = k x slope where negative. An input scale that is widened
to the next k with an m close to k x slope costs less than what the kernel would round away everywhere.
"""

from __future__ import annotations

import math

import numpy as np

LARGEST_RATIO = 128.0
WIDEST = 1.025
CLOSE = 2.5e-3
"""Relative error of the slope that is worth no further widening: below -50 dB of what passes it."""
NUDGE = 3e-7
"""Beyond the rounding of float32 scales, below what any sum of 8-bit numbers can tell."""


def fitting(ratio: float, alpha: float, factor: int) -> tuple[int, int] | None:
    """The factors of a kernel for an input scale of ``ratio`` output scales and the slope ``alpha``.

    Returns:
        ``factor`` times the ratio, widened by at most 2.5 % or to the next whole number, and that by the
        slope; nothing where the kernel takes no such ratio or the slope vanishes.
    """
    # What is whole up to float32's rounding and the nudge is taken as it is.
    least = max(math.ceil(ratio * factor * (1 - 1e-6)), 1)
    candidates = range(least, max(math.floor(least * WIDEST), least) + 1)
    if candidates[-1] > LARGEST_RATIO * factor or not 0 < round(least * alpha) <= least:
        return None

    def error(k: int) -> float:
        return abs(round(k * alpha) / k - alpha) / alpha

    best = next((k for k in candidates if error(k) <= CLOSE), None)
    if best is None:
        best = min(candidates, key=error)
    return best, round(best * alpha)


def fitted_scale(behind: float, k: int, factor: int) -> float:
    """The input scale for a factor k: off it by a hair, to the side where halves round as in the graph."""
    return float(np.float32(behind * k / factor * (1 + NUDGE)))
