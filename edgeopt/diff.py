"""Where two models differ: in their structure, and tensor by tensor when both run on the same inputs.

Tensors are matched by their names, and layers that a pass rewrote by the original names that they carry:
a fused node stands for the last of the nodes that it replaced. Where the second model quantizes a value,
what its readers get (the dequantized value) is compared. Both models run in reference mode.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.errors import ModelError
from edgeopt.fidelity import decibels, energies
from edgeopt.graph import seeds
from edgeopt.graph.execute import Executor, Feeds
from edgeopt.graph.names import ORIGINAL_NAMES, original_names
from edgeopt.session import Session

TOLERANCE = 1e-5
"""Tensors whose largest deviation is below this share of their largest value count as equal."""

BYTES = 2**27
"""Tensors are compared in groups of about this many bytes."""


@dataclass(frozen=True, slots=True)
class Match:
    """A value of the first model and the value of the second that stands for it."""

    value: str
    other: str
    node: str
    op_type: str
    original: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """How one tensor differs.

    Attributes:
        tensor: Its name in the first model.
        node: The node of the first model that makes it.
        op_type: That node's operator.
        original: The names in the user's model that the node stands for.
        snr: Signal over noise in dB, over all samples; 200 where equal.
        largest: The largest deviation.
        relative: The largest deviation over the largest value.
        equal: It differs by no more than rounding.
    """

    tensor: str
    node: str
    op_type: str
    original: tuple[str, ...]
    snr: float
    largest: float
    relative: float
    equal: bool


@dataclass(frozen=True, slots=True)
class Structure:
    """How two graphs differ, without running them.

    Attributes:
        operators: Per operator how many more the second model has.
        removed: Names of nodes that only the first has.
        added: Names of nodes that only the second has.
        initializers: Names of constants that both have with other values.
        removed_initializers: Names of constants that only the first has.
        added_initializers: Names of constants that only the second has.
        interface: What differs about inputs, outputs and opsets, in words.
    """

    operators: dict[str, int]
    removed: list[str]
    added: list[str]
    initializers: list[str]
    removed_initializers: list[str]
    added_initializers: list[str]
    interface: list[str]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not any(asdict(self).values())


@dataclass(frozen=True, slots=True)
class Difference:
    """How two models differ.

    Attributes:
        structure: In their graphs; ``None`` where one is no ONNX model.
        tensors: In every matched tensor, in the first model's order.
        outputs: Signal over noise in dB, per output.
        samples: How many samples ran.
        seeded: The samples were random.
    """

    structure: Structure | None
    tensors: list[TensorDifference]
    outputs: dict[str, float]
    samples: int
    seeded: bool

    @property
    def first(self) -> TensorDifference | None:
        """The first tensor that differs by more than rounding."""
        return next((tensor for tensor in self.tensors if not tensor.equal), None)

    @property
    def worst(self) -> TensorDifference | None:
        """The tensor with the lowest signal over noise, where any differs."""
        differing = [tensor for tensor in self.tensors if not tensor.equal]
        return min(differing, key=lambda tensor: tensor.snr, default=None)

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain JSON data."""
        return {
            "samples": self.samples,
            "seeded": self.seeded,
            "outputs": self.outputs,
            "first": None if self.first is None else asdict(self.first),
            "worst": None if self.worst is None else asdict(self.worst),
            "structure": None if self.structure is None else asdict(self.structure),
            "layers": [asdict(tensor) for tensor in self.tensors],
        }


def diff(one: ir.Model, other: ir.Model, samples: Sequence[Feeds], *, seeded: bool = False) -> Difference:
    """Runs two models on the same samples and compares every tensor that both have.

    Args:
        one: The model that counts as right.
        other: The model compared with it.
        samples: Inputs of calls, by name.
        seeded: The samples are random; noted in the result.

    Raises:
        ModelError: The models have other inputs.
        RuntimeFailure: A model does not run on these inputs.
    """
    _same_inputs([value.name or "" for value in one.graph.inputs], [v.name or "" for v in other.graph.inputs])
    matches = match(one, other)
    sums: dict[str, _Sum] = {found.value: _Sum() for found in matches}
    for group in _groups(one, matches, samples):
        taps, twins = [found.value for found in group], [found.other for found in group]
        with Executor(one, taps) as first, Executor(other, twins) as second:
            for feeds in samples:
                expected = first.run(feeds, taps)
                actual = second.run(feeds, list(dict.fromkeys(twins)))
                for found in group:
                    sums[found.value].add(expected[found.value], actual[found.other])
    tensors = [sums[found.value].difference(found) for found in matches]
    by_name = {tensor.tensor: tensor.snr for tensor in tensors}
    names = [value.name or "" for value in one.graph.outputs]
    outputs = {name: by_name[name] for name in names if name in by_name}
    return Difference(structure(one, other), tensors, outputs, len(samples), seeded)


def diff_sessions(
    one: Session, other: Session, samples: Sequence[Feeds], *, seeded: bool = False
) -> Difference:
    """Compares the outputs of two running models, of which one or both cannot be looked into."""
    _same_inputs([spec.name for spec in one.inputs], [spec.name for spec in other.inputs])
    names = [spec.name for spec in one.outputs if spec.name in {twin.name for twin in other.outputs}]
    sums = {name: _Sum() for name in names}
    for feeds in samples:
        expected, actual = one.run(feeds), other.run(feeds)
        for name in names:
            sums[name].add(expected[name], actual[name])
    tensors = [sums[name].difference(Match(name, name, "", "output", ())) for name in names]
    outputs = {tensor.tensor: tensor.snr for tensor in tensors}
    return Difference(None, tensors, outputs, len(samples), seeded)


def seeded_samples(model: ir.Model, count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Draws inputs of a model, the same for the same seed; symbolic dimensions are small.

    Raises:
        ModelError: An input has no shape or a type that cannot be drawn.
    """
    inputs = list(model.graph.inputs)
    names = seeds.symbols(inputs)
    binding = {name: 1 if "batch" in name.lower() or name == "N" else 16 for name in names}
    samples = []
    for number in range(count):
        feeds: dict[str, np.ndarray] = {}
        for value in inputs:
            drawn = seeds.array(value, binding, seed + number)
            if drawn is None:
                raise ModelError(
                    f"the input {value.name!r} cannot be made up", hint="give real inputs with --data"
                )
            feeds[value.name or ""] = drawn
        samples.append(feeds)
    return samples


def restore_names(model: ir.Model, names: Sequence[Mapping[str, Any]]) -> None:
    """Gives the nodes of an artifact's model the names that the provenance keeps, in place.

    Args:
        model: A model as an artifact ships it, its nodes without names.
        names: Per node of its main graph, in order, ``node`` and ``original``; where their number is
            another, as after the runtime's own optimization, nothing is restored.
    """
    nodes = list(model.graph)
    if len(nodes) != len(names):
        return
    for node, entry in zip(nodes, names, strict=True):
        node.name = str(entry["node"]) or node.name
        node.metadata_props[ORIGINAL_NAMES] = json.dumps(list(entry["original"]))


def match(one: ir.Model, other: ir.Model) -> list[Match]:
    """Matches the float values of two main graphs, in the first one's order."""
    theirs = {output.name: output for node in other.graph for output in node.outputs if output.name}
    standing = _standing_for(one, other)
    found = []
    for node in one.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Constant"):
            continue
        for output in node.outputs:
            if not output.name or (output.dtype is not None and not output.dtype.is_floating_point()):
                continue
            twin = theirs.get(output.name) or standing.get(output.name)
            if twin is not None and twin.name:
                seen = _as_read(twin)
                name = node.name or node.op_type
                found.append(Match(output.name, seen, name, node.op_type, original_names(node)))
    return found


def _standing_for(one: ir.Model, other: ir.Model) -> dict[str, ir.Value]:
    """Per value of the first model the output of the rewritten node of the second that replaces it."""
    place: dict[str, tuple[int, ir.Node]] = {}
    for index, node in enumerate(one.graph):
        for name in original_names(node):
            place[name] = (index, node)
    standing: dict[str, ir.Value] = {}
    for node in other.graph:
        replaced = [place[name] for name in original_names(node) if name in place]
        if not replaced or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        _, last = max(replaced, key=lambda entry: entry[0])
        for mine, twin in zip(last.outputs, node.outputs, strict=False):
            if mine.name:
                standing[mine.name] = twin
    return standing


def _as_read(value: ir.Value) -> str:
    """What readers get: the dequantized form of a value that is quantized or integers, else its own name."""
    readers = value.consumers()
    if readers and not value.is_graph_output() and readers[0].op_type == "DequantizeLinear":
        return readers[0].outputs[0].name or value.name or ""
    if value.is_graph_output() or not readers or any(node.op_type != "QuantizeLinear" for node in readers):
        return value.name or ""
    follower = readers[0].outputs[0].consumers()
    if follower and follower[0].op_type == "DequantizeLinear" and follower[0].outputs[0].name:
        return follower[0].outputs[0].name
    return value.name or ""


def structure(one: ir.Model, other: ir.Model) -> Structure:
    """Compares two graphs without running them."""
    before = Counter(node.op_type for node in one.graph.all_nodes())
    after = Counter(node.op_type for node in other.graph.all_nodes())
    changed = {name: after[name] - before[name] for name in sorted(before | after)}
    ours = {name for node in one.graph.all_nodes() for name in original_names(node)}
    theirs = {name for node in other.graph.all_nodes() for name in original_names(node)}
    constants = one.graph.initializers
    twins = other.graph.initializers
    return Structure(
        operators={name: count for name, count in changed.items() if count},
        removed=sorted(ours - theirs),
        added=sorted(theirs - ours),
        initializers=sorted(
            name for name in constants if name in twins and not _same_tensor(constants[name], twins[name])
        ),
        removed_initializers=sorted(name for name in constants if name not in twins),
        added_initializers=sorted(name for name in twins if name not in constants),
        interface=list(_interface(one, other)),
    )


def _interface(one: ir.Model, other: ir.Model) -> Iterator[str]:
    for side, before, after in (
        ("input", one.graph.inputs, other.graph.inputs),
        ("output", one.graph.outputs, other.graph.outputs),
    ):
        ours = {value.name: _described(value) for value in before}
        theirs = {value.name: _described(value) for value in after}
        for name in ours:
            if name not in theirs:
                yield f"the {side} {name!r} is only in the first"
            elif ours[name] != theirs[name]:
                yield f"the {side} {name!r} is {ours[name]} and {theirs[name]}"
        yield from (f"the {side} {name!r} is only in the second" for name in theirs if name not in ours)
    for domain in sorted(set(one.opset_imports) | set(other.opset_imports)):
        versions = (one.opset_imports.get(domain), other.opset_imports.get(domain))
        if versions[0] != versions[1]:
            yield f"the opset of {domain or 'ai.onnx'} is {versions[0]} and {versions[1]}"


def _described(value: ir.Value) -> str:
    shape = "" if value.shape is None else str([getattr(size, "value", size) for size in value.shape])
    return f"{'' if value.dtype is None else value.dtype.name.lower()}{shape}"


def _same_tensor(one: ir.Value, other: ir.Value) -> bool:
    first, second = one.const_value, other.const_value
    if first is None or second is None or first is second:
        return first is second
    if first.dtype != second.dtype or list(first.shape) != list(second.shape):
        return False
    return bool(np.array_equal(first.numpy(), second.numpy()))


def _same_inputs(one: Sequence[str], other: Sequence[str]) -> None:
    if set(one) != set(other):
        raise ModelError(
            "the two models have other inputs, so they cannot run on the same data",
            where=f"first: {', '.join(one)}\n  second: {', '.join(other)}",
        )


def _groups(model: ir.Model, matches: list[Match], samples: Sequence[Feeds]) -> Iterator[list[Match]]:
    """Splits the matches into groups whose tensors fit into memory side by side."""
    from edgeopt.graph.sizes import unroll

    if not samples or not matches:
        return
    shapes = {value.name or "": samples[0][value.name or ""].shape for value in model.graph.inputs}
    sizes = {
        value.name: tensor.bytes
        for value, tensor in unroll(model, shapes).tensors.items()
        if value.name is not None
    }
    group: list[Match] = []
    total = 0
    for found in matches:
        size = sizes.get(found.value, 0)
        if group and total + size > BYTES:
            yield group
            group, total = [], 0
        group.append(found)
        total += size
    yield group


@dataclass(slots=True)
class _Sum:
    """Adds up one tensor's energies over the samples."""

    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0
    magnitude: float = 0.0
    shapes: set[tuple[int, ...]] = field(default_factory=set)

    def add(self, expected: np.ndarray, actual: np.ndarray) -> None:
        """Adds one sample; an output of another shape is unlimited noise."""
        signal, noise = energies(expected, actual)
        self.signal += signal
        self.noise += noise
        if expected.shape != actual.shape:
            self.largest = float("inf")
            return
        if expected.size:
            before = np.asarray(expected, np.float64)
            deviation = np.abs(before - np.asarray(actual, np.float64))
            self.largest = max(self.largest, _finite_max(deviation))
            self.magnitude = max(self.magnitude, _finite_max(np.abs(before)))

    def difference(self, found: Match) -> TensorDifference:
        """Sums up."""
        relative = self.largest / self.magnitude if self.magnitude else self.largest
        equal = relative <= TOLERANCE and np.isfinite(self.noise)
        return TensorDifference(
            tensor=found.value,
            node=found.node,
            op_type=found.op_type,
            original=found.original,
            snr=decibels(self.signal, self.noise),
            largest=self.largest,
            relative=relative,
            equal=bool(equal),
        )


def _finite_max(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size else 0.0


def take(samples: Iterable[Feeds], count: int) -> list[Feeds]:
    """Takes the first samples of a stream."""
    taken: list[Feeds] = []
    for feeds in samples:
        if len(taken) == count:
            break
        taken.append(feeds)
    return taken
