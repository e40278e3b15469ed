"""Give the first convolution the 8-bit numbers that its input was made of; exact in float.

Images come from 8-bit pixels u, but models read x_c = (u_c / 255 - mean_c) / deviation_c in float, and one
scale and zero point for all channels hits the levels of none: what was 8 bits is rounded to other 8 bits.
Where the calibration samples show that channel c holds nothing but o_c + d_c u with whole numbers u
(``_lattice.py``),

    y_c = (x_c - o_c) / d_c - m = u_c - m,    W'_c = d_c W_c,    b' = b + sum of W_c (o_c + m d_c)

computes the same convolution of whole numbers, which the scale 1 represents exactly (``Observer.pixels``).
With m the mean of the levels of x_c = 0 these are small, as those were, so that rounded weights move no
output's mean. Padding is zero in x, which is between two levels of y, elsewhere in every channel. So it is
made explicit before the input is moved, and rounded by at most half a level like any pixel before. Where
zero lies on a level of every channel, and 8 bits hold all that is read, nothing is added or padded:
y_c = x_c / d_c.

The input is left alone where other noise drowns what this saves. With P the power of the noise at the
outputs, measured on validation samples with the input alone quantized and with all activations, the gain is
reckoned as 10 log10(P_all / (P_all - P_input + P_input')).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.graph.change import Change, NoMatch, Rewrite, Skipped
from edgeopt.graph.names import carry_names, name_nodes, original_names
from edgeopt.graph.observers import Observer, parameters
from edgeopt.graph.placement import is_constant, place
from edgeopt.graph.quantization import FIRST_OPSET, Names, QuantParams, Site, add_initializer
from edgeopt.passes._calibration import WORTH, Calls, calibrate, scales, worth
from edgeopt.passes._lattice import LEVELS, OFF, Lattice, channel_lattices
from edgeopt.passes._rules import comes_quantized, kept, quantization_rules
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Samples, Stage
from edgeopt.platform import QuantizationRules

SAMPLES = 256
"""At most this many calibration samples are looked at; a quarter as many serve to judge."""

LARGEST_SHARE = 0.99
"""Of the noise that the input is taken to make."""


@dataclass(frozen=True, slots=True)
class Move:
    """How the input becomes whole numbers: ``y = x / steps + shifts``.

    Attributes:
        steps: float64 [channels].
        shifts: float64 [channels], or ``None`` where all are zero.
    """

    steps: np.ndarray
    shifts: np.ndarray | None


@dataclass(frozen=True)
class RestorePixels(Pass):
    """Let the first convolution read the 8-bit pixels that its float input was made of; exact in float.

    Attributes:
        keep_float: Shell patterns of original node names that will stay in float.
        gain: dB on the validation samples that it must bring, as reckoned from the noise of the input alone.
    """

    name: ClassVar[str] = "restore-pixels"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "exact"

    keep_float: tuple[str, ...] = ()
    gain: float = WORTH

    @property
    def reads(self) -> frozenset[Facet]:
        """The rules and the samples."""
        return frozenset({"rules", "calibration", "validation"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Moves every input that gains by it.

        Raises:
            UserError: A pattern of ``keep_float`` matches no node.
        """
        if comes_quantized(model):
            return Change(summary="already quantized")
        name_nodes(model)
        change = Change(summary="none")
        data = context.calibration
        rules = quantization_rules(context.rules)
        keep = set(kept(model, self.keep_float))
        if data is None or len(data) == 0 or not _moves_float(rules):
            return change
        alone: dict[str, dict[str, float]] = {}
        for value in model.graph.inputs:
            conv = first_convolution(model, value)
            if conv is None or conv.name in keep:
                continue
            site = (original_names(conv) or (conv.name or "",))[0]
            found = self._move(model, value, rules, keep, data, context.validation, alone)
            if isinstance(found, NoMatch):
                change.skipped.append(Skipped(self.name, site, found.reason))
            elif context.allow(self.name, site):
                move_input(model, conv, found, Names(model))
                change.rewrites.append(Rewrite(self.name, site, original_names(conv)))
        if alone:
            change.details = {"alone": alone}
        if change.rewrites:
            named = ", ".join(f"{item['before']:.1f} -> {item['after']:.1f} dB" for item in alone.values())
            change.summary = f"pixels read as they are, the input alone {named}"
        return change

    def _move(
        self,
        model: ir.Model,
        value: ir.Value,
        rules: QuantizationRules,
        keep: set[str],
        data: Samples,
        validation: Samples | None,
        alone: dict[str, dict[str, float]],
    ) -> Move | NoMatch:
        """How an input is moved, or why it had better not be."""
        name = value.name or ""
        calls = Calls.fitting(model, data, SAMPLES)
        lattices = channel_lattices(feeds[name] for feeds in calls)
        if lattices is None:
            return NoMatch(f"the numbers of {name!r} are no 8-bit pixels")
        found = move_of(lattices)
        if _is_hit(model, value, lattices, found, rules, keep, calls):
            return NoMatch(f"one scale hits the levels of {name!r} as it is")
        if validation is None or len(validation) == 0:
            return found
        few = Calls(calls.data, calls.batch, SAMPLES // 4)
        judging = Calls(validation, calls.batch, SAMPLES // 4)
        placement, observers = calibrate(model, rules, few, keep)
        params = scales(model, placement, observers, "mse")
        params = {where: params[where] for where in placement.activations}  # weights will be solved for
        own = {where: chain for where, chain in params.items() if where.value == name}
        if not own:
            return NoMatch(f"{name!r} is not quantized")
        moved = model.clone()
        conv = first_convolution(moved, next(item for item in moved.graph.inputs if item.name == name))
        assert conv is not None
        result = move_input(moved, conv, found, Names(moved))
        (chain,) = own.values()
        exact = {Site(result.name or ""): [_exact(lattices, found, chain[0].dtype)]}
        total, before = worth(model, params, judging), worth(model, own, judging)
        after = worth(moved, exact, judging)
        gain = _gain(total, before, after)
        if gain < self.gain:
            return NoMatch(f"its pixels would bring {gain:.2f} dB")
        alone[name] = {"before": round(before, 2), "after": round(after, 2), "gain": round(gain, 2)}
        return found


def _moves_float(rules: QuantizationRules) -> bool:
    """Whether what moves the input stays in float, and integers may begin at any number."""
    free = not rules.activation.symmetric and rules.activation.scale is None
    operators = (rules.operators.get(name) for name in ("Mul", "Add"))
    return free and all(rule is None or rule.when != "always" for rule in operators)


def first_convolution(model: ir.Model, value: ir.Value) -> ir.Node | None:
    """Returns the convolution that alone reads an input, if its numbers can be replaced."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or value.dtype != ir.DataType.FLOAT:
        return None
    node = uses[0].node
    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx") or uses[0].idx:
        return None
    if node.graph is not model.graph or model.opset_imports.get("", 0) < FIRST_OPSET:
        return None
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    constants = [item for item in node.inputs[1:] if item is not None]
    fits = all(is_constant(item) and item.dtype == ir.DataType.FLOAT for item in constants)
    return node if fits and len(constants[0].uses()) == 1 else None


def move_of(lattices: Sequence[Lattice]) -> Move:
    """Chooses how channels become whole numbers that 8 bits hold, without a shift where that can be."""
    steps = np.array([lattice.step for lattice in lattices])
    first = np.array([lattice.offset / lattice.step for lattice in lattices])
    last = first + [lattice.count - 1 for lattice in lattices]
    if np.abs(first - np.rint(first)).max() < OFF and np.rint(last.max() - min(first.min(), 0)) < LEVELS:
        return Move(steps, None)
    middle = np.rint(np.clip(-first, 0, LEVELS - 1).mean())
    return Move(steps, -first - middle)


def _exact(lattices: Sequence[Lattice], move: Move, dtype: ir.DataType) -> QuantParams:
    """The parameters that represent moved numbers as they are."""
    low = np.array([lattice.offset for lattice in lattices]) / move.steps
    if move.shifts is not None:
        low += move.shifts
    least = min(float(np.rint(low.min())), 0.0)
    return parameters(least, least + LEVELS - 1, dtype)


def _is_hit(
    model: ir.Model,
    value: ir.Value,
    lattices: Sequence[Lattice],
    move: Move,
    rules: QuantizationRules,
    keep: set[str],
    calls: Calls,
) -> bool:
    """Whether the least squared error takes the levels of all channels for its own."""
    if move.shifts is not None or np.ptp(move.steps) > 1e-4 * move.steps[0]:
        return False
    observer = Observer()
    for feeds in calls:
        observer.see(feeds[value.name or ""])
    placed = {
        where: rule for where, rule in place(model, rules, keep).rules.items() if where.value == value.name
    }
    for rule in placed.values():
        dtype = ir.DataType[rule.dtype.upper()]
        chosen = parameters(*observer.range("mse", dtype), dtype)
        if chosen.scale is None or abs(float(chosen.scale) / lattices[0].step - 1) > OFF / LEVELS:
            return False
    return True


def _gain(total: float, before: float, after: float) -> float:
    """What less noise of the input brings, in dB, given its fidelity alone and that of everything."""
    share = (10 ** (-before / 10) - 10 ** (-after / 10)) / 10 ** (-total / 10)
    return float(-10 * np.log10(1 - min(share, LARGEST_SHARE)))


def move_input(model: ir.Model, conv: ir.Node, move: Move, names: Names) -> ir.Value:
    """Moves what a convolution reads, and its weights and bias against that; returns the moved value."""
    graph = model.graph
    value, weight = conv.inputs[0], conv.inputs[1]
    assert value is not None and weight is not None and weight.const_value is not None
    numbers = weight.const_value.numpy().astype(np.float64)
    steps = _per_group(move.steps, conv, numbers)
    moved = numbers * steps
    weight.const_value = ir.tensor(moved.astype(np.float32), name=weight.name)
    if move.shifts is not None:
        taken = (moved * _per_group(move.shifts, conv, numbers)).reshape(len(numbers), -1).sum(1)
        given = conv.inputs[2] if len(conv.inputs) > 2 else None
        bias = np.zeros(len(numbers)) if given is None else _array(given)
        constant = _constant(graph, names, f"{conv.name}_bias", (bias - taken).astype(np.float32))
        conv.resize_inputs(3)
        conv.replace_input_with(2, constant)
        if given is not None and not given.uses() and not given.is_graph_output():
            graph.initializers.pop(given.name or "", None)
        value = _padded(graph, conv, value, names)
    shape = (1, -1, *[1] * (numbers.ndim - 2))
    scale = _constant(graph, names, f"{value.name}_scale", (1 / move.steps).astype(np.float32).reshape(shape))
    value = _inserted(graph, conv, "Mul", [value, scale], names)
    if move.shifts is not None:
        shift = _constant(graph, names, f"{value.name}_shift", move.shifts.astype(np.float32).reshape(shape))
        value = _inserted(graph, conv, "Add", [value, shift], names)
    conv.replace_input_with(0, value)
    return value


def _per_group(channels: np.ndarray, conv: ir.Node, weight: np.ndarray) -> np.ndarray:
    """Lays numbers of input channels out beside weights [out, in / groups, ...]."""
    groups = conv.attributes.get_int("group", 1)
    own = np.repeat(channels.reshape(groups, -1), len(weight) // groups, axis=0)
    return own.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))


def _padded(graph: ir.Graph, conv: ir.Node, value: ir.Value, names: Names) -> ir.Value:
    """Pads with zeros what a convolution would pad itself."""
    pads = list(conv.attributes.get_ints("pads", ()))
    if not any(pads):
        return value
    half = len(pads) // 2
    both = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
    conv.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(pads))
    return _inserted(
        graph, conv, "Pad", [value, _constant(graph, names, f"{value.name}_pads", both)], names, both
    )


def _inserted(
    graph: ir.Graph,
    conv: ir.Node,
    operator: str,
    inputs: Sequence[ir.Value],
    names: Names,
    pads: np.ndarray | None = None,
) -> ir.Value:
    source = inputs[0]
    node = ir.Node("", operator, inputs, name=names.node(f"{conv.name}_{operator.lower()}"))
    carry_names([conv], node)
    made = node.outputs[0]
    made.name = names.value(f"{source.name}_{operator.lower()}")
    made.type = source.type
    if source.shape is not None:
        more = np.zeros(2 * len(source.shape), np.int64) if pads is None else pads
        extra = (more[: len(source.shape)] + more[len(source.shape) :]).tolist()
        made.shape = ir.Shape([_longer(size, by) for size, by in zip(source.shape, extra, strict=True)])
    graph.insert_before(conv, node)
    return made


def _longer(size: int | ir.SymbolicDim, by: int) -> int | ir.SymbolicDim:
    if not by:
        return size
    return size + by if isinstance(size, int) else ir.SymbolicDim(None)


def _constant(graph: ir.Graph, names: Names, stem: str, array: np.ndarray) -> ir.Value:
    name = names.value(stem)
    return add_initializer(graph, name, ir.tensor(array, name=name))


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    array: np.ndarray = value.const_value.numpy().astype(np.float64)
    return array
