"""A bounded sample of the rows that products read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeopt.graph.execute import Feeds
from edgeopt.graph.observers import tapped

ROWS = 384
"""Rows kept of each value."""

ROWS_PER_CALL = 24
"""Rows kept of one call, evenly spaced."""


@dataclass(slots=True)
class Rows:
    """What was seen of a value's channels, which are its last axis.

    Attributes:
        low: The smallest number of each channel, zero at most.
        high: The largest, zero at least.
        sample: Rows [count, channels], float32.
    """

    low: np.ndarray
    high: np.ndarray
    sample: np.ndarray


def sample_rows(model: ir.Model, names: Sequence[str], calls: Iterable[Feeds]) -> dict[str, Rows]:
    """Returns rows of values [..., channels], spread evenly over each call; memory is bounded."""
    found: dict[str, Rows] = {}
    for name, array in tapped(model, names, calls):
        flat = np.asarray(array, np.float32).reshape(-1, array.shape[-1])
        if not len(flat):
            continue
        chosen = flat[np.linspace(0, len(flat) - 1, min(len(flat), ROWS_PER_CALL)).astype(np.int64)]
        low, high = np.minimum(flat.min(0), 0), np.maximum(flat.max(0), 0)
        if name not in found:
            found[name] = Rows(low, high, chosen.copy())
            continue
        rows = found[name]
        rows.low, rows.high = np.minimum(rows.low, low), np.maximum(rows.high, high)
        if len(rows.sample) < ROWS:
            rows.sample = np.concatenate([rows.sample, chosen])
    return found
