"""A quantized model under training as a whole: what moves, in which units, and what it costs to be wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.graph.autograd import Segment, to_numpy
from edgeopt.graph.autograd.operators import Tensor, require_torch
from edgeopt.passes._learned_weights import Moved
from edgeopt.passes._training import Trainable, constant, output_units, step_of


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates: of scales relative, of biases and weights in quantization steps."""

    scales: float
    biases: float
    weights: float


@dataclass(slots=True)
class Student:
    """The model under training.

    Attributes:
        segment: The quantized model.
        trainable: What is trained.
        start: The numbers before, by names of initializers.
        weights: The weights.
        units: What a move of 1 of a bias is.
        moves: Per bias or group of scales how far it was moved, in its unit.
        groups: What the optimizer gets.
    """

    segment: Segment
    trainable: Trainable
    start: dict[str, Tensor]
    weights: Moved
    units: dict[str, float]
    moves: dict[str, Tensor]
    groups: list[dict[str, Any]]

    @classmethod
    def of(cls, model: ir.Model, trainable: Trainable, rates: Rates) -> Student:
        """Gets a model ready for training; nothing has moved yet."""
        torch = require_torch()
        names = [value.name or "" for value in model.graph.outputs]
        segment = Segment(model, None, names, trainable.names)
        start = {name: constant(model, name, segment.device) for name in trainable.names}
        steps = {weight.name: step_of(model, weight, segment.device) for weight in trainable.weights}
        weights = Moved(trainable.weights, start, steps, rates.weights)
        scales = [group[0] for group in trainable.scales]
        moves = {name: torch.zeros_like(start[name]) for name in (*trainable.biases, *scales)}
        parts = (
            (weights.tensors, rates.weights),
            ([moves[name] for name in trainable.biases], rates.biases),
            ([moves[name] for name in scales], rates.scales),
        )
        for tensors, _ in parts:
            for tensor in tensors:
                tensor.requires_grad_()
        groups = [{"params": tensors, "lr": rate, "rate": rate} for tensors, rate in parts if tensors]
        units = output_units(model, trainable.biases)
        return cls(segment, trainable, start, weights, units, moves, groups)

    def others(self) -> dict[str, Tensor]:
        """Biases and scales as they stand."""
        torch = require_torch()
        current = {
            name: self.start[name] + self.units[name] * self.moves[name] for name in self.trainable.biases
        }
        for group in self.trainable.scales:
            scale = self.start[group[0]] * torch.exp(self.moves[group[0]])
            current.update({name: scale.reshape(self.start[name].shape) for name in group})
        return current

    def loss(
        self, feeds: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], power: Mapping[str, float]
    ) -> Tensor:
        """The mean squared error of every output relative to its power, on average."""
        got = self.segment(feeds, {**self.weights.values(), **self.others()})
        targets = self.segment.placed(wanted)
        errors = [(got[name] - targets[name]).square().mean() / power[name] for name in power]
        return sum(errors) / len(errors)

    def bound(self) -> None:
        """Keeps scales between half and twice what they were."""
        torch = require_torch()
        with torch.no_grad():
            for group in self.trainable.scales:
                self.moves[group[0]].clamp_(-np.log(2.0), np.log(2.0))

    def arrays(self) -> dict[str, np.ndarray]:
        """The numbers as they stand, weights on their grids."""
        torch = require_torch()
        with torch.no_grad():
            final = {**self.weights.final(), **self.others()}
        return {name: to_numpy(tensor).astype(np.float32) for name, tensor in final.items()}
