"""Spearman's rank correlation between a scalar output and the label, over the whole set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeopt.errors import DataError
from edgeopt.metrics.base import Metric
from edgeopt.metrics.mae import check_number


class Spearman(Metric):
    """Pearson's correlation of mean ranks (Spearman 1904): an aggregate, bootstrapped in pairs."""

    name = "spearman"
    per_sample = False

    def record(self, outputs: Mapping[str, Any], sample: Mapping[str, Any]) -> tuple[float, float]:
        """Returns output and label, which must be scalars."""
        output, label = self.select(outputs), np.asarray(sample["label"])
        if output.size != 1 or label.size != 1:
            raise DataError(
                "the metric spearman needs one number a sample as output and label, "
                f"and their shapes are {output.shape} and {label.shape}"
            )
        return float(output.item()), float(label.item())

    def aggregate(self, records: Sequence[Any]) -> float:
        """Returns the rank correlation; 0 where either side is constant."""
        values = np.asarray(records, np.float64)
        first, second = _ranks(values[:, 0]), _ranks(values[:, 1])
        spread = float(np.std(first) * np.std(second))
        if spread == 0:
            return 0.0
        return float(np.mean((first - first.mean()) * (second - second.mean()))) / spread

    def check_label(self, label: Any, index: int, classes: int | None, where: str) -> None:
        """Checks that a label is a number or an array of numbers."""
        check_number(label, index, self.name, where)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties at their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse], np.float64)


METRIC = Spearman()
