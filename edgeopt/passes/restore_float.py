"""Put the layers that quantization hurts most back to float, until the model is faithful enough.

One pass over a few samples tells the noise that each layer alone makes at the outputs, and each group (a
residual branch, neighbours with something quantized between them). The platform's predictor says what a layer
or a group takes longer in float. Of all choices that remove enough noise the one of the least predicted
latency is searched for, every candidate measured on the whole model (``_knapsack.py``).

What has to be met is ``fidelity``, and the user's budget on fidelity where that is higher, for every output
on the validation samples. A budget on the drop in accuracy is looked at where these samples can say something
about it: 500 of them or more with labels of classes. Top-1 accuracy then stands for the metric.

What is put back keeps the weights that earlier steps solved for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt import units
from edgeopt.budget import Budget
from edgeopt.graph.change import Change, Rewrite
from edgeopt.graph.execute import Executor
from edgeopt.graph.names import name_nodes, original_names
from edgeopt.graph.quantization import read, strip, write
from edgeopt.passes._alone import quantized
from edgeopt.passes._knapsack import Group, Knapsack
from edgeopt.passes._sensitivity import Trial, shown, told
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Samples, Stage

SAMPLES = 32
"""Validation samples that decide how many layers are put back."""

LABELLED = 500
"""So many validation samples with labels say something about a drop in accuracy."""

FURTHER = 2.0
"""By so many dB more fidelity is asked for where accuracy still drops too far, and so often at most:"""

OFTEN = 4


@dataclass(frozen=True)
class RestoreFloat(Pass):
    """Put the layers back to float that suffice at the least predicted latency.

    Attributes:
        fidelity: The signal-to-noise ratio in dB that every output is to reach on the validation samples;
            a budget on fidelity that is higher counts instead.
    """

    name: ClassVar[str] = "restore-float"
    version: ClassVar[int] = 2
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "approximate"

    fidelity: float = 15.0

    @property
    def reads(self) -> frozenset[Facet]:
        """The validation samples, the float original, what the platform takes for a layer, and budgets."""
        return frozenset({"validation", "teacher", "predictor", "budget"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Removes the quantization of the layers that suffice at the least predicted latency."""
        samples = context.validation
        params = read(model)
        if samples is None or len(samples) == 0 or not params:
            return Change(summary="nothing to judge by")
        name_nodes(model)
        plain = model.clone()
        strip(plain)
        budgets = context.budget or ()
        wanted = max([self.fidelity, *(item.limit for item in budgets if item.quantity == "fidelity")])
        trial = Trial(plain, params, samples, context.teacher)
        drop = _Drop.of(trial, samples, budgets)
        before = trial.measured(params, SAMPLES).weakest
        details: dict[str, object] = {"fidelity": _figure(before), "threshold": wanted}
        if before >= wanted and (drop is None or drop.of_choice(frozenset()) <= drop.limit):
            return Change(details=details)  # faithful enough: nothing to put back
        search = Search(trial, context)
        chosen = search.choice(wanted) if before < wanted else frozenset()
        asked = max(before, wanted)
        for _ in range(OFTEN if drop is not None else 0):
            assert drop is not None
            if drop.of_choice(chosen) <= drop.limit or len(chosen) == len(trial.layers):
                break
            asked += FURTHER
            chosen = search.choice(asked)
        put_back = [layer for layer in trial.layers if layer in chosen and context.allow(self.name, layer)]
        remaining = trial.islands.without(put_back)
        after = trial.measured(remaining, SAMPLES).weakest
        strip(model)
        write(model, remaining)
        nodes = {node.name or "": node for node in plain.graph}
        names = {layer: shown(nodes[layer]) for layer in trial.layers}
        restored = [names[layer] for layer in put_back]
        listed = ", ".join(restored[:5]) + (f" and {len(restored) - 5} more" if len(restored) > 5 else "")
        notes = [
            f"{len(put_back)} of {len(trial.layers)} layers stay in float, since int8 reached only "
            f"{before:.1f} dB on the validation samples: {listed}; with them it is {after:.1f} dB"
        ]
        if after < wanted:
            notes.append(f"the model does not reach {wanted:g} dB in int8, whatever stays in float")
        if drop is not None:
            details["top1_drop"] = [_figure(drop.of_choice(frozenset())), _figure(drop.of_choice(chosen))]
        details |= {
            "restored": restored,
            "fidelity_after": _figure(after),
            "tried": len(search.measured),
            **told(search.found, names),
            **search.latencies(put_back),
        }
        return Change(
            summary=f"{units.number(len(put_back), 'layer')} back to float, {before:.1f} -> {after:.1f} dB",
            rewrites=[
                Rewrite(self.name, names[layer], original_names(nodes[layer]) or (layer,))
                for layer in put_back
            ],
            details=details,
            notes=notes,
        )


class Search:
    """What the knapsack needs to know of a model, each thing found out once."""

    def __init__(self, trial: Trial, context: Context) -> None:
        self.trial, self.predictor = trial, context.predictor
        self.joined = [pair for pair in trial.neighbours if not trial.apart(pair)]
        groups = list(dict.fromkeys([*trial.branches, *self.joined]))
        self.found = trial.ranked(groups, watch=context.progress)
        self.measured: dict[frozenset[str], dict[str, float]] = {}
        self.predicted: dict[frozenset[str], float] = {}
        self.extra = self._extra([*((layer,) for layer in trial.layers), *groups, *trial.neighbours])

    def choice(self, wanted: float) -> frozenset[str]:
        """Returns the layers to compute in float for so many dB at every output."""
        allowed = 10 ** (-wanted / 10)
        if max(self.noise(frozenset()).values()) <= allowed:
            return frozenset()
        if max(self.noise(frozenset(self.trial.layers)).values()) > allowed:
            return frozenset(self.trial.layers)  # nothing suffices, so this comes nearest
        knapsack, demand = self._knapsack(allowed)
        return knapsack.search(demand)

    def orders(self, wanted: float) -> list[list[str]]:
        """The greedy orders for so many dB: the loudest first, and the loudest per second first."""
        return self._knapsack(10 ** (-wanted / 10))[0].orders

    def _knapsack(self, allowed: float) -> tuple[Knapsack, float]:
        """What is chosen from, and what noise has to go as far as gains add up."""
        whole, best = self.noise(frozenset()), self.noise(frozenset(self.trial.layers))
        excess = {name: max(value - allowed, 0.0) for name, value in whole.items()}
        total = sum(excess.values())
        weights = {name: value / total for name, value in excess.items()}  # the noisy outputs matter
        gains = {
            group: sum(weight * fidelity.noise.get(name, 0.0) for name, weight in weights.items())
            for part in self.found
            for group, fidelity in part.items()
        }
        removable = sum(weight * (whole[name] - best[name]) for name, weight in weights.items())
        claimed = sum(gains[layer,] for layer in self.trial.layers)
        gains = {group: value * removable / max(claimed, 1e-300) for group, value in gains.items()}

        def missing(chosen: frozenset[str]) -> float:
            return max(value - allowed for value in self.noise(chosen).values())

        demand = sum(weight * excess[name] for name, weight in weights.items())
        return Knapsack(self.trial.layers, gains, self.extra, missing, self._cost), demand

    def seconds(self, chosen: frozenset[str]) -> float:
        """The predicted seconds of the model, or, without a platform, the number of layers in float."""
        if self.predictor is None:
            return float(len(chosen))
        if chosen not in self.predicted:
            left = self.trial.islands.without(chosen)
            self.predicted[chosen] = self.predictor.latency(self.trial.quantized(left))
        return self.predicted[chosen]

    def latencies(self, chosen: Sequence[str]) -> dict[str, object]:
        """What is predicted with all layers in integers and with the chosen ones in float, for a report."""
        if self.predictor is None:
            return {}
        return {"latency": self.seconds(frozenset()), "latency_after": self.seconds(frozenset(chosen))}

    def _extra(self, groups: Sequence[Group]) -> dict[Group, float]:
        """What groups take longer in float."""
        none = self._cost(frozenset())
        return {group: self._cost(frozenset(group)) - none for group in dict.fromkeys(groups)}

    def _cost(self, chosen: frozenset[str]) -> float:
        """The predicted seconds, and a little for each layer, which stores floats: none is put back in vain.

        A model that is predicted faster in float is no better for that: its integers are smaller.
        """
        if self.predictor is None:
            return float(len(chosen))
        whole = self.seconds(frozenset())
        return max(self.seconds(chosen), whole) + 1e-3 * whole * len(chosen) / len(self.trial.layers)

    def noise(self, chosen: frozenset[str]) -> Mapping[str, float]:
        """Noise over signal of every output, with some layers in float."""
        if chosen not in self.measured:
            self.measured[chosen] = self.trial.measured(self.trial.islands.without(chosen), SAMPLES).noise
        return self.measured[chosen]


@dataclass(slots=True)
class _Drop:
    """How far top-1 accuracy drops on labelled validation samples.

    Attributes:
        trial: The model.
        samples: The samples.
        labels: Their classes.
        limit: The drop that the user allows, in percentage points.
        original: How many the original gets right, in per cent.
        known: The drop with some layers in float.
    """

    trial: Trial
    samples: Samples
    labels: np.ndarray
    limit: float
    original: float
    known: dict[frozenset[str], float] = field(default_factory=dict)

    @classmethod
    def of(cls, trial: Trial, samples: Samples, budgets: Sequence[Budget]) -> _Drop | None:
        """Looks at the original, if there is a budget and the samples can say something about it."""
        limits = [item.limit for item in budgets if item.quantity == "accuracy_drop" and item.unit == "pp"]
        if not limits or len(samples) < LABELLED or len(trial.plain.graph.outputs) != 1:
            return None
        labels = samples.labels
        if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
            return None
        drop = cls(trial, samples, labels, min(limits), 0.0)
        found = drop._right(trial.teacher)
        if found is None:
            return None
        drop.original = found
        return drop

    def of_choice(self, chosen: frozenset[str]) -> float:
        """The drop in percentage points with some layers in float."""
        if chosen not in self.known:
            model = quantized(self.trial.plain, self.trial.islands.without(chosen))
            self.known[chosen] = self.original - (self._right(model) or 0.0)
        return self.known[chosen]

    def _right(self, model: ir.Model) -> float | None:
        """The share of samples, in per cent, whose largest score is that of the label."""
        right = seen = 0
        with Executor(model) as executor:
            for call in self.samples.feeds(8):
                scores = next(iter(executor.run(call).values()))
                scores = scores.reshape(scores.shape[0], -1) if scores.ndim else scores.reshape(1, 1)
                labels = self.labels[seen : seen + len(scores)]
                if len(labels) != len(scores) or labels.max(initial=0) >= scores.shape[1]:
                    return None  # not one score a class for each sample
                right += int((scores.argmax(1) == labels).sum())
                seen += len(scores)
        return 100.0 * right / seen if seen else None


def _figure(value: float) -> float:
    return round(value, 2)
