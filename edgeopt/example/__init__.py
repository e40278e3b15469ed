"""The built-in example: handwritten digits, classified by a network that is easily hurt by int8.

``ATTRIBUTION`` beside this file says where the data come from, ``scripts/train_digits.py`` in the
repository makes all of it.
"""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).parent
"""A folder with ``calibration.npz`` (200 samples) and ``evaluation.npz`` (597), never trained on.

Both hold ``image``, float32 [n, 1, 8, 8] in 0..1, and ``label``, int64 [n].
"""

MODEL = DATA / "model.onnx"
"""A depthwise-separable network: ``image`` [batch, 1, 8, 8] to ``logits`` [batch, 10], opset 17."""

DESCRIPTION = "a depthwise-separable network for handwritten digits"

METRIC = "top1"
"""The metric that judges it."""
