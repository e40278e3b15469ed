"""Data, metrics and harnesses for a zoo of real models, written as a user writes them.

Each module has ``calibrate`` and ``evaluate``, and where the model needs them a metric and ``run``, the
harness. The zoo's folder is named by EDGEOPT_ZOO, or lies at ``../shared/zoo`` beside the repository.
"""

from __future__ import annotations

import os
from pathlib import Path


def zoo() -> Path:
    """Returns the zoo's folder."""
    named = os.environ.get("EDGEOPT_ZOO")
    return Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "zoo"


def model_file(name: str) -> Path:
    """Returns a model's file: in the zoo, or where EDGEOPT_ZOO_MADE names a folder of models made here."""
    made = os.environ.get("EDGEOPT_ZOO_MADE")
    if made and (Path(made) / f"{name}.onnx").is_file():
        return Path(made) / f"{name}.onnx"
    return zoo() / "models" / f"{name}.onnx"
