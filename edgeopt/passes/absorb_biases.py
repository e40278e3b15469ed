"""Move what channels always have into the biases behind them, so that int8 levels serve what varies.

Where channel i of a convolution's output never fell below some c_i > 0 before its ReLU, the ReLU did nothing
there, and

    W relu(z) + b = W relu(z - c) + (b + W c),

so c goes out of the first convolution's bias and, through the second's weights, into the second's (high-bias
absorption: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019,
section 4.1.3, which takes c = mean - 3 deviations from batch normalization; here it is the smallest number
seen on calibration samples, so that the model computes the same on them). The range between the two becomes
smaller by as much.

Zeros that a convolution pads with would have to become -c, so a second convolution that pads is no place for
it. The result is kept where int8 becomes more faithful on the validation samples.
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
from edgeopt.graph.observers import tapped
from edgeopt.graph.quantization import Names, add_initializer
from edgeopt.passes._calibration import WORTH, Calls, Reference, int8_worth
from edgeopt.passes._rules import comes_quantized, kept, quantization_rules
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Stage
from edgeopt.passes.equalize_channels import Pair, find_pair

SAMPLES = 256
"""At most this many calibration samples say what a channel always has."""

SHARE = 0.05
"""Share of the largest number of all channels that a range must shrink by, else nothing is tried."""

BETWEEN = ("Relu", "LeakyRelu", "MaxPool", "GlobalMaxPool", "GlobalAveragePool")
"""Operators f between the two with f(z) = f(z - c) + c where z is above c."""


@dataclass(frozen=True)
class AbsorbBiases(Pass):
    """Absorb the part of activations that is always there into biases; the same in float on what was seen.

    Attributes:
        keep_float: Shell patterns of original node names that will stay in float; not counted when int8 with
            and without absorption are compared.
    """

    name: ClassVar[str] = "absorb-biases"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "approximate"

    keep_float: tuple[str, ...] = ()

    @property
    def reads(self) -> frozenset[Facet]:
        """The rules and the samples."""
        return frozenset({"rules", "calibration", "validation"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Changes the biases of all pairs that qualify.

        Raises:
            UserError: A pattern of ``keep_float`` matches no node.
        """
        if comes_quantized(model):
            return Change(summary="already quantized")
        name_nodes(model)
        keep = set(kept(model, self.keep_float))
        change = Change()
        pairs: list[Pair] = []
        for node in model.graph:
            if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
                continue
            site = (original_names(node) or (node.name or "",))[0]
            found = _find(node)
            if isinstance(found, NoMatch):
                change.skipped.append(Skipped(self.name, site, found.reason))
            elif context.allow(self.name, site):
                pairs.append(found)
        data = context.calibration
        if not pairs or data is None or len(data) == 0:
            return change
        calls = Calls.fitting(model, data, SAMPLES)
        constant = _constant(model, pairs, calls)
        change.skipped += [
            Skipped(self.name, pair.first.name or "", "no channel stays far enough above zero")
            for pair in pairs
            if pair.first not in constant
        ]
        if not constant:
            return change
        candidate = model.clone()
        _absorb(candidate, {node.name or "": found for node, found in constant.items()})
        if context.validation is not None and len(context.validation):
            trial = calls.for_trials(model)
            judging = Reference(model, Calls(context.validation, trial.batch, trial.limit))
            rules = quantization_rules(context.rules)
            before, after = (int8_worth(one, rules, keep, trial, judging) for one in (model, candidate))
            change.details = {"fidelity": round(before, 2), "fidelity_after": round(after, 2)}
            if after < before + WORTH:
                change.summary = (
                    f"{units.number(len(constant), 'layer')} could be absorbed, but int8 is no better with it"
                )
                return change
        _absorb(model, {node.name or "": found for node, found in constant.items()})
        change.rewrites = [
            Rewrite(self.name, (original_names(node) or (node.name or "",))[0], original_names(node))
            for node in constant
        ]
        change.summary = f"biases of {units.number(len(constant), 'layer')} absorbed"
        return change


def _find(node: ir.Node) -> Pair | NoMatch:
    """Finds the convolutions that can take over what a convolution's channels always have."""
    pair = find_pair(node)
    if isinstance(pair, NoMatch):
        return pair
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return NoMatch("it has no bias")
    for second in pair.seconds:
        if _pads(second):
            return NoMatch("what reads it pads with zeros")
        before = second.inputs[0]
        assert before is not None
        rectified = False
        while before is not None and (maker := before.producer()) is not None and maker is not node:
            if maker.op_type not in BETWEEN:
                return NoMatch(f"its channels pass {maker.op_type} {maker.name!r}")
            rectified |= maker.op_type in ("Relu", "LeakyRelu")
            before = maker.inputs[0]
        if not rectified:
            return NoMatch("no ReLU lies between it and what reads it")
    return pair


def _pads(node: ir.Node) -> bool:
    pads = node.attributes["pads"].as_ints() if "pads" in node.attributes else ()
    automatic = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    return any(pads) or automatic not in ("NOTSET", "VALID")


def _constant(model: ir.Model, pairs: list[Pair], calls: Calls) -> dict[ir.Node, np.ndarray]:
    """Returns per first convolution what its channels always have, where that makes its range smaller."""
    outputs = {pair.first.outputs[0].name or "": pair.first for pair in pairs}
    lowest: dict[str, np.ndarray] = {}
    highest: dict[str, np.ndarray] = {}
    for name, array in tapped(model, list(outputs), calls):
        axes = tuple(axis for axis in range(array.ndim) if axis != 1)
        low, high = array.min(axes), array.max(axes)
        lowest[name] = np.minimum(lowest.get(name, low), low)
        highest[name] = np.maximum(highest.get(name, high), high)
    found = {}
    for name, low in lowest.items():
        always = np.maximum(low, 0.0).astype(np.float64)
        before, after = highest[name].max(), (highest[name] - always).max()
        if before > 0 and after <= (1 - SHARE) * before:
            found[outputs[name]] = always
    return found


def _absorb(model: ir.Model, constant: Mapping[str, np.ndarray]) -> None:
    """Takes constants per channel out of convolutions, by name, and gives them to those that read them."""
    names = Names(model)
    for node in list(model.graph):
        always = constant.get(node.name or "")
        if always is None:
            continue
        pair = find_pair(node)
        assert isinstance(pair, Pair)
        _add(model, names, node, -always)
        for second in pair.seconds:
            weight = second.inputs[1]
            assert weight is not None and weight.const_value is not None
            groups = int(second.attributes["group"].as_int()) if "group" in second.attributes else 1
            taps = weight.const_value.numpy().astype(np.float64)
            taps = taps.reshape(groups, len(taps) // groups, taps.shape[1], -1).sum(-1)
            _add(model, names, second, np.einsum("goi,gi->go", taps, always.reshape(groups, -1)).reshape(-1))


def _add(model: ir.Model, names: Names, node: ir.Node, more: np.ndarray) -> None:
    """Adds to a convolution's bias."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    old = 0.0 if bias is None or bias.const_value is None else bias.const_value.numpy().astype(np.float64)
    array = (old + more).astype(np.float32)
    if bias is not None:
        bias.const_value = ir.tensor(array, name=bias.name)
        return
    name = names.value(f"{node.name}.bias")
    value = add_initializer(model.graph, name, ir.tensor(array, name=name))
    node.resize_inputs(3)
    node.replace_input_with(2, value)
