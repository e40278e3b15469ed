"""Make the channels between convolutions alike in range, which changes no output in float.

Where a product's output reaches other products only through operators f with f(s x) = s f(x) for every
s > 0 (ReLU, leaky ReLU, max and average pooling), the channel i can be divided by any s_i > 0 in the first
product's weights and bias and multiplied by it in the second's weights. Choosing

    s_i = a_i^alpha / r_i^(1 - alpha)

with a_i the largest magnitude seen in channel i of what is quantized between the two, and r_i the largest
of the second's weights that read it, makes one scale per tensor serve all channels: alpha = 1 equalizes the
activations, alpha = 0 the weights. With alpha = 1/2 and the first's weights in the place of a this is
cross-layer equalization (Nagel et al., Data-Free Quantization Through Weight Equalization and Bias
Correction, ICCV 2019), and it is what is done without calibration data. With data several alphas are tried,
and the one whose int8 model is most faithful on validation samples is taken, or none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt import units
from edgeopt.graph.change import Change, NoMatch, Rewrite, Skipped
from edgeopt.graph.names import name_nodes, original_names
from edgeopt.graph.observers import channel_maxima
from edgeopt.graph.placement import is_constant
from edgeopt.passes._calibration import WORTH, Calls, Reference, int8_worth
from edgeopt.passes._rules import kept, quantization_rules
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Stage
from edgeopt.platform import QuantizationRules

HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
"""Operators that keep channels apart and commute with multiplication by a positive number."""

ROUNDS = 20
ALPHAS = (0.5, 0.65, 0.8, 0.35)
"""The alphas that are tried, the last of them unless a larger one is better than the first."""

DEAD = 1e-6
"""Channels below this share of the largest one are not rescaled."""

SETTLED = 1e-3
"""The rounds end when no factor differs from 1 by more than this."""


Arrays = dict[str, np.ndarray]
"""Constants by name."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A product and all products that read its channels."""

    first: ir.Node
    seconds: tuple[ir.Node, ...]


@dataclass(frozen=True)
class EqualizeChannels(Pass):
    """Equalize the ranges of channels across convolutions; exact in float.

    Attributes:
        keep_float: Shell patterns of original node names that will stay in float; they are rescaled all
            the same, but not counted when alphas are compared.
        alpha: How much of the difficulty moves from activations to weights, 0 to 1; negative tries
            several and may choose none.
    """

    name: ClassVar[str] = "equalize-channels"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "exact"

    keep_float: tuple[str, ...] = ()
    alpha: float = -1.0

    @property
    def reads(self) -> frozenset[Facet]:
        """The rules and the samples."""
        return frozenset({"rules", "calibration", "validation"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Rescales the weights and biases of all pairs.

        Raises:
            UserError: A pattern of ``keep_float`` matches no node.
        """
        name_nodes(model)
        change = Change(summary="none")
        pairs: list[Pair] = []
        for node in model.graph:
            if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
                continue
            site = (original_names(node) or (node.name or "",))[0]
            found = find_pair(node)
            if isinstance(found, NoMatch):
                change.skipped.append(Skipped(self.name, site, found.reason))
            elif context.allow(self.name, site):
                pairs.append(found)
                change.rewrites.append(Rewrite(self.name, site, original_names(node)))
        if not pairs:
            return change
        chosen, judged = self._chosen(model, pairs, context)
        change.details = {"fidelity": judged}
        if chosen is None:
            change.summary = (
                f"{units.number(len(pairs), 'layer')} could be equalized, but int8 is better without"
            )
            change.rewrites.clear()
            return change
        alpha, arrays = chosen
        set_arrays(model, arrays)
        change.details["alpha"] = alpha
        change.summary = f"{units.number(len(pairs), 'layer')} equalized" + (
            "" if alpha is None else f", alpha {alpha:g}"
        )
        return change

    def _chosen(
        self, model: ir.Model, pairs: list[Pair], context: Context
    ) -> tuple[tuple[float | None, Arrays] | None, dict[str, float]]:
        """Returns the alpha chosen with its arrays, or ``None`` for none, and the fidelity of each."""
        data = context.calibration
        if data is None or len(data) == 0:
            return (None, equalize(pairs)), {}
        calls = Calls.fitting(model, data, len(data)).for_trials(model, 256)
        between = {pair.first: _between(pair.first) for pair in pairs}
        maxima = channel_maxima(model, list(between.values()), calls)
        seen = {node: maxima[name].astype(np.float64) for node, name in between.items()}
        if self.alpha >= 0:
            return (self.alpha, equalize(pairs, seen, self.alpha)), {}
        samples = context.validation
        if samples is None or len(samples) == 0:
            return (ALPHAS[0], equalize(pairs, seen, ALPHAS[0])), {}
        rules = quantization_rules(context.rules)
        keep = set(kept(model, self.keep_float))
        judging = Reference(model, Calls(samples, calls.batch, calls.limit))
        judged: dict[str, float] = {}
        best: tuple[float | None, Arrays] | None = None
        highest = judged["none"] = _trial(model, {}, rules, keep, calls, judging)
        for alpha in context.progress(ALPHAS, "equalization", len(ALPHAS)):
            if alpha < ALPHAS[0] and best is not None and best[0] != ALPHAS[0]:
                continue
            arrays = equalize(pairs, seen, alpha)
            value = judged[f"{alpha:g}"] = _trial(model, arrays, rules, keep, calls, judging)
            if value > highest and value >= judged["none"] + WORTH:
                highest, best = value, (alpha, arrays)
        return best, {name: round(value, 2) for name, value in judged.items()}


def set_arrays(model: ir.Model, arrays: Arrays) -> None:
    """Replaces constants of the main graph, by name."""
    for name, array in arrays.items():
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(array.astype(np.float32), name=name)


def _trial(
    model: ir.Model,
    arrays: Arrays,
    rules: QuantizationRules,
    keep: set[str],
    calls: Calls,
    judging: Reference,
) -> float:
    """Returns the fidelity of the int8 model with some constants replaced."""
    candidate = model.clone()
    set_arrays(candidate, arrays)
    return int8_worth(candidate, rules, keep, calls, judging)


def _between(node: ir.Node) -> str:
    """Names the value behind a convolution that is quantized: past a ReLU, which runs in its kernel.

    Behind a leaky ReLU the magnitudes are smaller than before it, where they are quantized as well. Of what
    a max pool alone reads, the maxima count.
    """
    output = node.outputs[0]
    for operator in ("Relu", "MaxPool"):
        uses = list(output.uses())
        if len(uses) == 1 and uses[0].node.op_type == operator and not output.is_graph_output():
            output = uses[0].node.outputs[0]
    return output.name or ""


def find_pair(node: ir.Node) -> Pair | NoMatch:
    """Finds the products that read a convolution's channels, or says why it has none."""
    if reason := _obstacle(node):
        return NoMatch(reason)
    seconds: list[ir.Node] = []
    todo = [node.outputs[0]]
    while todo:
        value = todo.pop()
        if value.is_graph_output():
            return NoMatch(f"{value.name!r} is an output of the model")
        for use in value.uses():
            reader = use.node
            if reader.graph is not node.graph:
                return NoMatch(f"{value.name!r} is read in a subgraph")
            if reader.op_type in HOMOGENEOUS and use.idx == 0 and len(reader.outputs) == 1:
                todo.append(reader.outputs[0])
            elif reader.op_type == "Conv" and use.idx == 0:
                if reason := _obstacle(reader):
                    return NoMatch(reason)
                seconds.append(reader)
            else:
                return NoMatch(f"its channels reach {reader.op_type} {reader.name!r}")
    return Pair(node, tuple(seconds)) if seconds else NoMatch("nothing reads it")


def _obstacle(node: ir.Node) -> str:
    for value in node.inputs[1:]:
        if value is None:
            continue
        if not is_constant(value) or value.dtype != ir.DataType.FLOAT:
            return f"the weight {value.name!r} of {node.name!r} is no float constant"
        if len(value.uses()) > 1 or value.is_graph_output():
            return f"the weight {value.name!r} is read by several nodes"
    return ""


def equalize(
    pairs: list[Pair], seen: Mapping[ir.Node, np.ndarray] | None = None, alpha: float = 0.5
) -> Arrays:
    """Computes the rescaled weights and biases of all pairs, in float64.

    Args:
        pairs: The pairs, in the graph's order.
        seen: Per first product the largest magnitude seen in each channel; by default that of its
            weights.
        alpha: The exponent of these magnitudes.
    """
    arrays: dict[ir.Value, np.ndarray] = {}
    ranges = {node: maxima.copy() for node, maxima in (seen or {}).items()}

    def array(value: ir.Value | None) -> np.ndarray:
        assert value is not None and value.const_value is not None
        if value not in arrays:
            arrays[value] = value.const_value.numpy().astype(np.float64)
        return arrays[value]

    for _ in range(ROUNDS):
        moved = 0.0
        for pair in pairs:
            weight = array(pair.first.inputs[1])
            made = ranges.get(pair.first)
            if made is None:
                made = np.abs(weight).reshape(len(weight), -1).max(1, initial=0.0)
            read = np.max(
                [
                    np.abs(_by_input(array(node.inputs[1]), _groups(node))).max((1, 2))
                    for node in pair.seconds
                ],
                axis=0,
            )
            factors = _factors(made, read, alpha)
            moved = max(moved, float(np.abs(factors - 1).max()))
            if pair.first in ranges:
                ranges[pair.first] = made / factors
            arrays[_value(pair.first, 1)] = weight / factors.reshape(-1, *[1] * (weight.ndim - 1))
            if len(pair.first.inputs) > 2 and pair.first.inputs[2] is not None:
                arrays[_value(pair.first, 2)] = array(pair.first.inputs[2]) / factors
            for node in pair.seconds:
                arrays[_value(node, 1)] = _scale_inputs(array(node.inputs[1]), _groups(node), factors)
        if moved < SETTLED:
            break
    return {value.name or "": found for value, found in arrays.items()}


def _factors(made: np.ndarray, read: np.ndarray, alpha: float) -> np.ndarray:
    """Returns the factor of each channel; dead channels keep theirs."""
    live = (made > made.max(initial=0.0) * DEAD) & (read > read.max(initial=0.0) * DEAD)
    factors = np.ones(len(made))
    if live.any():
        factors[live] = made[live] ** alpha / read[live] ** (1 - alpha)
        factors[live] /= np.exp(np.log(factors[live]).mean())  # what all share moves nothing
    return factors


def _value(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _groups(node: ir.Node) -> int:
    return int(node.attributes["group"].as_int()) if "group" in node.attributes else 1


def _by_input(weight: np.ndarray, groups: int) -> np.ndarray:
    """Rearranges weights [out, in / groups, ...] to [in, out / groups, elements]."""
    out, per_group = weight.shape[:2]
    split = weight.reshape(groups, out // groups, per_group, -1)
    return split.transpose(0, 2, 1, 3).reshape(groups * per_group, out // groups, -1)


def _scale_inputs(weight: np.ndarray, groups: int, factors: np.ndarray) -> np.ndarray:
    out, per_group = weight.shape[:2]
    split = weight.reshape(groups, out // groups, per_group, -1)
    scaled: np.ndarray = split * factors.reshape(groups, 1, per_group, 1)
    return scaled.reshape(weight.shape)
