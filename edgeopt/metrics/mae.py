"""Mean absolute error between output and label."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeopt.errors import DataError
from edgeopt.metrics.base import Metric

LIMIT = 1e30
"""The error of an output that is NaN or infinite, so that a broken model is judged, not refused."""


class MeanAbsoluteError(Metric):
    """Per sample the mean of |output - label|, in the label's own unit."""

    name = "mae"
    higher_is_better = False
    drop = (1.0, "%")

    def record(self, outputs: Mapping[str, Any], sample: Mapping[str, Any]) -> float:
        """Returns the sample's mean absolute error; ``LIMIT`` where the output is not finite."""
        output, label = aligned(self.select(outputs), sample["label"], self.name)
        error = float(np.mean(np.abs(output - label)))
        return min(LIMIT, error) if math.isfinite(error) else LIMIT

    def check_label(self, label: Any, index: int, classes: int | None, where: str) -> None:
        """Checks that a label is a number or an array of numbers."""
        check_number(label, index, self.name, where)


def aligned(output: np.ndarray, label: Any, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Brings output and label to one shape, axes of size 1 aside, in float64.

    Raises:
        DataError: Their shapes differ.
    """
    first, second = np.asarray(output, np.float64).squeeze(), np.asarray(label, np.float64).squeeze()
    if first.shape != second.shape:
        raise DataError(
            f"the metric {metric} compares output and label, whose shapes differ: "
            f"{np.shape(output)} and {np.shape(label)}"
        )
    return first, second


def check_number(label: Any, index: int, metric: str, where: str) -> None:
    """Checks that a label is made of finite numbers.

    Raises:
        DataError: It is not.
    """
    value = np.asarray(label)
    if value.dtype.kind not in "biuf":
        raise DataError(
            f"the label of sample {index} is no number", where=where, hint=f"{metric} needs numbers"
        )
    if not np.isfinite(value).all():
        raise DataError(f"the label of sample {index} is NaN or infinite", where=where)


METRIC = MeanAbsoluteError()
