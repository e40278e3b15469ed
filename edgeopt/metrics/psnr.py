"""Peak signal-to-noise ratio between an output image and the label."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeopt.metrics.base import Metric
from edgeopt.metrics.mae import aligned, check_number

LIMIT = 120.0
"""The figure, in dB, of an output that equals its label; its negative where the output is not finite."""


class Psnr(Metric):
    """Per sample 10 · log10(peak² / mean squared error), in dB.

    The peak is 255 where labels are uint8, else 1; outputs are not clipped.
    """

    name = "psnr"
    unit = "dB"
    drop = (0.2, "dB")

    def record(self, outputs: Mapping[str, Any], sample: Mapping[str, Any]) -> float:
        """Returns the sample's ratio in dB."""
        output, label = aligned(self.select(outputs), sample["label"], self.name)
        peak = 255.0 if np.asarray(sample["label"]).dtype == np.uint8 else 1.0
        error = float(np.mean(np.square(output - label))) / (peak * peak)
        if not math.isfinite(error):
            return -LIMIT
        return LIMIT if error == 0 else float(np.clip(-10 * math.log10(error), -LIMIT, LIMIT))

    def check_label(self, label: Any, index: int, classes: int | None, where: str) -> None:
        """Checks that a label is a number or an array of numbers."""
        check_number(label, index, self.name, where)


METRIC = Psnr()
