"""Code that a user names as ``package.module:function``: data, metrics and harnesses.

It is imported from the user's own path: the folder of the recipe, the current folder, then Python's
path. ``--no-code`` refuses it, for a job that runs on a stranger's changes.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from edgeopt.errors import UserError, nearest

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_code(text: str) -> bool:
    """Whether a text has the form ``package.module:function``."""
    return _NAME.fullmatch(text) is not None


def load(name: str, *, base: Path | None = None, allowed: bool = True) -> Any:
    """Imports what ``package.module:function`` names.

    Args:
        name: The name.
        base: The folder of the recipe, searched first.
        allowed: False under ``--no-code``.

    Raises:
        UserError: It is refused, cannot be imported or does not exist.
    """
    if not allowed:
        raise UserError(
            f"{name!r} names code, and --no-code refuses it",
            hint="give a file of arrays and a built-in metric, or run without --no-code",
        )
    module_name, _, attribute = name.partition(":")
    folders = [str(folder.resolve()) for folder in ([base] if base else []) + [Path.cwd()]]
    added = [folder for folder in dict.fromkeys(folders) if folder not in sys.path]
    sys.path[:0] = added
    try:
        module = importlib.import_module(module_name)
    except Exception as failure:
        raise UserError(
            f"cannot import {module_name!r}: {type(failure).__name__}: {failure}",
            where=name,
            hint="the module is looked for beside the recipe, in the current folder and on Python's path",
        ) from failure
    finally:
        # first while it is imported, then last: what it imports later is found, and shadows nothing
        for folder in added:
            if folder in sys.path:
                sys.path.remove(folder)
        sys.path += added
    if not hasattr(module, attribute):
        raise UserError(
            f"the module {module_name!r} has no {attribute!r}",
            where=getattr(module, "__file__", None),
            nearest=nearest(attribute, vars(module)),
        )
    return getattr(module, attribute)


def digest(function: Any) -> str:
    """SHA-256 of the source file that a function comes from, with its name; or its own ``digest``."""
    own = getattr(function, "digest", None)
    if isinstance(own, str):
        return own
    name = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', repr(type(function)))}"
    try:
        text = Path(inspect.getsourcefile(function) or "").read_bytes()
    except (OSError, TypeError):
        text = b""
    return hashlib.sha256(name.encode() + b"\0" + text).hexdigest()
