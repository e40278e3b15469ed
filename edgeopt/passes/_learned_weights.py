"""How weights on a grid are learned: by moving them, or by choosing which way each is rounded.

Moving passes gradients straight through the rounding (AdaQuant: Hubara et al., Accurate Post Training
Quantization With Small Calibration Sets, ICML 2021): a weight may travel several steps. Choosing keeps each
weight at one of its two neighbours on the grid; which, is a number between 0 and 1 that training moves and a
penalty, growing sharper, drives to either end (AdaRound: Nagel et al., Up or Down? Adaptive Rounding for
Post-Training Quantization, ICML 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from edgeopt.graph.autograd.operators import Tensor, require_torch

WARM = 0.2
"""Share of the iterations in which nothing drives the choices to an end."""

SHARPEST, BLUNTEST = 2.0, 20.0
"""The penalty 1 - |2 h - 1|^b begins with the one b and ends with the other."""

PENALTY = 0.01
"""What an undecided choice costs, on average over a weight, beside a loss relative to the signal's power."""

CHOICES = 0.02
"""The learning rate of choices; straight-through rates are in steps, and mean something else."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant that is quantized: its name and that of its step, and where the step's axis is."""

    name: str
    scale: str
    axis: int | None
    low: int
    high: int


class Learned(Protocol):
    """Weights that are being learned.

    Attributes:
        tensors: What the optimizer moves.
        rate: Its learning rate.
        parameters: The initializers that ``values`` replaces.
        cuts: The values inside the graph that ``values`` replaces.
    """

    tensors: list[Tensor]
    rate: float
    parameters: list[str]
    cuts: list[str]

    def values(self) -> dict[str, Tensor]:
        """The weights as they are now, by the names of ``parameters`` and ``cuts``."""
        ...

    def penalty(self, progress: float) -> Tensor | float:
        """What is added to the loss, when so much of the training, 0 to 1, is over."""
        ...

    def final(self) -> dict[str, Tensor]:
        """The weights on their grids, by the names of initializers."""
        ...


class Moved:
    """Weights that move, in units of their own step."""

    def __init__(
        self, weights: Sequence[Weight], start: Mapping[str, Tensor], steps: Mapping[str, Tensor], rate: float
    ) -> None:
        torch = require_torch()
        self._weights, self._start, self._steps = list(weights), start, steps
        self._moves = {weight.name: torch.zeros_like(start[weight.name]) for weight in weights}
        self.tensors, self.rate = list(self._moves.values()), rate
        self.parameters = list(self._moves)
        self.cuts: list[str] = []

    def values(self) -> dict[str, Tensor]:
        """Weights that QuantizeLinear has yet to round."""
        return {name: self._start[name] + self._steps[name] * move for name, move in self._moves.items()}

    def penalty(self, progress: float) -> Tensor | float:
        """Nothing."""
        return 0.0

    def final(self) -> dict[str, Tensor]:
        """Rounds to the nearest."""
        torch = require_torch()
        now = self.values()
        found = {}
        for weight in self._weights:
            step = self._steps[weight.name]
            found[weight.name] = torch.round(now[weight.name] / step).clamp(weight.low, weight.high) * step
        return found


class Chosen:
    """Weights that are rounded up or down by choice."""

    def __init__(
        self,
        graph: ir.Graph,
        weights: Sequence[Weight],
        start: Mapping[str, Tensor],
        steps: Mapping[str, Tensor],
        rate: float = CHOICES,
    ) -> None:
        torch = require_torch()
        from edgeopt.graph.autograd.quantizers import rounding_logits

        self._weights, self._start, self._steps = list(weights), start, steps
        self._zero = torch.zeros(())
        self._behind = {weight.name: _dequantized(graph.initializers[weight.name]) for weight in weights}
        self._logits = {
            weight.name: rounding_logits(start[weight.name], steps[weight.name]) for weight in weights
        }
        self.tensors, self.rate = list(self._logits.values()), rate
        self.parameters: list[str] = []
        self.cuts = [name for names in self._behind.values() for name in names]

    def values(self) -> dict[str, Tensor]:
        """Weights between their two neighbours, behind their DequantizeLinear."""
        found = {}
        for weight in self._weights:
            made = self._at(weight, self._logits[weight.name])
            found.update(dict.fromkeys(self._behind[weight.name], made))
        return found

    def penalty(self, progress: float) -> Tensor | float:
        """What undecided choices cost, once the training is warm."""
        if progress < WARM or not self._logits:
            return 0.0
        from edgeopt.graph.autograd.quantizers import rounding_share

        sharp = BLUNTEST + (SHARPEST - BLUNTEST) * (progress - WARM) / (1 - WARM)
        costs = [
            (1 - (2 * rounding_share(logits) - 1).abs() ** sharp).mean() for logits in self._logits.values()
        ]
        total: Tensor = PENALTY * sum(costs)
        return total

    def final(self) -> dict[str, Tensor]:
        """Decides every choice."""
        torch = require_torch()
        end = 20.0  # far enough that the share is exactly 0 or 1
        return {
            weight.name: self._at(weight, torch.where(self._logits[weight.name] > 0, end, -end))
            for weight in self._weights
        }

    def _at(self, weight: Weight, logits: Tensor) -> Tensor:
        from edgeopt.graph.autograd.quantizers import soft_round

        return soft_round(
            self._start[weight.name], self._steps[weight.name], self._zero, weight.low, weight.high, logits
        )


def _dequantized(weight: ir.Value) -> list[str]:
    """Names the values behind the QuantizeLinear and DequantizeLinear of a weight."""
    return [
        output.name or ""
        for first in weight.uses()
        if first.node.op_type == "QuantizeLinear"
        for second in first.node.outputs[0].uses()
        for output in second.node.outputs
    ]
