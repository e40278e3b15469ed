"""The float operators that stand between integer ones or after them in a mixed program, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgeopt.targets.tflite.program import Operation

FUNCTIONS: Mapping[str, Callable[..., np.ndarray]] = {
    "ADD": np.add,
    "SUB": np.subtract,
    "MUL": np.multiply,
    "DIV": np.divide,
    "MAXIMUM": np.maximum,
    "MINIMUM": np.minimum,
    "ABS": np.abs,
    "NEG": np.negative,
    "EXP": np.exp,
    "LOG": np.log,
    "SQRT": np.sqrt,
    "LOGISTIC": lambda x: 1 / (1 + np.exp(-x)),
    "TANH": np.tanh,
    "MEAN": np.mean,
}
BOUNDS = {0: (-np.inf, np.inf), 1: (0.0, np.inf), 2: (-1.0, 1.0), 3: (0.0, 6.0)}


def compute(operation: Operation, arrays: list[np.ndarray]) -> np.ndarray:
    """Computes a float32 operation, elementwise with its fused activation or a mean.

    Raises:
        KeyError: The operator is not stated here.
    """
    if operation.code == "MEAN":
        axes = tuple(int(axis) for axis in np.atleast_1d(arrays[1]))
        keep = bool(operation.options.get("keepDims"))
        return np.asarray(arrays[0].mean(axis=axes, keepdims=keep, dtype=np.float32))
    low, high = BOUNDS[int(operation.options.get("fusedActivationFunction", 0))]
    return np.asarray(np.clip(FUNCTIONS[operation.code](*arrays), low, high), np.float32)
