"""Quantize to 8-bit integers with ranges calibrated on data.

Which operands become integers is the runtime's business (see ``graph/placement.py``). Weights get
symmetric scales per output channel from their extremes; activations get ranges from one run over the
calibration samples. Where a bias is stored as int32 at scale input x weight and would not fit, the
channel's weight scale is widened until it does.

Weights and biases stay float in the graph; the target folds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.errors import PassError
from edgeopt.graph.change import Change, Rewrite
from edgeopt.graph.names import name_nodes
from edgeopt.graph.observers import Method, Observer, channel_scales, observe, parameters
from edgeopt.graph.placement import Placement, place
from edgeopt.graph.quantization import Parameters, QuantParams, Site, write
from edgeopt.passes._rules import kept, quantization_rules
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Samples, Stage
from edgeopt.platform import QuantizationRules, TensorRule

BATCH = 8
"""Samples per call of the calibration, where the model takes several."""


@dataclass(frozen=True)
class StaticInt8(Pass):
    """Quantize weights and activations to 8 bits with calibrated ranges.

    Attributes:
        keep_float: Shell patterns of original node names that stay in float.
        observer: How ranges of activations are chosen: ``min-max`` or ``mse``.
        samples: At most this many calibration samples are used.
        activations: ``symmetric`` or ``asymmetric`` ranges; by default as the runtime wants.
    """

    name: ClassVar[str] = "static-int8"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "approximate"

    keep_float: tuple[str, ...] = ()
    observer: Method = "mse"
    samples: int = 256
    activations: str = ""

    @property
    def reads(self) -> frozenset[Facet]:
        """The rules and the calibration samples."""
        return frozenset({"rules", "calibration"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Writes the quantization of the whole model.

        Raises:
            PassError: There are no calibration samples.
            UserError: A pattern of ``keep_float`` matches no node.
        """
        data = context.calibration
        if data is None or len(data) == 0:
            raise PassError("static-int8 needs calibration data")
        name_nodes(model)
        rules = quantization_rules(context.rules)
        if self.activations:
            activation = rules.activation.model_copy(update={"symmetric": self.activations == "symmetric"})
            rules = rules.model_copy(update={"activation": activation})
        calls = Calls(data, BATCH, self.samples)
        keep = set(kept(model, self.keep_float))
        placement, observers = calibrate(model, rules, calls, keep)
        for node in placement.products:
            if not context.allow(self.name, node):
                keep.add(node)
        if keep - set(kept(model, self.keep_float)):
            placement, observers = calibrate(model, rules, calls, keep, observers)
        params = scales(model, placement, observers, self.observer, rules)
        write(model, params)
        return Change(
            summary=f"{len(placement.products)} layers to int8",
            rewrites=[Rewrite(self.name, node, (node,)) for node in placement.products],
            skipped=placement.skipped,
            details={
                "scheme": self.name,
                "observer": self.observer,
                "samples": min(self.samples, len(data)),
                "activations": len(placement.activations),
                "constants": len(placement.constants),
                "kept_float": sorted(keep),
            },
        )


@dataclass(frozen=True, slots=True)
class Calls:
    """Model calls that can be iterated again and again."""

    data: Samples
    batch: int
    limit: int

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        count = -(-self.limit // self.batch) if self.limit < len(self.data) else None
        return islice(self.data.feeds(self.batch), count)


def calibrate(
    model: ir.Model,
    rules: QuantizationRules,
    calls: Calls,
    keep: set[str],
    known: dict[str, Observer] | None = None,
) -> tuple[Placement, dict[str, Observer]]:
    """Places the quantization and observes the values that need ranges.

    Values that turn out to hold masks are given up, with the nodes that wanted them; what that asks for
    anew is observed in another run.
    """
    observers = dict(known or {})
    while True:
        unfit = {name for name, observer in observers.items() if observer.marks}
        placement = place(model, rules, keep, unfit)
        missing = [name for name in placement.observed if name not in observers]
        if not missing:
            return placement, observers
        observers.update(observe(model, missing, calls))


def scales(
    model: ir.Model,
    placement: Placement,
    observers: dict[str, Observer],
    method: Method,
    rules: QuantizationRules,
) -> Parameters:
    """Turns observed ranges and constants into parameters for every site."""
    params: dict[Site, list[QuantParams]] = {}
    ranges: dict[str, QuantParams] = {}
    for where, origin in placement.activations.items():
        if origin not in ranges:
            ranges[origin] = _activation(observers[origin], placement.rules[where], method)
        params[where] = [ranges[origin]]
        ranges.setdefault(where.value, ranges[origin])
    smallest = _smallest_scales(model, placement, ranges)
    for where, constant in placement.constants.items():
        tensor = model.graph.initializers[constant.value].const_value
        assert tensor is not None
        dtype = _dtype(constant.rule)
        if constant.rule.symmetric:
            scale = channel_scales(tensor.numpy(), constant.axis, dtype)
            if constant.value in smallest:
                scale = np.maximum(scale, smallest[constant.value]).astype(np.float32)
            params[where] = [QuantParams(dtype, scale, None, None if scale.ndim == 0 else constant.axis)]
        else:
            array = tensor.numpy()
            params[where] = [parameters(float(array.min()), float(array.max()), dtype)]
    return params


def _activation(observer: Observer, rule: TensorRule, method: Method) -> QuantParams:
    dtype = _dtype(rule)
    if rule.scale is not None:
        zero = np.asarray(rule.zero_point, dtype.numpy()) if rule.zero_point else None
        return QuantParams(dtype, np.asarray(rule.scale, np.float32), zero)
    low, high = observer.range(method, dtype, rule.symmetric)
    return parameters(low, high, dtype, rule.symmetric)


def _smallest_scales(
    model: ir.Model, placement: Placement, ranges: dict[str, QuantParams]
) -> dict[str, np.ndarray]:
    """Returns per weight the smallest scales with which every int32 bias fits, with a bit to spare."""
    smallest: dict[str, np.ndarray] = {}
    for _, source, weight, bias, axis in placement.biases:
        tensor = model.graph.initializers[bias].const_value
        scale = ranges[source].scale if source in ranges else None
        if tensor is None or scale is None:
            continue
        needed = np.abs(tensor.numpy().reshape(-1).astype(np.float64)) / (float(scale) * 2.0**30)
        least = np.asarray(needed.max(initial=0.0)) if axis is None else needed
        smallest[weight] = np.maximum(smallest.get(weight, np.zeros_like(least)), least)
    return smallest


def _dtype(rule: TensorRule) -> ir.DataType:
    return ir.DataType[rule.dtype.upper()]
