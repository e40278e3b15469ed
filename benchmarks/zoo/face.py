"""Photographs for the face detector, which has no labels: judge its fidelity.

Preprocessing: ``{resize: [240, 320], scale: 1, mean: 127, std: 128}``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks.zoo.coco import photographs, suppress


def calibrate() -> Iterator[dict[str, np.ndarray]]:
    """64 photographs of train2017."""
    return ({"input": image} for image, _ in photographs("calib"))


def evaluate() -> Iterator[dict[str, np.ndarray]]:
    """64 photographs of val2017."""
    return ({"input": image} for image, _ in photographs("eval"))


def faces(outputs: Mapping[str, Any], sample: Mapping[str, Any]) -> int:
    """The number of faces found in one photograph: a count to compare, not an accuracy."""
    scores, boxes = outputs["scores"][:, 1], outputs["boxes"]
    likely = scores > 0.7
    return len(suppress(boxes[likely], scores[likely], 0.3))


faces.aggregate = sum
faces.needs_labels = False
