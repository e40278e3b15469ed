"""Whether a model, or its float form, computes what the original does.

A pass that corrects weights aims at the model without its quantization. Once biases were corrected or
weights trained, that float form is not the original's any more, and there is nothing true to aim at.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeopt.fidelity import Fidelity
from edgeopt.graph.execute import Executor
from edgeopt.graph.quantization import with_rounded_constants

SAME = 50.0
"""From this fidelity in dB on the float form computes what the original does."""


def estranged(twin: float) -> str | None:
    """Returns why a float form of this fidelity in dB to the original is no target; ``None`` if it is one."""
    return f"its float form is only {twin:.0f} dB from the original" if twin < SAME else None


@dataclass(slots=True)
class Judge:
    """Compares models with the original on calls that are held, with the original's outputs.

    Attributes:
        calls: The inputs of every call.
        wanted: The original's outputs.
    """

    calls: list[dict[str, np.ndarray]]
    wanted: list[dict[str, np.ndarray]]

    @classmethod
    def of(cls, original: ir.Model, calls: Iterable[dict[str, np.ndarray]]) -> Judge:
        """Runs the original."""
        held = list(calls)
        with Executor(original, optimize=True) as executor:
            return cls(held, [executor.run(call) for call in held])

    def decibels(self, model: ir.Model) -> float:
        """Returns the fidelity of a model to the original in dB."""
        found = Fidelity()
        with Executor(with_rounded_constants(model)) as executor:
            for call, wanted in zip(self.calls, self.wanted, strict=True):
                found.add(wanted, executor.run(call))
        return found.balanced
