"""Adjust the ranges of activations by what they do at the model's outputs.

An observer chooses a range by the damage to the value itself. Here the range is moved, and the model's
outputs decide: the error there, over calibration samples and with everything else quantized. The noisiest
values come first, as far as time allows. They are visited in the graph's order, since what lies before a
value does not change with its range: it is computed once, and every trial runs the rest of the model alone.
All moves together are kept where they gain on the validation samples, which took no part.

A range moves by factors: both ends, then the lower, then the upper one, further in the direction that gains.
Values with the same parameters (the runtime may tie them: pools, joins) move together. Parameters that the
runtime fixes, and those per channel or per call, stay. No range shrinks below ``SMALLEST`` of its size, so
that biases which are stored as integers at the scale of the range still fit.

Time is turned into a number of trials before the search starts, by what the operators cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt import units
from edgeopt.errors import ModelError, UserError
from edgeopt.fidelity import Fidelity, energies
from edgeopt.graph.change import Change, Rewrite
from edgeopt.graph.cost import cost
from edgeopt.graph.names import name_nodes
from edgeopt.graph.observers import parameters
from edgeopt.graph.quantization import Parameters, QuantParams, Site, integer_range, read, strip, write
from edgeopt.passes._alone import alone, quantized
from edgeopt.passes._calibration import WORTH, Calls
from edgeopt.passes._judge import Judge
from edgeopt.passes._rules import quantization_rules
from edgeopt.passes._walk import Lane, Values, lane, segments
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Stage
from edgeopt.platform import QuantizationRules

FACTORS = (0.9, 1.12)
"""By so much an end moves in one trial, inwards or outwards."""

SMALLEST, LARGEST = 0.55, 2.0
"""A range stays within these shares of its size."""

LEAST = 0.003
"""The share of the noise that a trial must save."""

PATIENCE = 2
"""So many steps in a row that gain nothing end a direction: rounding makes noise uneven from step to step."""

HOPELESS = 1.05
"""A trial that, halfway through the samples, makes so much more noise is given up."""

TRIALS = 8
"""Trials that a value is expected to take, for choosing how many values are searched."""

MULTIPLIES_PER_SECOND = 2e10
BYTES_PER_SECOND = 4e9
SECONDS_PER_NODE = 2e-4
"""What onnxruntime's reference mode does on one core, and loading a part; estimates of time rest on these."""


@dataclass(frozen=True)
class SearchRanges(Pass):
    """Search the ranges of activations by the error at the outputs.

    Attributes:
        seconds: About how many CPU seconds the search may take; the number of trials follows.
        samples: At most this many calibration samples are used.
        gain: dB on the validation samples that the search must bring to be kept.
    """

    name: ClassVar[str] = "search-ranges"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "approximate"

    seconds: float = 40.0
    samples: int = 128
    gain: float = WORTH

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.samples < 1:
            raise UserError("search-ranges needs time and samples, both above zero")

    @property
    def reads(self) -> frozenset[Facet]:
        """The rules, the samples of both parts, and the float original."""
        return frozenset({"rules", "calibration", "validation", "teacher"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Moves ranges, and keeps them all or none."""
        data, validation = context.calibration, context.validation
        params = read(model)
        tied = _tied(model, params, quantization_rules(context.rules))
        if not data or not validation or not tied:
            return Change(summary="no ranges to search, or no samples to judge by")
        name_nodes(model)
        plain = model.clone()
        strip(plain)
        calls = Calls.fitting(plain, data, self.samples).for_trials(plain, self.samples)
        held = list(calls)
        judge = Judge.of(context.teacher or plain, held)
        order = _noisiest(plain, params, tied, held[:1])
        search = _Search(lane(quantized(plain, params), held), judge, self._allowance(plain, held))
        search.run(order, context)
        if not search.moved:
            return Change(summary=f"no range gains in {units.number(search.trials, 'trial')}")
        found = {
            where: [search.moved.get(_key(link), link) for link in chain] for where, chain in params.items()
        }
        few = list(Calls.fitting(plain, validation, 256).for_trials(plain, 256))
        checked = Judge.of(context.teacher or plain, few)
        before, after = (checked.decibels(quantized(plain, item)) for item in (params, found))
        details = {
            "fidelity": round(before, 2),
            "fidelity_after": round(after, 2),
            "calibration": [round(value, 2) for value in search.reached],
            "trials": search.trials,
            "searched": search.searched,
        }
        count = units.number(len(search.moved), "range")
        if after < before + self.gain:
            details["fidelity_after"] = round(before, 2)
            return Change(summary=f"{count} could move, {before:.1f} -> {after:.1f} dB", details=details)
        strip(model)
        write(model, found)
        values = [tied[key] for key in search.moved]
        return Change(
            summary=f"{count} moved, {before:.1f} -> {after:.1f} dB",
            rewrites=[Rewrite(self.name, sites[0].value, (sites[0].value,)) for sites in values],
            details=details,
        )

    def _allowance(self, plain: ir.Model, calls: Sequence[Values]) -> float:
        """How many runs of the whole model over all samples the time allows."""
        inputs = {value.name for value in plain.graph.inputs}
        shapes = {name: array.shape for name, array in calls[0].items() if name in inputs}
        try:
            counted = cost(plain, shapes).nodes
        except ModelError:  # the declared shapes do not allow the data's
            counted = cost(plain).nodes
        arithmetic = sum(node.macs * node.repeats for node in counted) / MULTIPLIES_PER_SECOND
        traffic = sum((node.read_bytes + node.written_bytes) * node.repeats for node in counted)
        once = (arithmetic + traffic / BYTES_PER_SECOND) * len(calls)
        return float(self.seconds / (once + SECONDS_PER_NODE * len(counted)))


Key = tuple[str, bytes, bytes]
"""The type, scale and zero point of a range."""


def _key(link: QuantParams) -> Key:
    scale = b"" if link.scale is None else link.scale.tobytes()
    return link.dtype.name, scale, b"" if link.zero_point is None else link.zero_point.tobytes()


def _tied(model: ir.Model, params: Parameters, rules: QuantizationRules) -> dict[Key, list[Site]]:
    """The sites of activations, by their range; those of ranges that may not move are left out."""
    outputs = (rule.output for rule in rules.operators.values())
    fixed = {np.float32(rule.scale) for rule in (*outputs, rules.activation) if rule and rule.scale}
    slopes = {
        value.name
        for node in model.graph
        if node.op_type == "LeakyRelu" and rules.slope_factor
        for value in (*node.inputs, *node.outputs)
        if value is not None
    }
    tied: dict[Key, list[Site]] = {}
    constants, stay = model.graph.initializers, set()
    for where, chain in params.items():
        for link in chain:
            if where.value in constants or link.scale is None or link.axis is not None or link.block:
                continue
            tied.setdefault(_key(link), []).append(where)
            if float(link.scale) in fixed or where.value in slopes:
                stay.add(_key(link))
    return {key: sites for key, sites in tied.items() if key not in stay}


def _noisiest(
    plain: ir.Model, params: Parameters, tied: dict[Key, list[Site]], calls: Sequence[Values]
) -> list[tuple[Key, QuantParams, list[Site]]]:
    """The ranges with their sites, by the noise that each alone makes at the outputs, most first."""
    link = {_key(one): one for chain in params.values() for one in chain}
    trials = [{where: [link[key]] for where in sites} for key, sites in tied.items()]
    noise = [sum(one.noise.values()) for one in alone(plain, trials, calls)]
    order = sorted(zip(noise, tied, strict=True), key=lambda item: -item[0])
    return [(key, link[key], tied[key]) for _, key in order]


@dataclass
class _Search:
    """A walk through the quantized model, trying ranges where it has arrived.

    Attributes:
        walk: The quantized model on the calibration calls.
        judge: What the original makes of them.
        allowance: Runs of the whole model that are left.
        moved: By the range that was, the one that is better.
        trials: How many ranges were tried.
        searched: Of how many values.
        reached: The fidelity in dB before and after.
        signals: The energy of each output that counts.
    """

    walk: Lane
    judge: Judge
    allowance: float
    moved: dict[Key, QuantParams] = field(default_factory=dict)
    trials: int = 0
    searched: int = 0
    reached: list[float] = field(default_factory=list)
    signals: dict[str, float] = field(default_factory=dict)

    def run(self, order: Sequence[tuple[Key, QuantParams, list[Site]]], context: Context) -> None:
        """Searches the first of these ranges, as many as time allows, in the graph's order."""
        places = segments(self.walk.model)
        where = {name: index for index, names in enumerate(places) for name in names}
        at: dict[int, list[tuple[Key, QuantParams, list[ir.Node]]]] = {}
        left = self.allowance - 1  # the walk itself
        for key, link, _ in order:
            nodes = self._nodes(link)
            first = min((where.get(node.name or "", 0) for node in nodes), default=0)
            left -= TRIALS * (1 - first / len(places))
            if left < 0 and at:
                break
            at.setdefault(first, []).append((key, link, nodes))
        self.signals = self._signals()
        noise = self._noise(None)
        if noise is None or not at:
            return
        self.reached = [self._decibels(noise)]
        for index in context.progress(range(max(at) + 1), "search of ranges", max(at) + 1):
            for key, link, nodes in at.get(index, ()):
                if self.allowance <= 0 or not context.allow(SearchRanges.name, nodes[0].name or ""):
                    continue
                self.searched += 1
                noise = self._searched(key, link, nodes, noise)
            if index < max(at):
                self.walk.advance(places[index])
        self.reached.append(self._decibels(noise))

    def _signals(self) -> dict[str, float]:
        found = Fidelity()
        for wanted in self.judge.wanted:
            found.add(wanted, wanted)
        every = {
            name: sum(energies(wanted[name], wanted[name])[0] for wanted in self.judge.wanted)
            for name in found.counted
        }
        return {name: energy for name, energy in every.items() if energy > 0}

    def _searched(self, key: Key, link: QuantParams, nodes: list[ir.Node], noise: np.ndarray) -> np.ndarray:
        """Moves one range as long as that gains; returns the noise with the best."""
        best, share = link, len(self.walk.left) / len(self.walk.nodes)
        for moves in _directions(link):
            for factor in FACTORS:
                gained, failed, candidate = False, 0, best
                while self.allowance > 0 and failed < PATIENCE:
                    following = _moved(candidate, moves, factor, link)
                    if following is None:
                        break
                    candidate = following
                    self._set(nodes, candidate)
                    self.trials += 1
                    self.allowance -= share
                    found = self._noise(noise)
                    if found is None or found.sum() > noise.sum() * (1 - LEAST):
                        failed += 1
                    else:
                        best, noise, gained, failed = candidate, found, True, 0
                if gained:
                    break  # the other direction led back
        self._set(nodes, best)
        if best is not link:
            self.moved[key] = best
        return noise

    def _noise(self, limit: np.ndarray | None) -> np.ndarray | None:
        """Noise over signal at the outputs, call by call; ``None`` where it is hopeless."""
        outputs = [value.name or "" for value in self.walk.model.graph.outputs]
        rest = [name for name in self.walk.nodes if name in self.walk.left]
        found = np.zeros(len(self.judge.calls))
        middle = len(found) // 2
        for index, made in enumerate(self.walk.run(rest, outputs)):
            for name, signal in self.signals.items():
                noise = energies(self.judge.wanted[index][name], made[name])[1]
                found[index] += noise / signal / len(self.signals)
            if limit is not None and index + 1 == middle and found.sum() > HOPELESS * limit[:middle].sum():
                return None
        return found

    def _decibels(self, noise: np.ndarray) -> float:
        return float(-10 * np.log10(max(noise.sum(), 1e-20)))

    def _nodes(self, link: QuantParams) -> list[ir.Node]:
        """The nodes that quantize with some parameters, and back."""
        return [node for node in self.walk.model.graph if _reads(node, link)]

    def _set(self, nodes: list[ir.Node], link: QuantParams) -> None:
        """Gives nodes other parameters."""
        for node in nodes:
            scale, zero = node.inputs[1], node.inputs[2]
            assert scale is not None and zero is not None and link.scale is not None
            scale.const_value = ir.Tensor(link.scale.astype(np.float32), name=scale.name)
            integers = np.zeros(()) if link.zero_point is None else link.zero_point
            array = integers.astype(link.dtype.numpy()).reshape(link.scale.shape)
            zero.const_value = ir.Tensor(array, dtype=link.dtype, name=zero.name)


def _reads(node: ir.Node, link: QuantParams) -> bool:
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.inputs) < 3:
        return False
    scale, zero = node.inputs[1], node.inputs[2]
    if scale is None or zero is None or scale.const_value is None or zero.const_value is None:
        return False
    offset = zero.const_value.numpy()
    own = QuantParams(link.dtype, scale.const_value.numpy(), offset if offset.any() else None)
    return zero.const_value.dtype == link.dtype and _key(own) == _key(link)


def _ends(link: QuantParams) -> tuple[float, float]:
    """The smallest and the largest number that a range holds."""
    low, high = integer_range(link.dtype)
    zero = 0 if link.zero_point is None else int(link.zero_point)
    assert link.scale is not None
    return (low - zero) * float(link.scale), (high - zero) * float(link.scale)


def _directions(link: QuantParams) -> Iterator[tuple[bool, bool]]:
    """Which ends of a range move: both, and each alone where the range has two that differ."""
    yield True, True
    low, high = _ends(link)
    if not link.dtype.is_signed() or link.zero_point is not None:
        if -low > 0.05 * high:
            yield True, False
        if high > -0.05 * low and low < 0:
            yield False, True


def _moved(
    link: QuantParams, ends: tuple[bool, bool], factor: float, first: QuantParams
) -> QuantParams | None:
    """A range with one end or both moved; ``None`` where it would leave its limits."""
    assert link.scale is not None and first.scale is not None
    if all(ends):
        made = QuantParams(link.dtype, (link.scale * np.float32(factor)).astype(np.float32), link.zero_point)
    else:
        low, high = _ends(link)
        made = parameters(low * (factor if ends[0] else 1), high * (factor if ends[1] else 1), link.dtype)
    assert made.scale is not None
    share = float(made.scale / first.scale)
    return made if SMALLEST <= share <= LARGEST else None
