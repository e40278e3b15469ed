"""Keep the first convolution in float where 8 bits behind it are much of a model's noise.

A convolution that reads the three channels of an image has few weights and few multiply-accumulates, and
integer kernels gain little by it: they gather three bytes at a time. What it makes is the largest map of the
network and feeds everything, so that 8 bits hurt there most.

It stays in float where that takes away noise worth 0.3 dB, reckoned from what activations leave on validation
samples, with all of them in int8 and with those alone that would be in float. The input is not counted, since
``restore-pixels`` may do away with its noise for less. No node changes: the plan keeps the layer in float
from here on.
"""

from __future__ import annotations

from dataclasses import dataclass
from glob import escape
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.graph.change import Change
from edgeopt.graph.names import name_nodes, original_names
from edgeopt.graph.placement import place
from edgeopt.passes._calibration import Calls, Reference, calibrate, scales, worth
from edgeopt.passes._rules import comes_quantized, kept, quantization_rules
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Stage
from edgeopt.passes.restore_pixels import LARGEST_SHARE, first_convolution
from edgeopt.passes.split_leaky_relu import NARROW, macs
from edgeopt.platform import QuantizationRules

GAIN = 0.3
"""dB that a layer in float must bring."""

DEAREST = 0.05
"""Of all multiply-accumulates of convolutions, what the first one may have."""

LARGEST = 0.02
"""Of all weights, what those of the first one may be: they take four times the bytes."""

SAMPLES = 64
"""At most this many samples set ranges, and half as many judge."""


@dataclass(frozen=True)
class KeepStem(Pass):
    """Keep the convolution that reads an image in float where 8 bits behind it cost much fidelity.

    Attributes:
        keep_float: Shell patterns of original node names that stay in float anyway.
        gain: dB that it must bring on the validation samples, as reckoned from noise.
    """

    name: ClassVar[str] = "keep-stem"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "exact"

    keep_float: tuple[str, ...] = ()
    gain: float = GAIN

    @property
    def reads(self) -> frozenset[Facet]:
        """The rules and the samples."""
        return frozenset({"rules", "calibration", "validation"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Names the layer to keep, as patterns under ``keep_float`` in the details.

        Raises:
            UserError: A pattern of ``keep_float`` matches no node.
        """
        if comes_quantized(model):
            return Change(summary="already quantized")
        name_nodes(model)
        change = Change(summary="none")
        rules = quantization_rules(context.rules)
        keep = set(kept(model, self.keep_float))
        data, samples = context.calibration, context.validation
        stem = _stem(model, keep)
        if stem is None or not _mixes(rules) or not data or not samples:
            return change
        calls = Calls.fitting(model, data, SAMPLES)
        reference = Reference(model, Calls(samples, calls.batch, SAMPLES // 2))
        placement, observers = calibrate(model, rules, calls, keep)
        left = place(model, rules, keep | {stem.name or ""}).activations
        inputs = {value.name for value in model.graph.inputs}
        params = scales(model, placement, observers, "mse")
        behind = [where for where in placement.activations if where.value not in inputs]
        noisy = {where: params[where] for where in behind}
        freed = {where: chain for where, chain in noisy.items() if where not in left}
        if not freed:
            return change
        total, alone = worth(model, noisy, reference), worth(model, freed, reference)
        share = min(10 ** ((total - alone) / 10), LARGEST_SHARE)
        gain = float(-10 * np.log10(1 - share))
        name = (original_names(stem) or (stem.name or "",))[0]
        change.details = {"gain": round(gain, 2)}
        if gain >= self.gain and context.allow(self.name, name):
            change.summary = f"{name} stays in float, for {gain:.1f} dB"
            change.details["keep_float"] = [escape(name)]
        return change


def _mixes(rules: QuantizationRules) -> bool:
    """Whether integers may begin behind a layer in float, and that layer's output is 8 bits elsewhere."""
    conv = rules.operators.get("Conv")
    others = [rules.operators.get(name) for name in ("Add", "Mul")]
    return conv is not None and bool(conv.outputs) and all(rule and rule.when == "between" for rule in others)


def _stem(model: ir.Model, keep: set[str]) -> ir.Node | None:
    """The convolution that reads an image, if it is a small part of the model."""
    convs = [node for node in model.graph if node.op_type == "Conv"]
    found = [conv for value in model.graph.inputs if (conv := first_convolution(model, value)) is not None]
    if len(found) != 1 or found[0].name in keep:
        return None
    stem = found[0]
    total, weights = sum(macs(node) for node in convs), sum(_weights(node) for node in model.graph)
    weight = stem.inputs[1]
    assert weight is not None and weight.const_value is not None
    narrow = weight.const_value.shape.numpy()[1] < NARROW
    cheap = 0 < macs(stem) <= DEAREST * total and _weights(stem) <= LARGEST * weights
    return stem if narrow and cheap else None


def _weights(node: ir.Node) -> int:
    return sum(
        value.const_value.size
        for value in node.inputs
        if value is not None and value.is_initializer() and value.const_value is not None
    )
