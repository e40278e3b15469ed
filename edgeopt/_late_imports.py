"""Imports sympy only when symbolic dimensions are computed with.

onnx_ir imports sympy for arithmetic on symbolic dimensions, which hardly any run of edgeopt does; the
import takes 1.3 of the 1.8 processor seconds of ``import onnx_ir`` and 32 of its 79 MB
(``python -X importtime -c "import onnx_ir"``, onnx-ir 1.1.0, sympy 1.14.0). The standard library's lazy
loader leaves both modules unread until one of their attributes is used.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_LATE = {"sympy", "onnx_ir._symbolic_shapes"}


class _LateFinder(PathFinder):
    """Finds the late modules, each once, and leaves every other module to the finders after it."""

    waiting = set(_LATE)

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns a spec that loads late for the modules of ``_LATE``, and ``None`` for all others."""
        if fullname not in cls.waiting:
            return None
        cls.waiting.discard(fullname)
        if not cls.waiting:
            sys.meta_path.remove(cls)
        spec = super().find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


def install() -> None:
    """Makes the next import of onnx_ir leave sympy unread; does nothing after it was imported."""
    if not _LATE & sys.modules.keys() and _LateFinder not in sys.meta_path and _LateFinder.waiting:
        sys.meta_path.insert(0, _LateFinder)
