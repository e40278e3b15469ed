"""Proof of a rewrite: the region before and after is cut out and both are run on seeded inputs.

Before and after become one small model with the same inputs, so that they see the same numbers and
one session serves both. Weights of any size are handed to that session as they lie in memory or file,
never copied into it. What may not be drawn at random (shapes, indices, axes, conditions: every
integer or boolean that the graph itself computes) is computed: the region grows upwards until it is.

Where operators saturate or jump, the region is run a second time on inputs that pass their limits.

Equal means: integers, booleans, strings and shapes identical; floats with NaN and Inf at the same
places and max|Δ| <= 1e-5 · max|before| per tensor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from edgeopt.errors import RuntimeFailure
from edgeopt.graph import seeds
from edgeopt.graph.building import tensor_of
from edgeopt.graph.execute import Executor, first_line
from edgeopt.graph.region import feeds_of, open_session, part, read_by

TOLERANCE = 1e-5
"""How far floats may differ, relative to the largest magnitude in the tensor before."""

WHOLE_MODEL = 2**30
"""Models above this many bytes of weights are never compared as a whole."""

_DEPTH = 3
_PARAMETER_INPUTS = {("Resize", 1), ("Resize", 2), ("Upsample", 1), ("Range", 0), ("Range", 1), ("Range", 2)}


_LIMITED = {
    *("Clip", "Min", "Max", "HardSigmoid", "HardSwish", "ThresholdedRelu", "Shrink", "Where"),
    *("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"),
}
"""Operators that do something else beyond a limit: they are run on values that pass it too."""

_LEAST_LIMIT, _FURTHEST, _LIMITS = 6.0, 1e4, 64
"""The limit where none is written, the furthest that inputs are drawn, and how many limits are looked at."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How two computations compare.

    Attributes:
        error: The largest deviation of a float tensor relative to its largest magnitude; 0 where all
            outputs are identical.
        reason: Why they are not equal; "" when they are.
    """

    error: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Proof:
    """What came of proving one rewrite.

    Attributes:
        proved: Before and after computed the same.
        error: As in ``Difference``; ``None`` when nothing could be run.
        reason: Why it is not proved.
        refuted: Before and after ran and differ, or only after fails.
        reproducer: The folder with before.onnx, after.onnx and inputs.npz of a refuted rewrite.
    """

    proved: bool
    error: float | None = None
    reason: str = ""
    refuted: bool = False
    reproducer: Path | None = None


Side = Literal["before", "after", "both"]


class _CannotRun(Exception):
    """The region before does not run on the inputs drawn, or cannot be cut out."""


def compare(before: np.ndarray, after: np.ndarray) -> Difference:
    """Compares one tensor before and after a rewrite."""
    if before.shape != after.shape:
        return Difference(np.inf, f"shape {list(before.shape)} became {list(after.shape)}")
    if before.dtype != after.dtype:
        return Difference(np.inf, f"type {before.dtype} became {after.dtype}")
    if before.dtype.kind not in "fc":
        different = int(np.count_nonzero(before != after))
        if different:
            return Difference(np.inf, f"{different} of {before.size} values differ")
        return Difference()
    if before.size == 0:
        return Difference()
    wide = np.result_type(before.dtype, np.float64)
    one, two = before.astype(wide), after.astype(wide)
    finite = np.isfinite(one)
    if not finite.all():
        if not np.array_equal(one[~finite], two[~finite], equal_nan=True):
            return Difference(np.inf, "NaN or Inf appear at other places")
        one, two = one[finite], two[finite]
        if one.size == 0:
            return Difference()
    if not np.isfinite(two).all():
        return Difference(np.inf, "NaN or Inf appear at other places")
    largest, deviation = float(np.abs(one).max()), float(np.abs(two - one).max())
    if deviation == 0:
        return Difference()
    error = deviation / largest if largest else np.inf
    limit = max(TOLERANCE, 4 * float(np.finfo(before.dtype).eps))
    return Difference(error, f"max|Δ| is {error:.1e} of max|before|" if error > limit else "")


def compare_all(before: Iterable[np.ndarray], after: Iterable[np.ndarray]) -> Difference:
    """Compares several tensors; the first that differs gives the reason, the worst the error."""
    error = 0.0
    for one, two in zip(before, after, strict=True):
        difference = compare(np.asarray(one), np.asarray(two))
        if difference.reason:
            return difference
        error = max(error, difference.error)
    return Difference(error)


def model_bytes(model: ir.Model) -> int:
    """Bytes of all initializers."""
    return sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def compare_models(before: ir.Model, after: ir.Model, seed: int = 0) -> Difference:
    """Runs two models of one signature on the same seeded inputs and compares all outputs.

    Symbolic dimensions are bound to distinct sizes and to 1. A binding that ``before`` does not run
    with (a window larger than the input) is passed over.

    Raises:
        RuntimeFailure: ``before`` runs with no binding, or an input cannot be drawn.
    """
    given = [value for value in before.graph.inputs if not value.is_initializer()]
    tried = [*seeds.bindings(given), *_larger(given)]
    failure: RuntimeFailure | None = None
    error, ran = 0.0, 0
    with ExitStack() as stack:
        one = stack.enter_context(Executor(before))
        try:
            two = stack.enter_context(Executor(after))
        except RuntimeFailure as reason:
            return Difference(np.inf, reason.message)
        for number, binding in enumerate(tried):
            if number >= 2 and ran:
                break
            drawn = {value.name or "": seeds.array(value, binding, seed) for value in given}
            feeds = {name: item for name, item in drawn.items() if item is not None}
            if len(feeds) < len(drawn):
                missing = next(name for name in drawn if name not in feeds)
                raise RuntimeFailure(f"no values can be drawn for the input {missing!r}")
            try:
                expected = one.run(feeds)
            except RuntimeFailure as reason:
                failure = failure or reason
                continue
            ran += 1
            try:
                got = two.run(feeds)
            except RuntimeFailure as reason:
                return Difference(np.inf, reason.message)
            difference = compare_all(expected.values(), [got[name] for name in expected])
            if difference.reason:
                return difference
            error = max(error, difference.error)
    if not ran:
        assert failure is not None
        raise failure
    return Difference(error)


@dataclass
class Region:
    """A rewrite about to be made.

    Attributes:
        before: The nodes that it replaces.
        after: The nodes that it builds, in an order in which they can run.
        outputs: Every value replaced with the one that takes its place.
        model: The model that holds them.
    """

    before: Sequence[ir.Node]
    after: Sequence[ir.Node]
    outputs: Sequence[tuple[ir.Value, ir.Value]]
    model: ir.Model


def prove(region: Region, name: str, seed: int = 0) -> Proof:
    """Proves one rewrite locally.

    Args:
        region: The rewrite.
        name: How to call it in the reproducer's folder.
        seed: The seed of the inputs.
    """
    nodes = dict.fromkeys(region.before)
    reason = ""
    for depth in range(_DEPTH + 2):
        try:
            return _attempt(region, list(nodes), name, seed)
        except _CannotRun as failure:
            reason = str(failure)
        grown = _grow(nodes, region.after, whole=depth >= _DEPTH)
        if len(grown) == len(nodes):
            break
        nodes = grown
    return Proof(False, reason=f"unproved: {reason}")


def _attempt(region: Region, before: list[ir.Node], name: str, seed: int) -> Proof:
    cut = _Cut(region, before)
    tried = [*seeds.bindings(cut.drawn), *_larger(cut.drawn)]
    proto, fed = cut.part("both")
    constants = feeds_of(fed)
    session: onnxruntime.InferenceSession | None = None
    error, ran, reason = 0.0, 0, "nothing ran"
    for number, binding in enumerate(tried):
        if number >= 2 and ran:
            break
        drawn = cut.draw(binding, seed)
        try:
            session = session or open_session(proto)
            results = session.run(cut.names, _known_to(session, {**constants, **drawn}))
        except Exception as failure:  # onnxruntime raises a class of its own per status code
            reason = first_line(failure)
            if not _runs(cut, drawn):
                continue
            return _refuted(cut, drawn, name, f"the region after does not run: {reason}")
        ran += 1
        difference = cut.compare(results, drawn)
        if difference.reason:
            return _refuted(cut, drawn, name, difference.reason)
        error = max(error, difference.error)
        far = cut.draw(binding, seed, reach) if (reach := cut.reach()) else None
        if far is not None and (reason := _differs_far_out(cut, session, {**constants, **far}, far)):
            return _refuted(cut, far, name, reason)
    if not ran:
        raise _CannotRun(reason)
    return Proof(True, error)


def _differs_far_out(
    cut: _Cut,
    session: onnxruntime.InferenceSession,
    feeds: dict[str, np.ndarray],
    drawn: dict[str, np.ndarray],
) -> str:
    """Why the region differs on values beyond its limits; "" where it does not, or overflows there."""
    try:
        results = session.run(cut.names, _known_to(session, feeds))
    except Exception:  # an index or size out there need not be a valid one
        return ""
    if not all(np.isfinite(item).all() for item in results if item.dtype.kind == "f"):
        return ""
    return cut.compare(results, drawn).reason


class _Cut:
    """The region cut out of its model: what is drawn, what is constant, what is asked of it."""

    def __init__(self, region: Region, before: list[ir.Node]) -> None:
        self.region = region
        after = list(region.after)
        nodes = dict.fromkeys(before)
        frontier = [value for node in [*before, *after] for value in read_by(node)]
        frontier += [new for _, new in region.outputs]
        made = {output for node in [*before, *after] for output in node.outputs}
        inputs: dict[ir.Value, None] = {}
        while frontier:
            value = frontier.pop()
            if value in made or value in inputs:
                continue
            producer = value.producer()
            if tensor_of(value) is None and producer is not None and _must_compute(value, nodes, after):
                nodes[producer] = None
                made.update(producer.outputs)
                frontier.extend(read_by(producer))
            else:
                inputs[value] = None
        self.before, self.after = list(nodes), after
        self.constants = {v: tensor for v in inputs if (tensor := tensor_of(v)) is not None}
        self.drawn = sorted((v for v in inputs if v not in self.constants), key=lambda v: v.name or "")
        for value in self.drawn:
            if seeds.array(value, dict.fromkeys(seeds.symbols([value]), 1), 0) is None:
                raise _CannotRun(f"nothing is known of the value {value.name!r}")
        outputs = dict.fromkeys(value for pair in region.outputs for value in pair)
        self.computed = [value for value in outputs if value in made]
        self.names = [value.name or "" for value in self.computed]

    def part(self, side: Side) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
        """The region as a model; with both, before and after lie beside each other."""
        pairs = self.region.outputs
        wanted = [old for old, _ in pairs] if side != "after" else []
        wanted += [new for _, new in pairs] if side != "before" else []
        available = [*self.before, *self.after] if side != "before" else self.before
        return part(wanted, available, self.region.model)

    def draw(self, binding: seeds.Binding, seed: int, reach: float = 1) -> dict[str, np.ndarray]:
        """The values that are drawn, by name."""
        drawn = {value.name or "": seeds.array(value, binding, seed, reach) for value in self.drawn}
        return {name: values for name, values in drawn.items() if values is not None}

    def reach(self) -> float:
        """How far inputs must go to pass the limits of operators that saturate or jump; 0 without such."""
        limited = [node for node in (*self.before, *self.after) if node.op_type in _LIMITED]
        if not limited:
            return 0
        limits = [_LEAST_LIMIT]
        written = [item for node in limited for item in node.attributes.values()]
        floats = [item.as_float() for item in written if item.type == ir.AttributeType.FLOAT]
        limits += [abs(number) for number in floats if np.isfinite(number)]
        for value in (value for node in limited for value in node.inputs):
            tensor = tensor_of(value)
            if tensor is not None and tensor.size <= _LIMITS and tensor.dtype.is_floating_point():
                numbers = np.abs(np.asarray(tensor.numpy(), np.float64)).reshape(-1)
                limits += [float(number) for number in numbers[np.isfinite(numbers)]]
        return min(max(limits), _FURTHEST)

    def compare(self, results: Sequence[np.ndarray], drawn: dict[str, np.ndarray]) -> Difference:
        """Compares what the region's two sides computed."""
        values = dict(zip(self.computed, results, strict=True))
        values.update({value: drawn[value.name or ""] for value in self.drawn})
        pairs = self.region.outputs
        return compare_all(
            [self.value(old, values) for old, _ in pairs], [self.value(new, values) for _, new in pairs]
        )

    def value(self, value: ir.Value, values: dict[ir.Value, np.ndarray]) -> np.ndarray:
        """One of the region's outputs, which may be an input or a constant passed on."""
        return values[value] if value in values else self.constants[value].numpy()


def _must_compute(value: ir.Value, before: Iterable[ir.Node], after: Iterable[ir.Node]) -> bool:
    """Whether a value may not be drawn: an integer or boolean of the graph's own, or a parameter."""
    if value.dtype is None or value.shape is None:
        return True
    if value.dtype in (ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL):
        return True
    nodes = {*before, *after}
    return any(use.node in nodes and (use.node.op_type, use.idx) in _PARAMETER_INPUTS for use in value.uses())


def _grow(nodes: dict[ir.Node, None], after: Sequence[ir.Node], whole: bool) -> dict[ir.Node, None]:
    """Adds the makers of everything that the region reads: one layer of them, or all."""
    grown = dict(nodes)
    todo = [value for node in [*nodes, *after] for value in read_by(node)]
    fresh = {*after}
    while todo:
        producer = todo.pop().producer()
        if producer is None or producer in grown or producer in fresh:
            continue
        grown[producer] = None
        if whole:
            todo.extend(read_by(producer))
    return grown


def _larger(values: Sequence[ir.Value]) -> list[seeds.Binding]:
    names = seeds.symbols(values)
    return [seeds.distinct(names, sizes) for sizes in seeds.SIZES[1:]] if names else []


def _known_to(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {value.name: feeds[value.name] for value in session.get_inputs()}


def _runs(cut: _Cut, drawn: dict[str, np.ndarray]) -> bool:
    proto, fed = cut.part("before")
    feeds = feeds_of(fed) | drawn
    try:
        session = open_session(proto)
        session.run(None, _known_to(session, feeds))
    except Exception:  # whatever it is: before does not run, and that is the answer
        return False
    return True


def _refuted(cut: _Cut, drawn: dict[str, np.ndarray], name: str, reason: str) -> Proof:
    slug = "".join(letter if letter.isalnum() else "-" for letter in name).strip("-")[:60]
    folder = Path(tempfile.mkdtemp(prefix=f"edgeopt-refuted-{slug}-"))
    feeds = dict(drawn)
    sides: tuple[Side, ...] = ("before", "after")
    for side in sides:
        proto, fed = cut.part(side)
        feeds.update(feeds_of(fed))
        onnx.save(proto, folder / f"{side}.onnx")
    np.savez(folder / "inputs.npz", **feeds)  # type: ignore[arg-type]
    return Proof(False, reason=reason, refuted=True, reproducer=folder)
