"""COCO photographs, as files of any size, with their boxes [n, 5]: class and relative corners."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from benchmarks.zoo import zoo


def photographs(part: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields uint8 RGB images [h, w, 3] and their boxes."""
    for path in sorted((zoo() / "data/coco_det" / part).glob("*.jpg")):
        rows = [[float(word) for word in line.split()] for line in path.with_suffix(".txt").open()]
        boxes = np.array(rows).reshape(-1, 5)
        half = boxes[:, 3:] / 2
        corners = np.concatenate([boxes[:, :1], boxes[:, 1:3] - half, boxes[:, 1:3] + half], axis=1)
        yield np.asarray(Image.open(path).convert("RGB")), corners


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [n, 4] and [m, 4], as [n, m]."""
    upper = np.maximum(first[:, None, :2], second[None, :, :2])
    lower = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.prod(np.clip(lower - upper, 0, None), axis=-1)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1) for boxes in (first, second)]
    return shared / (areas[0][:, None] + areas[1][None] - shared + 1e-9)


def suppress(boxes: np.ndarray, scores: np.ndarray, threshold: float, most: int = 100) -> list[int]:
    """Greedy non-maximum suppression: the indices kept, best first."""
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order) and len(kept) < most:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        order = rest[overlap(boxes[best : best + 1], boxes[rest])[0] <= threshold]
    return kept
