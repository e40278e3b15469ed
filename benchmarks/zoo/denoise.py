"""Noisy grey images for the denoiser; metric ``psnr`` of this module, outputs clipped to 0..1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.zoo import zoo

SIGMA = 25


def calibrate() -> dict[str, np.ndarray]:
    """8 images, with noise of their own seed."""
    return _images("calib", 2)


def evaluate() -> dict[str, np.ndarray]:
    """32 images of BSD68."""
    return _images("eval", 1)


def psnr(outputs: Mapping[str, Any], sample: Mapping[str, Any]) -> float:
    """The peak signal-to-noise ratio of one image in dB."""
    error = np.clip(outputs["denoised"], 0, 1).squeeze() - sample["label"]
    return float(10 * np.log10(1 / np.mean(error**2)))


psnr.unit = "dB"


def _images(part: str, seed: int) -> dict[str, np.ndarray]:
    with np.load(zoo() / "data/denoise/gray256.npz") as arrays:
        clean = arrays[f"{part}_clean"].astype(np.float32) / 255
    noise = np.random.RandomState(seed).randn(*clean.shape).astype(np.float32)
    return {"noisy": (clean + noise * SIGMA / 255)[:, None], "label": clean}
