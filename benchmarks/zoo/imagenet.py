"""ImageNet samples for the tiny Darknet; metrics ``top1`` and ``top5``.

Images are uint8 [256, 256, 3]. Preprocessing: ``{crop: 224}``. The folder ``data/imagenet_samples`` is
itself data that edgeopt reads: it has a labels file with a column split.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.zoo import zoo


def calibrate() -> Iterator[dict[str, Any]]:
    """200 images."""
    return _images("calib")


def evaluate() -> Iterator[dict[str, Any]]:
    """400 images."""
    return _images("eval")


def _images(part: str) -> Iterator[dict[str, Any]]:
    folder = zoo() / "data/imagenet_samples"
    with (folder / "labels.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == part]
    for row in rows:
        pixels = np.asarray(Image.open(folder / "images" / row["file"]).convert("RGB"))
        yield {"input": pixels, "label": int(row["label"])}
