"""What quantization costs layer by layer: each alone, and where the noise stands in the whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import onnx_ir as ir

from edgeopt import fidelity
from edgeopt.errors import ModelError
from edgeopt.graph.cost import cost
from edgeopt.graph.execute import Executor
from edgeopt.graph.names import original_names
from edgeopt.graph.observers import activation_bytes
from edgeopt.graph.quantization import QuantParams, Site, with_rounded_constants, write
from edgeopt.passes.base import Divisible, Samples

Quantization = Mapping[Site, list[QuantParams]]

RANKED_BY = 4
"""Samples by which layers are ranked."""

MOST_LAYERS = 200
"""With more layers than this, only the first and last hundred are ranked."""

MACS = 1e10
"""Multiply-accumulates that a ranking may cost where nothing depends on it: a second or two."""

BYTES = 2e9
"""Bytes of weights that it may load into sessions, one for each layer."""

HELD = 2**29
"""Bytes of activations of so many samples as signals are taken from, at least one."""


def layers(model: ir.Model, params: Quantization) -> list[str]:
    """Lists the nodes with a quantized constant or activation, by name, in the graph's order."""
    constants = {where.value for where in params} & set(model.graph.initializers)
    return [
        node.name or ""
        for node in model.graph
        if any(value is not None and value.name in constants for value in node.inputs)
    ]


def without(model: ir.Model, params: Quantization, nodes: Sequence[str]) -> dict[Site, list[QuantParams]]:
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


class Trial:
    """Measures what subsets of a model's quantization cost."""

    def __init__(
        self, plain: ir.Model, params: Quantization, samples: Samples, teacher: ir.Model | None = None
    ) -> None:
        self.plain, self.params = plain, params
        self.samples = samples
        self.reference = Executor(teacher or plain, optimize=True)

    def calls(self, count: int) -> Iterator[dict[str, np.ndarray]]:
        """The first samples, one a call."""
        samples = self.samples.limited(count) if isinstance(self.samples, Divisible) else self.samples
        return islice(samples.feeds(), count)

    def quantized(self, params: Quantization) -> ir.Model:
        """The model with some of its quantization."""
        model = self.plain.clone()
        write(model, params)
        return model

    def fidelity(self, params: Quantization, count: int) -> float:
        """The least faithful output in dB with some of the quantization, over so many samples."""
        with Executor(with_rounded_constants(self.quantized(params))) as executor:
            return fidelity.compare(self.reference.run, executor.run, self.calls(count)).weakest

    def ranked(
        self, count: int = RANKED_BY, watch: Callable[[list[str], str, int], Iterable[str]] | None = None
    ) -> dict[str, float]:
        """Returns the layers, the most sensitive first, with the fidelity in dB of each alone in int8."""
        everything = layers(self.plain, self.params)
        names = everything
        if len(names) > MOST_LAYERS:
            names = names[: MOST_LAYERS // 2] + names[-MOST_LAYERS // 2 :]
        found = {}
        for name in watch(names, "sensitivity of layers", len(names)) if watch else names:
            others = [layer for layer in everything if layer != name]
            found[name] = self.fidelity(without(self.plain, self.params, others), count)
        return dict(sorted(found.items(), key=lambda item: item[1]))

    def affordable(self) -> int:
        """Over how many samples layers are ranked where nothing depends on it; 0 where it takes long."""
        try:
            counted = cost(self.plain, self._shapes())
        except ModelError:  # shapes that the declared ones do not allow: nobody knows what it would cost
            return 0
        number = len(layers(self.plain, self.params))
        if not number or number > MOST_LAYERS or counted.parameter_bytes * number > BYTES:
            return 0
        return int(min(RANKED_BY, MACS // max(counted.macs * number, 1)))

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the first call: what the model leaves open, as the size of images, is the data's."""
        first = next(self.calls(1), None) or {}
        inputs = {value.name for value in self.plain.graph.inputs}
        return {name: array.shape for name, array in first.items() if name in inputs}

    def signals(self) -> dict[str, float]:
        """Returns per layer the signal-to-noise ratio in dB at its output in the whole quantized model.

        One run of both models over a few samples tells it, fewer of large activations, which are held;
        what came in as noise counts too.
        """
        first = next(self.calls(1), None)
        size = 0 if first is None else activation_bytes(self.plain, first)
        count = int(np.clip(HELD // max(size, 1), 1, RANKED_BY))
        wanted = set(layers(self.plain, self.params))
        taps = {
            node.name or "": next(output.name for output in node.outputs if output.name)
            for node in self.plain.graph
            if node.name in wanted  # a recurrent layer may give out its last state alone
        }
        names, quantized = list(taps.values()), with_rounded_constants(self.quantized(self.params))
        with Executor(self.plain, names, optimize=True) as one, Executor(quantized, names) as two:
            seen = fidelity.compare(
                lambda feeds: one.run(feeds, names),
                lambda feeds: two.run(feeds, names),
                self.calls(count),
            ).per_output
        return {layer: seen[value] for layer, value in taps.items()}


def shown(node: ir.Node) -> str:
    """The name under which a user knows a layer."""
    originals = original_names(node)
    own = node.name or ""
    return own if own in originals or not originals else originals[0]
