"""CIFAR-10 images for the ResNets, MobileNetV3 and the compact transformer; metric ``top1``.

Images are uint8 NHWC. Preprocessing of the ResNets and MobileNetV3:
``{mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}``, of the transformer:
``{scale: 1, mean: [125.3, 123.0, 113.9], std: [63.0, 62.1, 66.7]}``.
"""

from __future__ import annotations

import numpy as np

from benchmarks.zoo import zoo


def calibrate() -> dict[str, np.ndarray]:
    """The 2000 training images set aside."""
    return _images("calib")


def evaluate() -> dict[str, np.ndarray]:
    """The 6000 test images."""
    return _images("eval")


def _images(part: str) -> dict[str, np.ndarray]:
    with np.load(zoo() / "data/cifar10_jpeg/cifar10.npz") as arrays:
        return {"input": arrays[f"{part}_x"], "label": arrays[f"{part}_y"]}
