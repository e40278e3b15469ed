"""The places where a model or artifact runs, found by the first word of ``--on``.

``host``, ``emulator``, ``ssh://user@board`` and ``adb:SERIAL`` are the classes ``Host``, ``Emulator``,
``Ssh`` and ``Adb`` of the modules of those names. Installed packages add theirs with the entry point group
``edgeopt.runners``.
"""

from __future__ import annotations

import importlib
import inspect
import re
from importlib.metadata import entry_points
from importlib.util import find_spec

from edgeopt.errors import UserError, nearest
from edgeopt.runners.base import Footprint, Runner

__all__ = ["Footprint", "Runner", "find"]

EXAMPLES = ("host", "emulator", "ssh://user@board", "adb:SERIAL")


def find(where: str) -> Runner:
    """Makes the runner that ``--on`` names; it connects when first used.

    Raises:
        UserError: There is none of that name, or its address is not valid.
    """
    word = re.split("[:/?]", where, maxsplit=1)[0]
    for point in entry_points(group="edgeopt.runners"):
        if point.name == word:
            foreign: type[Runner] = point.load()
            return foreign(where)
    if re.fullmatch("[a-z]+", word) and find_spec(f"edgeopt.runners.{word}"):
        module = importlib.import_module(f"edgeopt.runners.{word}")
        found = getattr(module, word.capitalize(), None)
        if inspect.isclass(found) and issubclass(found, Runner) and not inspect.isabstract(found):
            made: Runner = found(where)
            return made
    known = [example.split(":")[0] for example in EXAMPLES]
    raise UserError(
        f"there is no runner {where!r}", nearest=nearest(word, known), hint=f"--on {', '.join(EXAMPLES)}"
    )
