"""Put the layers that quantization hurts most back to float, until the model is faithful enough.

Each layer is quantized alone and the noise that it alone makes at the outputs is its sensitivity. Noise of
different layers adds up, so layers are put back the loudest first, and, where the platform's latency is
predicted, also the loudest per second first that a layer in float costs more. How many suffice is found by
halving, every try measured on the whole model; of the two ways the faster model is taken.

Fidelity is that to the float original. What is put back keeps the weights that earlier steps solved for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgeopt import units
from edgeopt.graph.change import Change, Rewrite
from edgeopt.graph.names import name_nodes, original_names
from edgeopt.graph.quantization import read, strip, write
from edgeopt.passes._sensitivity import Trial, shown, without
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Predictor, Stage

SAMPLES = 32
"""Validation samples that decide how many layers are put back."""


@dataclass(frozen=True)
class RestoreFloat(Pass):
    """Put sensitive layers back to float.

    Attributes:
        fidelity: The signal-to-noise ratio in dB that every output is to reach on the validation samples.
    """

    name: ClassVar[str] = "restore-float"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "approximate"

    fidelity: float = 15.0

    @property
    def reads(self) -> frozenset[Facet]:
        """The validation samples, the float original, and what the platform takes for a layer."""
        return frozenset({"validation", "teacher", "predictor"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Removes the quantization of the layers that suffice at the least predicted latency."""
        samples = context.validation
        params = read(model)
        if samples is None or len(samples) == 0 or not params:
            return Change(summary="nothing to judge by")
        name_nodes(model)
        plain = model.clone()
        strip(plain)
        trial = Trial(plain, params, samples, context.teacher)
        before = trial.fidelity(params, SAMPLES)
        details: dict[str, object] = {"fidelity": _figure(before), "threshold": self.fidelity}
        if before >= self.fidelity:
            return Change(details=details)  # faithful enough: nothing to put back
        sensitivity = trial.ranked(watch=context.progress)
        ranked, count, after = self._chosen(trial, sensitivity, context.predictor)
        chosen = [layer for layer in ranked[:count] if context.allow(self.name, layer)]
        remaining = without(plain, params, chosen)
        strip(model)
        write(model, remaining)
        nodes = {node.name or "": node for node in plain.graph}
        names = {layer: shown(nodes[layer]) for layer in sensitivity}
        restored = [names[layer] for layer in chosen]
        listed = ", ".join(restored[:5]) + (f" and {len(restored) - 5} more" if len(restored) > 5 else "")
        notes = [
            f"{len(chosen)} of {len(ranked)} layers stay in float, since int8 reached only "
            f"{before:.1f} dB on the validation samples: {listed}; with them it is {after:.1f} dB"
        ]
        if after < self.fidelity:
            notes.append(f"the model does not reach {self.fidelity:g} dB in int8, whatever stays in float")
        details |= {
            "restored": restored,
            "fidelity_after": _figure(after),
            "ranking": [(names[layer], _figure(value)) for layer, value in sensitivity.items()],
        }
        return Change(
            summary=f"{units.number(len(chosen), 'layer')} back to float, {before:.1f} -> {after:.1f} dB",
            rewrites=[
                Rewrite(self.name, names[layer], original_names(nodes[layer]) or (layer,)) for layer in chosen
            ],
            details=details,
            notes=notes,
        )

    def _chosen(
        self, trial: Trial, sensitivity: Mapping[str, float], predictor: Predictor | None
    ) -> tuple[Sequence[str], int, float]:
        """Returns an order of layers, how many of them to put back, and the fidelity in dB that gives."""
        found = []
        for ranked in _orders(trial, sensitivity, predictor):
            count, after = _fewest(trial, ranked, self.fidelity)
            left = without(trial.plain, trial.params, ranked[:count])
            seconds = 0.0 if predictor is None else predictor.latency(trial.quantized(left))
            found.append((after < self.fidelity, seconds, count, ranked, after))
        *_, count, ranked, after = min(found, key=lambda item: item[:3])
        return ranked, count, after


def _orders(
    trial: Trial, sensitivity: Mapping[str, float], predictor: Predictor | None
) -> list[tuple[str, ...]]:
    """In what orders layers may go back: the loudest first, and the loudest per predicted second first."""
    loudest = tuple(sensitivity)
    if predictor is None:
        return [loudest]
    whole = predictor.latency(trial.quantized(trial.params))
    dear = {
        layer: max(predictor.latency(trial.quantized(without(trial.plain, trial.params, [layer]))) - whole, 0)
        for layer in loudest
    }
    least = 1e-3 * whole / len(loudest)  # what costs nothing comes first, the loudest of it before others
    worth = {layer: 10 ** (-sensitivity[layer] / 10) / max(dear[layer], least) for layer in loudest}
    cheapest = tuple(sorted(loudest, key=lambda layer: -worth[layer]))
    return [loudest] if cheapest == loudest else [loudest, cheapest]


def _fewest(trial: Trial, ranked: Sequence[str], threshold: float) -> tuple[int, float]:
    """Returns the smallest number of layers to put back, and the fidelity in dB that gives."""
    low, high = 0, len(ranked)
    reached = trial.fidelity(without(trial.plain, trial.params, ranked), SAMPLES)
    best = (high, reached)
    if reached < threshold:
        return best
    while high - low > 1:
        middle = (low + high) // 2
        value = trial.fidelity(without(trial.plain, trial.params, ranked[:middle]), SAMPLES)
        if value >= threshold:
            high, best = middle, (middle, value)
        else:
            low = middle
    return best


def _figure(value: float) -> float:
    return round(value, 2)
