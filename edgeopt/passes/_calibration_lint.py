"""What is suspicious about calibration data, in plain sentences for the screen and the report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import onnx_ir as ir

from edgeopt.graph.execute import Feeds
from edgeopt.graph.names import original_names
from edgeopt.graph.observers import Observer
from edgeopt.graph.thresholds import Method
from edgeopt.passes.base import Samples

FEW = 16
"""Fewer samples than this hardly show what a model will meet."""

OUTLIER = 2.0
"""One sample sets a range when it reaches so many times as far as any other."""

LOOKED_AT = 32
"""Samples of either part whose inputs are compared."""


def lint(
    model: ir.Model,
    observers: Mapping[str, Observer],
    method: Method,
    calibration: Samples,
    validation: Samples | None,
    limit: int,
    percentile: float,
) -> list[str]:
    """Lists what a user should look at before trusting the ranges.

    Args:
        model: The model that was observed.
        observers: What was seen, by value.
        method: How ranges were chosen.
        calibration: The samples.
        validation: The validation samples, where they may be read.
        limit: How many samples were used at most.
        percentile: Per cent of the numbers that ranges hold, where the method is that.
    """
    found: list[str] = []
    count = min(len(calibration), limit)
    if count < FEW:
        noun = "sample is" if count == 1 else "samples are"
        found.append(
            f"{count} calibration {noun} few: ranges may miss what the model will meet (100 are usual)"
        )
    producers = {output.name: node for node in model.graph for output in node.outputs}
    found += _outliers(observers, method, percentile, producers)
    found += _dead(observers, producers)
    if validation is not None and len(validation) and validation.digest != calibration.digest:
        found += unlike(calibration.feeds(), validation.feeds(), "validation")
    return found


def _place(name: str, producers: Mapping[str | None, ir.Node]) -> str:
    """The user's own name of the node that makes a value, or the input's name."""
    node = producers.get(name)
    if node is None:
        return f"the input {name!r}"
    return (original_names(node) or (node.name or name,))[-1]


def _outliers(
    observers: Mapping[str, Observer],
    method: Method,
    percentile: float,
    producers: Mapping[str | None, ir.Node],
) -> Iterator[str]:
    """Ranges that one sample alone has set."""
    worst: list[tuple[float, str]] = []
    for name, observer in observers.items():
        first, second = observer.peaks
        if observer.entries < FEW or second <= 0 or first < OUTLIER * second:
            continue
        low, high = observer.range(method, ir.DataType.UINT8, percentile=percentile)
        if max(-low, high) > 0.9 * first:
            worst.append((first / second, name))
    if not worst:
        return
    factor, name = max(worst)
    others = f" (and those of {len(worst) - 1} other values)" if len(worst) > 1 else ""
    yield (
        f"one calibration sample alone sets the range of {_place(name, producers)}{others}: it reaches "
        f"{factor:.1f} times as far as any other; the observers percentile and mse cut it off"
    )


def _dead(observers: Mapping[str, Observer], producers: Mapping[str | None, ir.Node]) -> Iterator[str]:
    """Channels that never vary."""
    dead: list[tuple[int, int, str]] = []
    looked = 0
    for name, observer in observers.items():
        if observer.channels is None or observer.channel_entries < FEW:
            continue
        low, high = observer.channels
        count = int((low == high).sum())
        if 0 < count < len(low):
            looked = max(looked, observer.channel_entries)
            dead.append((count, len(low), name))
    if dead:
        count, size, name = max(dead)
        total = sum(item[0] for item in dead)
        where = f"{count} of {size} in {_place(name, producers)}"
        yield (
            f"channels never vary on the {looked} samples looked at: {total} ({where}); dead in the model, "
            "or the samples do not reach them"
        )


@dataclass(frozen=True, slots=True)
class _Statistics:
    mean: float
    deviation: float
    low: float
    high: float


def unlike(calibration: Iterable[Feeds], others: Iterable[Feeds], part: str) -> Iterator[str]:
    """Says which inputs look prepared in another way than those of another part of the data.

    Args:
        calibration: Calls; the first ``LOOKED_AT`` are looked at.
        others: Calls of the other part.
        part: What that part is called.
    """
    ours, theirs = _statistics(calibration), _statistics(others)
    for name, one in ours.items():
        other = theirs.get(name)
        if other is None:
            continue
        spread = max(one.deviation, other.deviation)
        least = min(one.deviation, other.deviation)
        if spread == 0 or (abs(one.mean - other.mean) <= spread and spread <= 3 * least):
            continue
        yield (
            f"the calibration samples look unlike the {part} samples: {name!r} is "
            f"{one.mean:.3g} ± {one.deviation:.3g} from {one.low:.3g} to {one.high:.3g} here and "
            f"{other.mean:.3g} ± {other.deviation:.3g} from {other.low:.3g} to {other.high:.3g} there; "
            "are both prepared in the same way?"
        )


def _statistics(calls: Iterable[Feeds]) -> dict[str, _Statistics]:
    seen: dict[str, list[tuple[int, float, float, float, float]]] = {}
    for feeds in islice(calls, LOOKED_AT):
        for name, array in feeds.items():
            if array.dtype.kind == "f" and array.size:
                wide = array.astype(np.float64)
                seen.setdefault(name, []).append(
                    (array.size, wide.sum(), np.square(wide).sum(), wide.min(), wide.max())
                )
    found = {}
    for name, parts in seen.items():
        sizes, sums, squares, lows, highs = (np.array(column) for column in zip(*parts, strict=True))
        mean = sums.sum() / sizes.sum()
        variance = max(squares.sum() / sizes.sum() - mean**2, 0.0)
        found[name] = _Statistics(float(mean), float(variance**0.5), float(lows.min()), float(highs.max()))
    return found
