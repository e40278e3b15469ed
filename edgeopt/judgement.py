"""What the evaluation data say about an artifact: figures, drops and their 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgeopt import intervals
from edgeopt.evidence import Evidence
from edgeopt.metrics.base import Metric


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the evaluation data say about an artifact.

    Attributes:
        original: The metric of the float original; ``None`` without a metric or an original.
        artifact: The metric of the artifact; ``None`` without a metric.
        drop: ``accuracy_drop``, positive where the artifact is worse: in pp, dB or the metric's own
            unit, or in % of the original where that is the metric's way.
        relative_drop: The same in % of the original, where it was asked for.
        absolute_drop: The same as a difference.
        fidelity: In dB; with a harness over all calls that it makes on the original, each also given to
            the artifact.
        agreement: The share of samples for which both name the same class.
        notes: Sentences for the report.
    """

    original: Evidence | None = None
    artifact: Evidence | None = None
    drop: Evidence | None = None
    relative_drop: Evidence | None = None
    absolute_drop: Evidence | None = None
    fidelity: Evidence | None = None
    agreement: Evidence | None = None
    notes: tuple[str, ...] = ()

    def evidence(self, drop_unit: str | None = None) -> dict[str, Evidence]:
        """Returns the evidence by quantity, as ``budget.judge_all`` takes it.

        Args:
            drop_unit: The unit of the budget on the drop: ``%`` for one relative to the original.
        """
        drop = self.drop
        if drop_unit is not None:
            drop = self.relative_drop if drop_unit == "%" else self.absolute_drop
        found = [self.artifact, drop, self.fidelity, self.agreement]
        return {item.quantity: item for item in found if item is not None}

    def to_json(self) -> dict[str, Any]:
        """Returns the judgement as plain JSON data."""
        figures = {name: getattr(self, name) for name in _FIGURES}
        found: dict[str, Any] = {
            name: None if figure is None else figure.to_json() for name, figure in figures.items()
        }
        return {**found, "notes": list(self.notes)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Judgement:
        """Restores a judgement from the data that ``to_json`` returned."""
        figures = {
            name: None if data.get(name) is None else Evidence.from_json(data[name]) for name in _FIGURES
        }
        return cls(notes=tuple(data.get("notes", ())), **figures)


_FIGURES = ("original", "artifact", "drop", "relative_drop", "absolute_drop", "fidelity", "agreement")


def metric_evidence(metric: Metric, records: Sequence[Any], stamp: Evidence, seed: int) -> Evidence:
    """The metric of one model with its interval."""
    scale = 100.0 if metric.unit == "%" else 1.0
    interval: tuple[float, float] | None
    if _binary(metric, records):
        interval = intervals.wilson(float(np.sum(records)), len(records))
    elif metric.per_sample:
        interval = intervals.mean(np.asarray(records, np.float64))
    else:
        interval = intervals.bootstrap(
            lambda index: metric.aggregate([records[i] for i in index]),
            len(records),
            seed=seed,
            resamples=metric.resamples,
        )
    return replace(
        stamp,
        quantity=metric.name,
        value=scale * metric.aggregate(records),
        unit=metric.unit,
        interval=_scaled(interval, scale),
        detail={"higher_is_better": metric.higher_is_better},
    )


def drop_evidence(
    metric: Metric, original: Sequence[Any], artifact: Sequence[Any], stamp: Evidence, seed: int
) -> Evidence:
    """How much worse the artifact is, as a paired difference."""
    sign = 1.0 if metric.higher_is_better else -1.0
    scale = 100.0 if metric.unit == "%" else 1.0
    n = len(original)
    detail: dict[str, Any] = {"metric": metric.name}
    interval: tuple[float, float] | None
    if _binary(metric, original) and _binary(metric, artifact):
        first, second = np.asarray(original, bool), np.asarray(artifact, bool)
        lost, won = int(np.sum(first & ~second)), int(np.sum(second & ~first))
        detail |= {"lost": lost, "won": won} if sign > 0 else {"lost": won, "won": lost}
        interval = intervals.paired_proportions(*((lost, won) if sign > 0 else (won, lost)), n)
        value = sign * (lost - won) / n
    elif metric.per_sample:
        differences = sign * (np.asarray(original, np.float64) - np.asarray(artifact, np.float64))
        interval, value = intervals.mean(differences), float(differences.mean())
    else:

        def difference(index: np.ndarray) -> float:
            before = metric.aggregate([original[i] for i in index])
            return sign * (before - metric.aggregate([artifact[i] for i in index]))

        interval = intervals.bootstrap(difference, n, seed=seed, resamples=metric.resamples)
        value = sign * (metric.aggregate(original) - metric.aggregate(artifact))
    unit = "pp" if metric.unit == "%" else metric.unit
    return replace(
        stamp,
        quantity="accuracy_drop",
        value=scale * value,
        unit=unit,
        interval=_scaled(interval, scale),
        detail=detail,
    )


def relative_drop_evidence(
    metric: Metric, original: Sequence[Any], artifact: Sequence[Any], stamp: Evidence, seed: int
) -> Evidence | None:
    """How much worse the artifact is in % of the original; ``None`` where the original is zero."""
    sign = 1.0 if metric.higher_is_better else -1.0
    arrays = [np.asarray(part, np.float64) for part in (original, artifact)] if metric.per_sample else []

    def value(index: np.ndarray) -> float:
        if arrays:
            before, after = float(arrays[0][index].mean()), float(arrays[1][index].mean())
        else:
            before = metric.aggregate([original[i] for i in index])
            after = metric.aggregate([artifact[i] for i in index])
        return float("nan") if before == 0 else 100 * sign * (before - after) / abs(before)

    whole = value(np.arange(len(original)))
    if not np.isfinite(whole):
        return None
    return replace(
        stamp,
        quantity="accuracy_drop",
        value=whole,
        unit="%",
        interval=intervals.bootstrap(value, len(original), seed=seed, resamples=metric.resamples),
        detail={"metric": metric.name, "relative": True},
    )


def _binary(metric: Metric, records: Sequence[Any]) -> bool:
    """Whether the metric is a proportion: shares of 1 that are all 0 or 1."""
    return metric.unit == "%" and metric.per_sample and all(record in (0, 1) for record in records)


def _scaled(interval: tuple[float, float] | None, scale: float) -> tuple[float, float] | None:
    return None if interval is None else (scale * interval[0], scale * interval[1])
