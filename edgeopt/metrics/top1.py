"""Top-1 accuracy: the share of samples whose largest score is that of the label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeopt.errors import DataError
from edgeopt.metrics.base import Metric


class TopK(Metric):
    """The share of samples whose label is among the ``k`` largest scores.

    The output holds one score a class, [classes], axes of size 1 aside; the label is the index of a
    class. Equal scores rank by their index.
    """

    unit = "%"
    drop = (1.0, "pp")

    def __init__(self, k: int) -> None:
        self.k = k
        self.name = f"top{k}"

    def record(self, outputs: Mapping[str, Any], sample: Mapping[str, Any]) -> float:
        """Returns 1 where the label is among the best, else 0."""
        scores = self.select(outputs).squeeze()
        if scores.ndim != 1:
            raise DataError(
                f"the metric {self.name} needs one score a class, and the output has shape {scores.shape}",
                hint="another metric, or package.module:function",
            )
        label = int(np.asarray(sample["label"]).item())
        if not 0 <= label < len(scores):
            raise DataError(
                f"the label {label} is out of range: the model has {len(scores)} classes, "
                f"0 to {len(scores) - 1}"
            )
        score = scores[label]
        if not np.isfinite(score):
            return 0.0
        better = int(np.sum(scores > score)) + int(np.sum(scores[:label] == score))
        return float(better < self.k)

    def check_label(self, label: Any, index: int, classes: int | None, where: str) -> None:
        """Checks that a label is the index of a class."""
        value = np.asarray(label)
        if value.size != 1 or value.dtype.kind not in "biuf" or not float(value.item()).is_integer():
            raise DataError(
                f"the label of sample {index} is no class index: {label!r}",
                where=where,
                hint=f"the metric {self.name} needs one integer a sample",
            )
        number = int(value.item())
        if number < 0 or (classes is not None and number >= classes):
            known = "" if classes is None else f": the model has {classes} classes, 0 to {classes - 1}"
            raise DataError(f"the label {number} of sample {index} is out of range{known}", where=where)


METRIC = TopK(1)
