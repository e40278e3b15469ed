"""The 8-bit numbers that an image was made of, found again in float inputs.

Preprocessing maps a pixel u = 0 .. 255 of channel c to ``offset_c + step_c u``, mostly as (u / 255 - mean) /
deviation. So a channel holds at most 256 different numbers at equal distances, and where they lie can be read
off the numbers themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

LEVELS = 256
"""What 8 bits tell apart."""

FEWEST = 128
"""A channel whose numbers span fewer steps is no 8-bit image."""

LOOKED_AT = 2**17
"""So many numbers of a channel of one call are sorted; all are compared with what was found in these."""

OFF = 0.02
"""A number lies on a level up to this share of a step; float32 arithmetic strays by less than 0.001."""


@dataclass(frozen=True, slots=True)
class Lattice:
    """Equally spaced numbers.

    Attributes:
        step: Their distance.
        offset: The smallest one seen.
        count: The largest one seen is ``offset + (count - 1) step``.
    """

    step: float
    offset: float
    count: int

    def holds(self, numbers: np.ndarray) -> bool:
        """Whether all numbers lie on its levels, or on levels beyond them."""
        levels = (numbers - np.float32(self.offset)) * np.float32(1 / self.step)
        levels -= np.rint(levels)
        return bool(np.abs(levels).max(initial=0.0) < OFF)


def fitted(numbers: np.ndarray) -> Lattice | None:
    """The widest lattice that numbers lie on; ``None`` where it would need more than 256 levels.

    Args:
        numbers: float32 of any shape.
    """
    values = np.unique(numbers)
    if len(values) > 4 * LEVELS or len(values) < 2:  # rounding may split a level, but not into many
        return None
    values = values.astype(np.float64)
    gaps = np.diff(values)
    close = (values[-1] - values[0]) / LEVELS / 10
    if not np.isfinite(close) or not (gaps > close).any():
        return None
    step = float(gaps[gaps > close].min())
    levels = np.rint((values - values[0]) / step)
    if levels[-1] >= LEVELS:
        return None
    slope, offset = np.polyfit(levels, values, 1)
    if np.abs(values - (offset + slope * levels)).max() > OFF * slope:
        return None
    return Lattice(float(slope), float(offset), int(levels[-1]) + 1)


def channel_lattices(arrays: Iterable[np.ndarray]) -> list[Lattice] | None:
    """Finds the lattice of every channel over all arrays; ``None`` where one has none.

    Args:
        arrays: float32 of shape [batch, channels, ...], one call after another.
    """
    found: list[Lattice] = []
    for array in arrays:
        channels = [np.ascontiguousarray(array[:, index]).reshape(-1) for index in range(array.shape[1])]
        if found and len(found) != len(channels):
            return None
        before: list[Lattice | None] = [*found] or [None] * len(channels)
        found = []
        for numbers, known in zip(channels, before, strict=True):
            lattice = _widened(known, numbers)
            if lattice is None:
                return None
            found.append(lattice)
    if not found or any(lattice.count < FEWEST for lattice in found):
        return None
    return found


def _widened(known: Lattice | None, numbers: np.ndarray) -> Lattice | None:
    """The lattice that also holds further numbers."""
    if known is None or not known.holds(numbers):
        some = numbers[:: max(1, numbers.size // LOOKED_AT)]
        seen = [] if known is None else [known.offset + known.step * np.arange(known.count)]
        known = fitted(np.concatenate([*seen, some]).astype(np.float32))
        if known is None or not known.holds(numbers):
            return None
    low = min(int(np.rint((float(numbers.min()) - known.offset) / known.step)), 0)
    high = max(int(np.rint((float(numbers.max()) - known.offset) / known.step)), known.count - 1)
    if high - low >= LEVELS:
        return None
    return Lattice(known.step, known.offset + low * known.step, high - low + 1)
