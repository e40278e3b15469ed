"""edgeopt ships trained models to ARM edge devices: smaller, faster, proven within their budgets.

edgeopt.optimize("model.onnx")                              exact passes alone
edgeopt.convert("model.onnx", "model.tflite")               to another format, for no device in particular
edgeopt.compile("model.onnx", "raspberry-pi-4", data="data/", metric="top1")
edgeopt.compile(module, "raspberry-pi-4", example=(tensor,))   a torch.nn.Module
edgeopt.open_artifact("build/model/raspberry-pi-4/onnxruntime").open()
edgeopt.EdgeoptError                                        base of every error raised
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from edgeopt import _late_imports

__version__ = "0.1.0"

_late_imports.install()

# onnxruntime reports its use to Microsoft unless it finds this when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from edgeopt.artifact import open_artifact
    from edgeopt.choosing import compile
    from edgeopt.conversion import convert
    from edgeopt.errors import EdgeoptError
    from edgeopt.optimization import optimize
    from edgeopt.outcome import Outcome

__all__ = ["EdgeoptError", "Outcome", "__version__", "compile", "convert", "open_artifact", "optimize"]

_HOMES = {
    "EdgeoptError": "edgeopt.errors",
    "Outcome": "edgeopt.outcome",
    "compile": "edgeopt.choosing",
    "convert": "edgeopt.conversion",
    "open_artifact": "edgeopt.artifact",
    "optimize": "edgeopt.optimization",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for, so that ``import edgeopt`` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'edgeopt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
