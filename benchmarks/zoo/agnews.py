"""News texts as token ids for the text transformer; metric ``top1``."""

from __future__ import annotations

import numpy as np

from benchmarks.zoo import zoo


def calibrate() -> dict[str, np.ndarray]:
    """500 training texts."""
    return _texts("calib")


def evaluate() -> dict[str, np.ndarray]:
    """7600 test texts."""
    return _texts("eval")


def _texts(part: str) -> dict[str, np.ndarray]:
    with np.load(zoo() / "data/agnews/agnews.npz") as arrays:
        return {"ids": arrays[f"{part}_ids"].astype(np.int64), "label": arrays[f"{part}_label"]}
