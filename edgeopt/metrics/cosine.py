"""Cosine similarity between output and label, the mean over samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeopt.metrics.base import Metric
from edgeopt.metrics.mae import aligned, check_number


class Cosine(Metric):
    """Per sample the cosine of the angle between output and label; 0 where either is zero or not finite."""

    name = "cosine"

    def record(self, outputs: Mapping[str, Any], sample: Mapping[str, Any]) -> float:
        """Returns the sample's cosine similarity."""
        output, label = aligned(self.select(outputs), sample["label"], self.name)
        norm = float(np.linalg.norm(output) * np.linalg.norm(label))
        return 0.0 if norm == 0 or not math.isfinite(norm) else float(np.vdot(output, label)) / norm

    def check_label(self, label: Any, index: int, classes: int | None, where: str) -> None:
        """Checks that a label is a number or an array of numbers."""
        check_number(label, index, self.name, where)


METRIC = Cosine()
