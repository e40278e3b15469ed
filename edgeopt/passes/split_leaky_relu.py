"""Give the two sides of a leaky ReLU 8 bits each.

Between a convolution and a leaky ReLU 8 bits must reach from -a to b, though what is negative becomes small
at once. Where this is much of a model's noise, the convolution is computed twice:

    leaky(z) = max(W x + c, 0) + min(slope W x + slope c, 0)

Integer kernels saturate where their range ends, so that with ranges [0, b] and [-slope a, 0] the maximum and
the minimum cost nothing, and the sum is one of integers. The positive side takes the scale of the sum
(``_calibration.py``), so positive numbers are rounded once, in steps of (b + slope a) / 255 instead of
(a + b) / 255, and negative ones in a fraction of that.

It costs the convolution's multiply-accumulates a second time, and is done where those are few and 0.3 dB are
gained in what activations alone leave on validation samples: the rounding of weights, which ``gptq`` makes up
for, would hide that. The new weights differ by the slope alone; they are small where this is worth it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt import units
from edgeopt.graph.change import Change, NoMatch, Rewrite, Skipped
from edgeopt.graph.names import carry_names, name_nodes, original_names
from edgeopt.graph.observers import Observer
from edgeopt.graph.placement import Placement, is_constant
from edgeopt.graph.quantization import Names, Parameters, add_initializer, drop_initializer
from edgeopt.passes._calibration import Calls, Reference, calibrate, scales, worth
from edgeopt.passes._rules import comes_quantized, kept, quantization_rules
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Stage
from edgeopt.platform import QuantizationRules

GAIN = 0.3
"""dB that a convolution computed twice must bring."""

DEAREST = 0.2
"""Of all multiply-accumulates, what may be computed a second time."""

NARROW = 8
"""Convolutions that read fewer channels take as long as if they read more, so they are not computed twice."""

SAMPLES = 64
"""At most this many samples set ranges, and half as many judge."""


@dataclass(frozen=True, slots=True)
class Side:
    """A convolution and the leaky ReLU behind it.

    Attributes:
        conv: The convolution.
        pools: Max pools between the two.
        leaky: The leaky ReLU.
        slope: Its slope for negative numbers.
        macs: The convolution's multiply-accumulates; 0 where its shapes are not known.
    """

    conv: ir.Node
    pools: tuple[ir.Node, ...]
    leaky: ir.Node
    slope: float
    macs: int


@dataclass(frozen=True)
class SplitLeakyRelu(Pass):
    """Compute convolutions twice whose leaky ReLU wants 8 bits for each side; exact in float.

    Attributes:
        keep_float: Shell patterns of original node names that will stay in float.
        gain: dB that each must bring on the validation samples.
        dearest: The share of the model's multiply-accumulates that may be added.
    """

    name: ClassVar[str] = "split-leaky-relu"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "exact"

    keep_float: tuple[str, ...] = ()
    gain: float = GAIN
    dearest: float = DEAREST

    @property
    def reads(self) -> frozenset[Facet]:
        """The rules and the samples."""
        return frozenset({"rules", "calibration", "validation"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Splits those that gain, the noisiest first.

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
        if not _has_kernels(rules) or not data or not samples:
            return change
        found: list[Side] = []
        for node in model.graph:
            side = find_side(node, keep) if node.op_type == "LeakyRelu" else None
            if isinstance(side, NoMatch):
                change.skipped.append(Skipped(self.name, _site(node), side.reason))
            elif side is not None:
                found.append(side)
        total = sum(macs(node) for node in model.graph if node.op_type == "Conv")
        within = [side for side in found if 0 < side.macs <= self.dearest * total]
        if not within:
            return change
        calls = Calls.fitting(model, data, SAMPLES)
        trial = _Trial(model, rules, keep, calls, Calls(samples, calls.batch, SAMPLES // 2))
        spare = self.dearest * total
        judged = {"none": trial.fidelity}
        for side in context.progress(trial.ranked(within, self.gain), "leaky ReLUs", len(within)):
            site = _site(side.leaky)
            if side.macs > spare or not context.allow(self.name, site):
                continue
            reached = trial.split(side)
            if reached < trial.fidelity + self.gain:
                change.skipped.append(Skipped(self.name, site, "it would gain too little"))
                continue
            trial.take(reached)
            spare -= side.macs
            judged[site] = reached
            change.rewrites.append(Rewrite(self.name, site, original_names(side.conv)))
        model.graph = trial.model.graph
        if change.rewrites:
            change.summary = f"{units.number(len(change.rewrites), 'layer')} computed for either sign"
            change.details = {"activations": {name: round(value, 2) for name, value in judged.items()}}
        return change


class _Trial:
    """The model with some leaky ReLUs split, and what its activations leave in int8."""

    def __init__(
        self, model: ir.Model, rules: QuantizationRules, keep: set[str], calls: Calls, judging: Calls
    ) -> None:
        self.model, self.rules, self.keep, self.calls = model.clone(), rules, keep, calls
        self.reference = Reference(model, judging)
        self.placement, self.observers = calibrate(model, rules, calls, keep)
        self.params = self._activations(self.model, self.placement, self.observers)
        self.fidelity = worth(self.model, self.params, self.reference)
        self.candidate = self.model

    def _activations(
        self, model: ir.Model, placement: Placement, observers: dict[str, Observer]
    ) -> Parameters:
        params = scales(model, placement, observers, "mse")
        return {where: chain for where, chain in params.items() if where in placement.activations}

    def ranked(self, sides: list[Side], gain: float) -> list[Side]:
        """Those whose noise, were there none of it, would gain as much, the noisiest first."""
        least = 1 - 10 ** (-gain / 10)
        shares = {}
        for index, side in enumerate(sides):
            path = [side.conv, *side.pools, side.leaky]
            names = {node.outputs[0].name for node in path}
            own = {where: chain for where, chain in self.params.items() if where.value in names}
            if own:
                alone = worth(self.model, own, self.reference)
                shares[index] = 10 ** ((self.fidelity - alone) / 10)
        return [
            sides[index] for index in sorted(shares, key=lambda item: -shares[item]) if shares[index] > least
        ]

    def split(self, side: Side) -> float:
        """What activations leave with one more of them split."""
        self.candidate = self.model.clone()
        own = next(node for node in self.candidate.graph if node.name == side.leaky.name)
        found = find_side(own, self.keep)
        assert isinstance(found, Side)
        split(self.candidate, found, Names(self.candidate))
        self.placement, self.observers = calibrate(
            self.candidate, self.rules, self.calls, self.keep, self.observers
        )
        params = self._activations(self.candidate, self.placement, self.observers)
        return worth(self.candidate, params, self.reference)

    def take(self, fidelity: float) -> None:
        """Goes on from the one split last."""
        self.model, self.fidelity = self.candidate, fidelity


def _has_kernels(rules: QuantizationRules) -> bool:
    """Whether both sides run in integers and their sum does where it is asked for."""
    conv, joined = rules.operators.get("Conv"), rules.operators.get("Add")
    if conv is None or joined is None or not {"Relu", "Clip"} <= set(rules.fused_activations):
        return False
    free = not rules.activation.symmetric and rules.activation.scale is None
    return free and "LeakyRelu" in rules.operators and joined.when == "between" and bool(conv.outputs)


def find_side(leaky: ir.Node, keep: set[str]) -> Side | NoMatch:
    """Finds the convolution before a leaky ReLU, or says why it cannot be computed twice."""
    slope = leaky.attributes.get_float("alpha", 0.01)
    if not 0 < slope < 1:
        return NoMatch(f"its slope is {slope:g}")
    pools: list[ir.Node] = []
    value = leaky.inputs[0]
    node = None if value is None else value.producer()
    while node is not None and value is not None and len(value.uses()) == 1 and not value.is_graph_output():
        if node.op_type != "MaxPool":
            break
        pools.insert(0, node)
        value = node.inputs[0]
        node = None if value is None else value.producer()
    if node is None or value is None or node.op_type != "Conv" or node.graph is not leaky.graph:
        return NoMatch("no convolution makes what it reads")
    if len(value.uses()) > 1 or value.is_graph_output() or leaky.outputs[0].is_graph_output():
        return NoMatch(f"{value.name!r} is read by others too")
    if {node.name, leaky.name} & keep:
        return NoMatch("it stays in float")
    constants = [item for item in node.inputs[1:] if item is not None]
    if not all(is_constant(item) and item.dtype == ir.DataType.FLOAT for item in constants):
        return NoMatch("the convolution's weights are no float constants")
    if constants[0].const_value is None or constants[0].const_value.shape.numpy()[1] < NARROW:
        return NoMatch("the convolution reads few channels, so it takes long for what it computes")
    return Side(node, tuple(pools), leaky, slope, macs(node))


def macs(conv: ir.Node) -> int:
    """A convolution's multiply-accumulates for one sample; 0 where shapes are not known."""
    weight, shape = conv.inputs[1], conv.outputs[0].shape
    if weight is None or weight.const_value is None or shape is None:
        return 0
    sizes = [size for size in shape[2:] if isinstance(size, int)]
    return (
        int(weight.const_value.size * np.prod(sizes, dtype=np.int64)) if len(sizes) == len(shape) - 2 else 0
    )


def _site(node: ir.Node) -> str:
    return (original_names(node) or (node.name or "",))[0]


def split(model: ir.Model, side: Side, names: Names) -> None:
    """Replaces a convolution and its leaky ReLU by the sum of two convolutions, each cut off at zero."""
    graph = model.graph
    rising = _half(graph, side, names, 1.0, ir.Node("", "Relu", [side.conv.outputs[0]]))
    zero = _constant(graph, names, f"{side.leaky.name}_zero", np.zeros((), np.float32))
    falling = _half(graph, side, names, side.slope, ir.Node("", "Clip", [side.conv.outputs[0], None, zero]))
    joined = ir.Node("", "Add", [rising, falling], name=names.node(f"{side.leaky.name}_sum"))
    carry_names([side.leaky], joined)
    old, new = side.leaky.outputs[0], joined.outputs[0]
    new.type, new.shape, name = old.type, old.shape, old.name
    graph.insert_before(side.leaky, joined)
    old.replace_all_uses_with(new)
    constants = [item for item in side.conv.inputs[1:] if item is not None]
    graph.remove([side.leaky, *reversed(side.pools), side.conv], safe=True)
    old.name, new.name = None, name
    for item in constants:
        drop_initializer(graph, item)


def _half(graph: ir.Graph, side: Side, names: Names, factor: float, cut: ir.Node) -> ir.Value:
    """Computes a convolution times a factor, cuts it off and pools it; returns the last value."""
    conv = side.conv
    inputs = [conv.inputs[0]]
    for item in conv.inputs[1:]:
        if item is None or item.const_value is None:
            continue
        array = item.const_value.numpy() * np.float32(factor)
        inputs.append(_constant(graph, names, f"{item.name}_{cut.op_type.lower()}", array.astype(np.float32)))
    nodes = [ir.Node("", "Conv", inputs, list(conv.attributes.values())), cut]
    nodes += [ir.Node("", "MaxPool", [None], list(pool.attributes.values())) for pool in side.pools]
    value = conv.inputs[0]
    for node, like in zip(nodes, (conv, conv, *side.pools), strict=True):
        node.replace_input_with(0, value)
        node.name = names.node(f"{like.name}_{cut.op_type.lower()}")
        carry_names([like if node is not cut else side.leaky], node)
        value = node.outputs[0]
        value.name = names.value(f"{like.outputs[0].name}_{cut.op_type.lower()}")
        value.type, value.shape = like.outputs[0].type, like.outputs[0].shape
        graph.insert_before(side.leaky, node)
    assert value is not None
    return value


def _constant(graph: ir.Graph, names: Names, stem: str, array: np.ndarray) -> ir.Value:
    name = names.value(stem)
    return add_initializer(graph, name, ir.tensor(array, name=name))
