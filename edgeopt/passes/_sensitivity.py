"""What quantization costs layer by layer: each alone, in groups, and where noise stands in the whole model.

Groups are layers that return to float together better than alone: neighbours, between which a conversion and
perhaps noise of its own fall away, and the layers of a block between two bottlenecks (a residual branch, an
attention block).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from edgeopt import fidelity
from edgeopt.errors import ModelError, RuntimeFailure
from edgeopt.fidelity import Fidelity
from edgeopt.graph.cost import cost
from edgeopt.graph.execute import Executor
from edgeopt.graph.names import original_names
from edgeopt.graph.observers import activation_bytes
from edgeopt.graph.quantization import with_rounded_constants, write
from edgeopt.passes._alone import alone, quantized
from edgeopt.passes._blocks import find_blocks
from edgeopt.passes._calibration import Calls
from edgeopt.passes._islands import Islands, Quantization
from edgeopt.passes.base import Samples

RANKED_BY = 4
"""Samples by which layers are ranked."""

MOST_LAYERS = 200
"""With more layers than this, only the first and last hundred are ranked."""

MACS = 1e10
"""Multiply-accumulates that a ranking may cost where nothing depends on it: a second or two."""

HELD = 2**29
"""Bytes of activations of so many samples as signals are taken from, at least one."""

Group = tuple[str, ...]
"""Layers by name, in the graph's order."""

Watch = Callable[[Iterable[int], str, int], Iterable[int]]
"""Shows progress."""


class Trial:
    """Measures what subsets of a model's quantization cost.

    Args:
        plain: The model without quantization; its nodes have unique names.
        params: Its quantization.
        samples: The samples to measure on.
        teacher: What the whole model is compared with; by default itself without quantization.
    """

    def __init__(
        self, plain: ir.Model, params: Quantization, samples: Samples, teacher: ir.Model | None = None
    ) -> None:
        self.plain, self.params, self.samples = plain, params, samples
        self.teacher = teacher or plain
        self.islands = Islands(plain, params)
        everything = self.islands.layers
        half = MOST_LAYERS // 2
        self.layers = everything if len(everything) <= MOST_LAYERS else everything[:half] + everything[-half:]
        self._held: dict[int, tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]] = {}

    def quantized(self, params: Quantization) -> ir.Model:
        """The model with some of its quantization."""
        model = self.plain.clone()
        write(model, params)
        return model

    def measured(self, params: Quantization, count: int) -> Fidelity:
        """Compares the model with some of its quantization with the original, over so many samples."""
        if count not in self._held:
            calls = list(Calls.fitting(self.plain, self.samples, count).for_trials(self.plain, count))
            with Executor(self.teacher, optimize=True) as reference:
                self._held[count] = calls, [reference.run(call) for call in calls]
        found = Fidelity()
        with Executor(quantized(self.plain, params)) as executor:
            for call, wanted in zip(*self._held[count], strict=True):
                found.add(wanted, executor.run(call))
        return found

    def ranked(
        self, groups: Sequence[Group] = (), count: int = RANKED_BY, watch: Watch | None = None
    ) -> tuple[dict[Group, Fidelity], dict[Group, Fidelity]]:
        """Returns layers and groups, the most sensitive first, with what each alone in integers leaves."""
        subsets: list[Group] = [*((layer,) for layer in self.layers), *groups]
        calls = list(Calls(self.samples, RANKED_BY, count))
        trials = [self.islands.of(subset) for subset in subsets]
        try:
            found = alone(self.plain, trials, calls, watch)
        except RuntimeFailure:  # a part of the model cannot be run by itself
            found = [self._compared(trial, calls) for trial in trials]
        order = sorted(zip(subsets, found, strict=True), key=lambda item: item[1].weakest)
        return (
            {subset: one for subset, one in order if len(subset) == 1},
            {subset: one for subset, one in order if len(subset) > 1},
        )

    def _compared(self, params: Quantization, calls: Sequence[dict[str, np.ndarray]]) -> Fidelity:
        """Compares the whole model with some of its quantization with itself without."""
        with Executor(self.plain, optimize=True) as one, Executor(quantized(self.plain, params)) as two:
            return fidelity.compare(one.run, two.run, calls)

    @cached_property
    def branches(self) -> list[Group]:
        """The layers of each block that has several."""
        known = set(self.layers)
        inside = [
            tuple(node.name or "" for node in block.nodes if node.name in known)
            for block in find_blocks(self.plain.graph)
        ]
        return [group for group in inside if len(group) > 1]

    @cached_property
    def neighbours(self) -> list[Group]:
        """Pairs of layers in order where one reads, past operators between, what the other makes."""
        known = set(self.layers)
        behind: dict[ir.Value, str] = {}
        pairs: set[tuple[str, str]] = set()
        for node in self.plain.graph:
            name = node.name or ""
            makers = [behind[value] for value in node.inputs if value is not None and value in behind]
            if name in known:
                pairs.update((maker, name) for maker in makers)
                behind.update(dict.fromkeys(node.outputs, name))
            elif makers:
                behind.update(dict.fromkeys(node.outputs, max(makers, key=self.layers.index)))
        return [pair for pair in pairwise(self.layers) if pair in pairs]

    def apart(self, pair: Group) -> bool:
        """Whether all that goes with two layers goes with one of them or the other."""
        gone = self.islands.gone
        return gone(pair) == gone(pair[:1]) | gone(pair[1:])

    def affordable(self) -> int:
        """Over how many samples layers are ranked where nothing depends on it; 0 where it takes long."""
        try:
            macs = cost(self.plain, self._shapes()).macs
        except ModelError:  # shapes that the declared ones do not allow: nobody knows what it would cost
            return 0
        number = len(self.islands.layers)
        if not number or number > MOST_LAYERS:
            return 0
        return int(min(RANKED_BY, MACS // max(macs * number, 1)))

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the first call: what the model leaves open, as the size of images, is the data's."""
        first = next(self.samples.feeds(), {})
        inputs = {value.name for value in self.plain.graph.inputs}
        return {name: array.shape for name, array in first.items() if name in inputs}

    def signals(self) -> dict[str, float]:
        """Returns per layer the signal-to-noise ratio in dB at its output in the whole quantized model.

        One run of both models over a few samples tells it, fewer of large activations, which are held;
        what came in as noise counts too.
        """
        first = next(self.samples.feeds(), None)
        size = 0 if first is None else activation_bytes(self.plain, first)
        count = int(np.clip(HELD // max(size, 1), 1, RANKED_BY))
        wanted = set(self.islands.layers)
        taps = {
            node.name or "": next(output.name for output in node.outputs if output.name)
            for node in self.plain.graph
            if node.name in wanted  # a recurrent layer may give out its last state alone
        }
        names, whole = list(taps.values()), with_rounded_constants(self.quantized(self.params))
        with Executor(self.plain, names, optimize=True) as one, Executor(whole, names) as two:
            seen = fidelity.compare(
                lambda feeds: one.run(feeds, names),
                lambda feeds: two.run(feeds, names),
                Calls(self.samples, 1, count),
            ).per_output
        return {layer: seen[value] for layer, value in taps.items()}


def told(
    found: tuple[dict[Group, Fidelity], dict[Group, Fidelity]], names: dict[str, str]
) -> dict[str, object]:
    """What a report says of a ranking: layers and groups by the user's names, with dB."""
    layers, groups = found
    return {
        "ranking": [(names[layer], round(one.weakest, 2)) for (layer,), one in layers.items()],
        "groups": [
            ([names[layer] for layer in group], round(one.weakest, 2)) for group, one in groups.items()
        ],
    }


def shown(node: ir.Node) -> str:
    """The name under which a user knows a layer."""
    originals = original_names(node)
    own = node.name or ""
    return own if own in originals or not originals else originals[0]
