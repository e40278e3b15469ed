"""Quantize to 8-bit integers with ranges calibrated on data.

Which operands become integers is the runtime's business (see ``graph/placement.py``). Weights get
symmetric scales per output channel from their extremes; activations get ranges from one run over the
calibration samples. Where a bias is stored as int32 at scale input x weight and would not fit, the
channel's weight scale is widened until it does.

Weights and biases stay float in the graph; the target folds them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from edgeopt import units
from edgeopt.errors import PassError, UserError
from edgeopt.graph.change import Change, Rewrite
from edgeopt.graph.execute import Feeds
from edgeopt.graph.names import name_nodes
from edgeopt.graph.observers import Observer, channel_scales
from edgeopt.graph.placement import Placement, is_constant, place
from edgeopt.graph.quantization import Parameters, QuantParams, Site, write
from edgeopt.graph.thresholds import PERCENTILE, Method
from edgeopt.passes._calibration import METHODS, Calls, Reference, Watched, calibrate, scales, worth
from edgeopt.passes._calibration_lint import lint
from edgeopt.passes._rules import ALREADY, comes_quantized, kept, mark, quantization_rules, settled
from edgeopt.passes._sensitivity import Trial, shown, told
from edgeopt.passes._throughout import Throughout, channel_parameters, place_throughout
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Stage
from edgeopt.platform import QuantizationRules, TensorRule

Regime = Literal["no", "int8", "residual-int16"]

Choice = Literal["auto", "min-max", "moving-average", "percentile", "entropy", "mse"]

CUTTING = 0.2
"""dB on the validation samples that cutting ranges off must gain."""

PER_CALL = 1.0
"""dB on the validation samples that ranges computed at every call must gain."""

NOTHING_LEFT = "earlier passes have quantized all layers that this one would"
"""What is said where schemes are mixed and nothing is left."""

FLOAT_KERNELS = (
    "activations have 16 bits: onnxruntime has no integer kernels for them on a processor and computes such "
    "layers in float, so this buys the accuracy that another runtime would have, and no speed"
)
"""What 16-bit activations are worth."""


@dataclass(frozen=True)
class StaticInt8(Pass):
    """Quantize weights and activations to 8 bits with calibrated ranges.

    Attributes:
        keep_float: Shell patterns of original node names that stay in float.
        observer: How ranges of activations are chosen: ``min-max``, ``moving-average`` (of each call's
            extremes), ``percentile``, ``entropy``, ``mse``, or whichever of ``min-max`` and ``mse`` is more
            faithful on the validation samples (``auto``).
        samples: At most this many calibration samples are used.
        activations: ``symmetric`` or ``asymmetric`` ranges; by default as the runtime wants.
        percentile: Per cent of an activation's numbers that its range holds, for ``percentile``.
        throughout: Quantize everything that flows between products (``int8``; ``residual-int16`` with 16
            bits for residual sums before normalizations), not only what the runtime has kernels for.
        activation_bits: 8, or 16 for activations of 16 bits beside weights of 8.
    """

    name: ClassVar[str] = "static-int8"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "approximate"

    keep_float: tuple[str, ...] = ()
    observer: Choice = "auto"
    samples: int = 256
    activations: str = ""
    percentile: float = PERCENTILE
    throughout: Regime = "no"
    activation_bits: int = 8

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise UserError(f"a percentile lies between 50 and 100, not at {self.percentile:g}")

        if self.activation_bits not in (8, 16):
            raise UserError(f"activations have 8 or 16 bits, not {self.activation_bits}")

    @property
    def reads(self) -> frozenset[Facet]:
        """The rules, the calibration samples, and the validation samples they are compared with."""
        return frozenset({"rules", "calibration", "validation"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Writes the quantization of the whole model.

        Raises:
            UserError: There are no calibration samples, or a pattern of ``keep_float`` matches no node.
            PassError: The model's opset has no 16-bit integers.
        """
        data = context.calibration
        if data is None or len(data) == 0:
            raise UserError("static-int8 needs calibration data", hint="--data PATH")
        if comes_quantized(model):
            return Change(summary="already quantized", notes=[ALREADY])
        name_nodes(model)
        rules = quantization_rules(context.rules)
        if self.activations:
            activation = rules.activation.model_copy(update={"symmetric": self.activations == "symmetric"})
            rules = rules.model_copy(update={"activation": activation})
        if self.activation_bits == 16:
            rules = _sixteen(rules, model.opset_imports.get("", 0))
        calls = Watched(Calls.fitting(model, data, self.samples), context.progress, "calibration")
        counts = self.observer not in ("min-max", "moving-average")
        keep = set(kept(model, self.keep_float)) | (done := settled(model))
        placement, observers = calibrate(model, rules, calls, keep, histogram=counts, placing=self._place)
        for node in placement.products:
            if not context.allow(self.name, node):
                keep.add(node)
        if done and not placement.products:
            return Change(summary="already quantized", notes=[NOTHING_LEFT])
        if keep > set(kept(model, self.keep_float)) | done:
            placement, observers = calibrate(
                model, rules, calls, keep, observers, histogram=counts, placing=self._place
            )
        methods = METHODS if self.observer == "auto" else (self.observer,)
        choices = {method: scales(model, placement, observers, method, self.percentile) for method in methods}
        if self.throughout != "no":
            choices = self._by_channel(model, rules, keep, observers, choices, calls)
        reference = self._reference(model, context)
        method, judged = self._best(model, choices, reference)
        notes = lint(model, observers, method, data, context.validation, self.samples, self.percentile)
        if self.activation_bits == 16:
            notes.append(FLOAT_KERNELS)
        params = choices[method]
        if wider := _widened(model, placement, params):
            count, most = (
                units.number(sum(wider.values()), "weight scale"),
                max(wider, key=lambda n: wider[n]),
            )
            notes.append(
                f"biases are stored as 32-bit integers at input times weight scale: so that they fit, {count}"
                f" became wider than the weights need, most of them in {most}"
            )
        moving = self._per_call(model, rules, placement, params, judged, reference)
        if moving:
            params = {**params, **moving}
        ranking = _ranking(model, params, context)
        mark(model)
        write(model, params)
        return Change(
            summary=f"{units.number(len(placement.products), 'layer')} to int8"
            + (f", {len(moving)} inputs by ranges of every call" if moving else ""),
            rewrites=[Rewrite(self.name, node, (node,)) for node in placement.products],
            skipped=placement.skipped,
            details={
                "scheme": self.name,
                "observer": method,
                "fidelity": judged,
                "samples": min(self.samples, len(data)),
                "activations": len(placement.activations),
                "constants": len(placement.constants),
                "kept_float": sorted(keep - done),
                "activation_bits": self.activation_bits,
                **({} if self.throughout == "no" else {"throughout": self.throughout}),
                **ranking,
            },
            notes=notes,
        )

    def _per_call(
        self,
        model: ir.Model,
        rules: QuantizationRules,
        placement: Placement,
        params: Parameters,
        judged: dict[str, float],
        reference: Reference | None,
    ) -> Parameters:
        """Returns new parameters of inputs whose ranges had better be computed at every call, if any.

        Frames of audio, whose level changes from call to call, are an example. What is judged is all that
        products alone read, where the runtime has kernels for it, and it is all or nothing: on a processor
        the one costs what the other does.
        """
        if self.observer != "auto" or self.throughout != "no" or self.activation_bits != 8:
            return {}
        if not judged or reference is None:
            return {}
        moving = {
            where: [QuantParams(ir.DataType.UINT8, None)]
            for where in placement.activations
            if where.value in placement.operands and _for_products(model, where, rules)
        }
        if not moving:
            return {}
        before = max(judged.values())
        judged["per-call"] = round(worth(model, {**params, **moving}, reference), 2)
        return moving if judged["per-call"] >= before + PER_CALL else {}

    def _flow(self, model: ir.Model, rules: QuantizationRules, keep: set[str], unfit: set[str]) -> Throughout:
        return place_throughout(
            model, rules, keep, unfit, "int16" if self.throughout == "residual-int16" else "int8"
        )

    def _place(self, model: ir.Model, rules: QuantizationRules, keep: set[str], unfit: set[str]) -> Placement:
        if self.throughout == "no":
            return place(model, rules, keep, unfit)
        return self._flow(model, rules, keep, unfit).placement

    def _by_channel(
        self,
        model: ir.Model,
        rules: QuantizationRules,
        keep: set[str],
        observers: dict[str, Observer],
        choices: dict[Method, Parameters],
        calls: Iterable[Feeds],
    ) -> dict[Method, Parameters]:
        """Gives the residual stream its scales per channel."""
        flow = self._flow(model, rules, keep, {name for name, item in observers.items() if item.marks})
        made: dict[Method, Parameters] = {}
        for method, params in choices.items():
            known = {where.value: chain[0] for where, chain in params.items()}
            made[method] = {**params, **channel_parameters(model, flow, known, calls)}
        return made

    def _reference(self, model: ir.Model, context: Context) -> Reference | None:
        """The model in float on validation samples, if there are any."""
        if context.validation is None or len(context.validation) == 0:
            return None
        return Reference(model, Calls.fitting(model, context.validation, self.samples).for_trials(model))

    def _best(
        self, model: ir.Model, choices: dict[Method, Parameters], reference: Reference | None
    ) -> tuple[Method, dict[str, float]]:
        """Returns the method whose ranges are the most faithful, and the fidelity of each in dB.

        Ranges that cut something off must gain by it: data may come whose numbers are larger.
        """
        first = next(iter(choices))
        if len(choices) == 1 or reference is None:
            return first, {}
        judged = {method: round(worth(model, params, reference), 2) for method, params in choices.items()}
        slack = {method: CUTTING if method == "min-max" else 0.0 for method in choices}
        return max(choices, key=lambda method: judged[method] + slack[method]), dict(judged.items())


def _widened(model: ir.Model, placement: Placement, params: Parameters) -> dict[str, int]:
    """How many scales of weights, by node, are wider than the weights need, since a bias would not fit."""
    scales = {where.value: chain[0] for where, chain in params.items()}
    names = {node.name: shown(node) for node in model.graph}
    found: dict[str, int] = {}
    for name, _, weight, _, axis in placement.biases:
        tensor, link = model.graph.initializers[weight].const_value, scales.get(weight)
        if tensor is None or link is None or link.scale is None or link.zero_point is not None:
            continue
        needed = channel_scales(tensor.numpy(), axis, link.dtype)
        if needed.shape == link.scale.shape and (count := int((link.scale > 1.001 * needed).sum())):
            found[names[name]] = count
    return found


def _for_products(model: ir.Model, where: Site, rules: QuantizationRules) -> bool:
    """Whether a site is read by products with constant weights alone that take ranges of every call."""
    read = [
        (node, index)
        for node in model.graph
        for index, value in enumerate(node.inputs)
        if value is not None and value.name == where.value
    ]
    readers = [
        (node, index)
        for node, index in read
        if where.readers is None or (node.name or "", index) in where.readers
    ]
    values = [node.inputs[index] for node, index in readers]
    if any(value is not None and _is_whole(value) for value in values):
        return False  # its own steps hold every number exactly
    return bool(readers) and all(
        node.op_type in rules.dynamic
        and index == 0
        and node.inputs[1] is not None
        and is_constant(node.inputs[1])
        for node, index in readers
    )


def _is_whole(value: ir.Value) -> bool:
    """Whether a value holds whole numbers, as ``split-operands`` makes them."""
    maker = value.producer()
    return maker is not None and maker.op_type == "Round"


def _ranking(model: ir.Model, params: Parameters, context: Context) -> dict[str, object]:
    """What int8 costs layer by layer, on a few validation samples, each worst first.

    ``ranking``: the fidelity in dB with that layer alone in int8, where that takes seconds. ``signals``: the
    signal-to-noise ratio at its output in the whole int8 model.
    """
    samples = context.validation
    if samples is None or len(samples) == 0 or not params:
        return {}
    names = {node.name or "": shown(node) for node in model.graph}
    trial = Trial(model, params, samples)
    found: dict[str, object] = {}
    if count := trial.affordable():
        found.update(told(trial.ranked(trial.branches, count), names))
    signals = sorted(trial.signals().items(), key=lambda item: item[1])
    return {**found, "signals": [(names[key], round(value, 2)) for key, value in signals]}


def _sixteen(rules: QuantizationRules, opset: int) -> QuantizationRules:
    """The same rules with activations of 16 bits, where the model's opset has them."""
    if opset < 21:
        raise PassError(f"16-bit activations need opset 21, the model has {opset}")

    def wide(rule: TensorRule | None) -> TensorRule | None:
        if rule is None or rule.scale is not None:
            return rule
        dtype = {"int8": "int16", "uint8": "uint16"}.get(rule.dtype, rule.dtype)
        return rule.model_copy(update={"dtype": dtype})

    operators = {
        name: rule.model_copy(update={"output": wide(rule.output)}) for name, rule in rules.operators.items()
    }
    return rules.model_copy(update={"activation": wide(rules.activation), "operators": operators})
