"""Put the layers that quantization hurts most back to float, until the model is faithful enough.

The float model needs no copy of its own: it is the quantized one with its quantization stripped. Each
layer is quantized alone and the noise that it alone makes at the outputs is its sensitivity. Noise of
different layers adds up, so the fewest layers that suffice are the loudest; their number is found by
halving, every try measured on the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt import fidelity
from edgeopt.graph.change import Change, Rewrite
from edgeopt.graph.execute import Executor
from edgeopt.graph.names import name_nodes, original_names
from edgeopt.graph.quantization import QuantParams, Site, read, strip, with_rounded_constants, write
from edgeopt.passes.base import Context, Divisible, Facet, Keeps, Pass, Samples, Stage

Quantization = Mapping[Site, list[QuantParams]]

SAMPLES = 32
"""Validation samples that decide how many layers are put back."""

RANKED_BY = 4
"""Validation samples by which layers are ranked."""

MOST_LAYERS = 200
"""With more layers than this, only the first and last hundred are ranked."""


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
        """The validation samples."""
        return frozenset({"validation"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Removes the quantization of as few layers as needed, the most sensitive first."""
        samples = context.validation
        params = read(model)
        if samples is None or len(samples) == 0 or not params:
            return Change(summary="nothing to judge by")
        name_nodes(model)
        plain = model.clone()
        strip(plain)
        trial = _Trial(plain, params, samples)
        before = trial.fidelity(params, SAMPLES)
        details: dict[str, object] = {"fidelity": _figure(before), "threshold": self.fidelity}
        if before >= self.fidelity:
            return Change(details=details)  # faithful enough: nothing to put back
        sensitivity = trial.ranked(context)
        ranked = list(sensitivity)
        count, after = trial.fewest(ranked, self.fidelity)
        chosen = [layer for layer in ranked[:count] if context.allow(self.name, layer)]
        remaining = without(plain, params, chosen)
        strip(model)
        write(model, remaining)
        nodes = {node.name or "": node for node in plain.graph}
        originals = {layer: original_names(nodes[layer]) or (layer,) for layer in chosen}
        shown = [originals[layer][0] for layer in chosen]
        listed = ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
        notes = [
            f"{len(chosen)} of {len(ranked)} layers stay in float, since int8 reached only "
            f"{before:.1f} dB on the validation samples: {listed}; with them it is {after:.1f} dB"
        ]
        if after < self.fidelity:
            notes.append(f"the model does not reach {self.fidelity:g} dB in int8, whatever stays in float")
        ranking = [
            ((original_names(nodes[layer]) or (layer,))[0], _figure(value))
            for layer, value in sensitivity.items()
        ]
        details |= {"restored": shown, "fidelity_after": _figure(after), "ranking": ranking}
        return Change(
            summary=f"{len(chosen)} layers back to float, {before:.1f} -> {after:.1f} dB",
            rewrites=[Rewrite(self.name, originals[layer][0], originals[layer]) for layer in chosen],
            details=details,
            notes=notes,
        )


def layers(model: ir.Model, params: Quantization) -> list[str]:
    """Lists the nodes with a quantized constant or activation, by name, in the graph's order."""
    constants = {where.value for where in params} & set(model.graph.initializers)
    return [
        node.name or ""
        for node in model.graph
        if any(value is not None and value.name in constants for value in node.inputs)
    ]


def without(model: ir.Model, params: Quantization, nodes: list[str]) -> dict[Site, list[QuantParams]]:
    """Returns the parameters that are left when some nodes compute in float.

    A node loses the quantization of what it reads, and of what it makes unless another quantized layer
    reads that.

    Args:
        model: The model without quantization.
        params: Its quantization.
        nodes: The names of the nodes.
    """
    gone = set(nodes)
    quantized = set(layers(model, params)) - gone
    values = {value.name or "": value for value in (*model.graph.inputs, *model.graph.initializers.values())}
    values.update((output.name or "", output) for node in model.graph for output in node.outputs)
    left: dict[Site, list[QuantParams]] = {}
    for where, chain in params.items():
        value = values[where.value]
        readers = where.readers
        if readers is None:
            everyone = [(use.node.name or "", use.idx) for use in value.uses()]
            everyone += [("", index) for index, item in enumerate(model.graph.outputs) if item is value]
            readers = tuple(everyone)
        kept = tuple(sorted(reader for reader in readers if reader[0] not in gone))
        if len(kept) == len(readers):
            made_by = _layer_before(value)
            if made_by in gone and not any(reader[0] in quantized for reader in kept):
                continue
            left[where] = chain
        elif kept and (value.is_initializer() or any(reader[0] in quantized for reader in kept)):
            left[Site(where.value, kept)] = chain
    return left


def _layer_before(value: ir.Value) -> str:
    """Returns the name of the node that makes a value, past an activation."""
    node = value.producer()
    if node is not None and node.op_type in ("Relu", "Clip", "LeakyRelu") and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return "" if node is None else node.name or ""


class _Trial:
    """Measures what subsets of a model's quantization cost."""

    def __init__(self, plain: ir.Model, params: Quantization, samples: Samples) -> None:
        self.plain, self.params = plain, params
        self.samples = samples
        self.reference = Executor(plain, optimize=True)

    def calls(self, count: int) -> Iterator[dict[str, np.ndarray]]:
        samples = self.samples.limited(count) if isinstance(self.samples, Divisible) else self.samples
        return islice(samples.feeds(), count)

    def fidelity(self, params: Quantization, count: int) -> float:
        """Returns the fidelity of the least faithful output in dB."""
        model = self.plain.clone()
        write(model, params)
        with Executor(with_rounded_constants(model)) as executor:
            return fidelity.compare(self.reference.run, executor.run, self.calls(count)).weakest

    def ranked(self, context: Context) -> dict[str, float]:
        """Returns the layers, the most sensitive first, with the fidelity in dB of each alone in int8."""
        names = layers(self.plain, self.params)
        if len(names) > MOST_LAYERS:
            names = names[: MOST_LAYERS // 2] + names[-MOST_LAYERS // 2 :]
        noise = {}
        for name in context.progress(names, "sensitivity of layers", len(names)):
            others = [layer for layer in layers(self.plain, self.params) if layer != name]
            noise[name] = self.fidelity(without(self.plain, self.params, others), RANKED_BY)
        return dict(sorted(noise.items(), key=lambda item: item[1]))

    def fewest(self, ranked: list[str], threshold: float) -> tuple[int, float]:
        """Returns the smallest number of layers to put back, and the fidelity that gives."""
        low, high = 0, len(ranked)
        reached = self.fidelity(without(self.plain, self.params, ranked), SAMPLES)
        best = (high, reached)
        if reached < threshold:
            return best
        while high - low > 1:
            middle = (low + high) // 2
            value = self.fidelity(without(self.plain, self.params, ranked[:middle]), SAMPLES)
            if value >= threshold:
                high, best = middle, (middle, value)
            else:
                low = middle
        return best


def _figure(value: float) -> float:
    return round(value, 2)
