"""Whether a model, or its float form, computes what the original does.

A pass that corrects weights aims at the model without its quantization. Once biases were corrected or
weights trained, that float form is not the original's any more, and there is nothing true to aim at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeopt.fidelity import Fidelity
from edgeopt.graph.execute import Executor
from edgeopt.graph.observers import activation_bytes
from edgeopt.graph.quantization import with_rounded_constants
from edgeopt.passes._walk import Lane, lane

SAME = 50.0
"""From this fidelity in dB on the float form computes what the original does."""

HELD = 2**27
"""Bytes of values in the middle of the model that judging again may keep."""


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

    def limited(self, count: int) -> Judge:
        """Returns one that compares on fewer calls, spread over all of them."""
        if len(self.calls) <= count:
            return self
        chosen = [index * len(self.calls) // count for index in range(count)]
        return Judge([self.calls[index] for index in chosen], [self.wanted[index] for index in chosen])

    def decibels(self, model: ir.Model) -> float:
        """Returns the fidelity of a model to the original in dB."""
        with Executor(with_rounded_constants(model)) as executor:
            return self.of_outputs(executor.stream(self.calls))

    def of_outputs(self, made: Iterable[Mapping[str, np.ndarray]]) -> float:
        """Returns the fidelity in dB of a model that makes these outputs of the calls."""
        found = Fidelity()
        for wanted, outputs in zip(self.wanted, made, strict=True):
            found.add(wanted, outputs)
        return found.balanced


@dataclass(slots=True)
class Course:
    """Judges a model that is changed from front to back; what changes no more is not run again.

    Attributes:
        judge: Has the calls, and what the original makes of them.
        lane: The model on these calls, at the place up to which it has been run.
        settled: The nodes behind that place that change no more.
    """

    judge: Judge
    lane: Lane
    settled: list[str]

    @classmethod
    def of(cls, judge: Judge, model: ir.Model) -> Course:
        """Stands at the beginning of a model, which may be changed in place."""
        return cls(judge, lane(model, judge.calls), [])

    def decibels(self) -> float:
        """Returns the fidelity of the model to the original in dB.

        Raises:
            RuntimeFailure: onnxruntime cannot run it from here.
        """
        outputs = [value.name or "" for value in self.lane.model.graph.outputs]
        left = [name for name in self.lane.nodes if name in self.lane.left]
        if not all(self.lane.reaches(left, name) for name in outputs):
            return self.judge.decibels(self.lane.model)  # some output depends on no input
        return self.judge.of_outputs(self.lane.run(left, outputs))

    def settle(self, nodes: Sequence[str]) -> None:
        """Takes it that the next nodes change no more, and runs them where what they make can be kept."""
        self.settled += nodes
        kept = sorted(self.lane.needed(self.settled))
        size = activation_bytes(self.lane.model, self.judge.calls[0], kept)
        if size * len(self.judge.calls) <= HELD:
            self.lane.advance(self.settled)
            self.settled = []
