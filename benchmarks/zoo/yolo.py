"""Photographs and mean average precision for the YOLO detector.

Preprocessing: ``{resize: [352, 352], channels: BGR}``; metrics ``map50`` and ``map75`` of this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.zoo.coco import overlap, photographs, suppress

SIDE = 352
ANCHORS = np.array(
    [12.64, 19.39, 37.88, 51.48, 55.71, 138.31, 126.91, 78.23, 131.57, 214.55, 279.92, 258.87]
).reshape(2, 3, 2)


def calibrate() -> Iterator[dict[str, Any]]:
    """64 photographs of train2017."""
    return ({"image": image, "label": boxes} for image, boxes in photographs("calib"))


def evaluate() -> Iterator[dict[str, Any]]:
    """64 photographs of val2017."""
    return ({"image": image, "label": boxes} for image, boxes in photographs("eval"))


def map50(outputs: Mapping[str, Any], sample: Mapping[str, Any]) -> Any:
    """One image's record: detections matched to its boxes at an overlap of 0.5."""
    return matches(*decode(outputs), sample["label"], 0.5)


def map75(outputs: Mapping[str, Any], sample: Mapping[str, Any]) -> Any:
    """One image's record at an overlap of 0.75."""
    return matches(*decode(outputs), sample["label"], 0.75)


def decode(outputs: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turns the two grids into boxes [n, 4] (relative corners), scores [n] and classes [n]."""
    boxes, scores, classes = [], [], []
    for anchors, grid in zip(ANCHORS, (outputs["p16"], outputs["p32"]), strict=True):
        height, width = grid.shape[:2]
        stride = SIDE / height
        row, column = np.mgrid[:height, :width]
        for number, anchor in enumerate(anchors):
            raw = grid[..., 4 * number : 4 * number + 4]
            x, y = (raw[..., 0] * 2 - 0.5 + column) * stride, (raw[..., 1] * 2 - 0.5 + row) * stride
            half_w = (raw[..., 2] * 2) ** 2 * anchor[0] / 2
            half_h = (raw[..., 3] * 2) ** 2 * anchor[1] / 2
            score = grid[..., 12 + number][..., None] * grid[..., 15:]
            best = score.max(-1)
            chosen = best > 0.01
            corners = np.stack([x - half_w, y - half_h, x + half_w, y + half_h], -1)
            boxes.append(corners[chosen] / SIDE)
            scores.append(best[chosen])
            classes.append(score.argmax(-1)[chosen])
    box, score, kind = np.concatenate(boxes), np.concatenate(scores), np.concatenate(classes)
    kept = suppress(box + kind[:, None] * 4.0, score, 0.4)
    return box[kept], score[kept], kind[kept]


def matches(
    boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, truth: np.ndarray, threshold: float
) -> dict[int, tuple[np.ndarray, np.ndarray, int]]:
    """Per class the scores, which of them are right, and the number of true boxes."""
    record = {}
    for kind in np.union1d(classes, truth[:, 0].astype(int)):
        known = truth[truth[:, 0] == kind][:, 1:]
        found = np.flatnonzero(classes == kind)
        order = found[np.argsort(-scores[found], kind="stable")]
        right = np.zeros(len(order), bool)
        if len(known) and len(order):
            shared = overlap(boxes[order], known)
            for place in range(len(order)):
                best = int(shared[place].argmax())
                if shared[place, best] >= threshold:
                    right[place] = True
                    shared[place + 1 :, best] = -1
        record[int(kind)] = (scores[order], right, len(known))
    return record


def mean_average_precision(records: Sequence[Any]) -> float:
    """The mean over classes of the 101-point average precision, as COCO defines it."""
    by_class: dict[int, list[tuple[np.ndarray, np.ndarray, int]]] = {}
    for record in records:
        for kind, entry in record.items():
            by_class.setdefault(kind, []).append(entry)
    precisions = []
    for entries in by_class.values():
        positives = sum(count for _, _, count in entries)
        if positives == 0:
            continue
        scores = np.concatenate([entry[0] for entry in entries])
        right = np.concatenate([entry[1] for entry in entries])[np.argsort(-scores, kind="stable")]
        if not len(right):
            precisions.append(0.0)
            continue
        hits = np.cumsum(right)
        recall, precision = hits / positives, hits / np.arange(1, len(hits) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        first = np.searchsorted(recall, np.linspace(0, 1, 101))
        precisions.append(float(np.mean(np.append(envelope, 0.0)[first])))
    return float(np.mean(precisions)) if precisions else 0.0


for _metric in (map50, map75):
    _metric.aggregate = mean_average_precision
    _metric.resamples = 300
