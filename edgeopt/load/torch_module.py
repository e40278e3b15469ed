"""PyTorch: modules, functions that build them, and ``torch.export`` archives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeopt.errors import MissingExtra
from edgeopt.load.shapes import Shapes


def build(text: str) -> tuple[Any, Any]:
    """Calls ``package.module:build`` and returns the module and its example inputs, if any."""
    raise MissingExtra("torch", "torch", f"building {text}")


def export_module(
    module: Any, *, example: Any, shapes: Shapes | None, weights: str | Path | None
) -> ir.Model:
    """Exports a module."""
    raise MissingExtra("torch", "torch", "exporting a module")


def export_archive(path: Path) -> ir.Model:
    """Exports a ``torch.export`` archive."""
    raise MissingExtra("torch", "torch", f"reading {path}")
