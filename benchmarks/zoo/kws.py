"""Spoken words as MFCC features for the keyword-spotting networks; metric ``top1``."""

from __future__ import annotations

import numpy as np

from benchmarks.zoo import zoo


def calibrate() -> dict[str, np.ndarray]:
    """200 clips."""
    return _clips(False)


def evaluate() -> dict[str, np.ndarray]:
    """800 clips."""
    return _clips(True)


def _clips(evaluation: bool) -> dict[str, np.ndarray]:
    with np.load(zoo() / "data/kws_mlperf_tiny/kws01.npz") as arrays:
        chosen = arrays["is_eval"] == evaluation
        return {"features": arrays["features"][chosen], "label": arrays["label"][chosen]}
