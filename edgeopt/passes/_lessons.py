"""What a whole model is taught: calibration calls, and what the float original makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from edgeopt.errors import ModelError
from edgeopt.graph.execute import Executor
from edgeopt.passes._blocks import varying
from edgeopt.passes._calibration import Calls
from edgeopt.passes._judge import Judge
from edgeopt.passes._training_calls import input_shapes, joined, read_evenly, run_each, seconds_of
from edgeopt.passes.base import Context, Samples

HELD_BYTES = 2**29
"""Inputs and outputs of all training samples together stay below this; fewer samples are used then."""

BYTES_PER_RUN = 2**28
"""Activations of samples that run together stay below this; a batch is run in parts then."""

OVERALL = 256
"""Validation samples that judge at most."""

HELD = 4
"""Where validation and calibration are the same few calls, every so many judges, and is not trained on."""


def rows_of(call: Mapping[str, np.ndarray]) -> int:
    """Returns how many samples a call holds."""
    return max((array.shape[0] for array in call.values() if array.ndim), default=1)


@dataclass(slots=True)
class Lessons:
    """What the model is taught: inputs, and the original's outputs.

    Attributes:
        calls: The inputs of each call.
        joins: How many calls may be joined to one; 0 for none.
        judging: The calls that judge.
        names: The model's outputs.
        wanted: The original's outputs of each call.
        power: The mean square of every output.
    """

    calls: list[dict[str, np.ndarray]]
    joins: int
    judging: Iterable[dict[str, np.ndarray]]
    names: list[str]
    wanted: list[dict[str, np.ndarray]] = field(default_factory=list)
    power: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model, data: Samples, context: Context, most: int) -> Lessons:
        """Reads the samples; parts from them those that judge, where there are no others."""
        calls, joins = read_evenly(model, data, most, HELD_BYTES, BYTES_PER_RUN)
        validation = context.validation
        judging: Iterable[dict[str, np.ndarray]]
        if validation is not None and len(validation) and validation.digest != data.digest:
            judging = Calls.fitting(model, validation, OVERALL)
        else:
            held = [call for index, call in enumerate(calls) if index % HELD == HELD - 1]
            judging = held or calls
            calls = [call for index, call in enumerate(calls) if not held or index % HELD != HELD - 1]
        return cls(calls, joins, judging, [value.name or "" for value in model.graph.outputs])

    @property
    def largest(self) -> int:
        """Samples of the largest call."""
        return max(rows_of(call) for call in self.calls)

    def seconds(self, model: ir.Model, size: int) -> float:
        """Estimates the CPU seconds of an iteration of so many calls."""
        runs = -(-size // max(self.joins, 1))
        return runs * seconds_of(model, varying(model.graph), input_shapes(self.calls[0]), size / runs)

    def taught(self, original: ir.Model, most: int, judging: int) -> Judge:
        """Runs the original on the calls, and on those that judge.

        Args:
            original: The float original.
            most: Calls that are kept at most.
            judging: Samples that judge at most.
        """
        kept = np.linspace(0, len(self.calls) - 1, min(most, len(self.calls))).astype(int)
        self.calls = [self.calls[index] for index in kept]
        with Executor(original, optimize=True) as executor:
            found = [run_each(executor, call, self.names) for call in self.calls]
        self.wanted = [
            {name: array for name, array in one.items() if array.dtype.kind == "f"} for one in found
        ]
        if not self.wanted[0]:
            raise ModelError("no output is in floating point")
        for name in self.wanted[0]:
            energy = sum(float(np.square(one[name], dtype=np.float64).sum()) for one in self.wanted)
            self.power[name] = max(energy / max(sum(one[name].size for one in self.wanted), 1), 1e-12)
        if isinstance(self.judging, Calls):
            self.judging = replace(self.judging, limit=min(self.judging.limit, judging))
        return Judge.of(original, self.judging)

    def batch(
        self, indices: Sequence[int] | np.ndarray
    ) -> Iterable[tuple[dict[str, np.ndarray], dict[str, np.ndarray], float]]:
        """Returns calls, joined where possible, with the outputs wanted and their share in the loss."""
        size = max(self.joins, 1)
        for start in range(0, len(indices), size):
            chosen = [int(index) for index in indices[start : start + size]]
            share = len(chosen) / len(indices)
            if len(chosen) == 1:
                yield self.calls[chosen[0]], self.wanted[chosen[0]], share
            else:
                feeds = joined([self.calls[index] for index in chosen])
                yield feeds, joined([self.wanted[index] for index in chosen]), share
