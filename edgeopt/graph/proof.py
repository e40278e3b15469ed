"""Proof of a rewrite: the region before and after is cut out and both are run on seeded inputs.

Before and after become one small model with the same inputs, so that they see the same numbers and
one session serves both. Weights of any size are handed to that session as they lie in memory or file,
never copied into it. What may not be drawn at random (shapes, indices, axes, conditions: every
integer or boolean that the graph itself computes) is computed: the region grows upwards until it is.

Equal means: integers, booleans, strings and shapes identical; floats with NaN and Inf at the same
places and max|Δ| <= 1e-5 · max|before| per tensor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from edgeopt.errors import RuntimeFailure
from edgeopt.graph import seeds
from edgeopt.graph.execute import Executor, first_line

TOLERANCE = 1e-5
"""How far floats may differ, relative to the largest magnitude in the tensor before."""

WHOLE_MODEL = 2**30
"""Models above this many bytes of weights are never compared as a whole."""

_INLINE = 1024
_DEPTH = 3
_NUMPY_KINDS = "fiub"
_PARAMETER_INPUTS = {("Resize", 1), ("Resize", 2), ("Upsample", 1), ("Range", 0), ("Range", 1), ("Range", 2)}


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
    with Executor(before) as one, Executor(after) as two:
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
    session: onnxruntime.InferenceSession | None = None
    error, ran, reason = 0.0, 0, "nothing ran"
    for number, binding in enumerate(tried):
        if number >= 2 and ran:
            break
        feeds = cut.feeds(binding, seed)
        try:
            session = session or _session(cut.proto("both"))
            results = session.run(cut.names, feeds)
        except Exception as failure:  # onnxruntime raises a class of its own per status code
            reason = first_line(failure)
            if not _runs(cut, feeds):
                continue
            return _refuted(cut, feeds, name, f"the region after does not run: {reason}")
        ran += 1
        values = dict(zip(cut.names, results, strict=True))
        values.update(feeds)
        difference = compare_all(
            [cut.value(old, values) for old, _ in region.outputs],
            [cut.value(new, values) for _, new in region.outputs],
        )
        if difference.reason:
            return _refuted(cut, feeds, name, difference.reason)
        error = max(error, difference.error)
    if not ran:
        raise _CannotRun(reason)
    return Proof(True, error)


class _Cut:
    """The region cut out of its model: what is drawn, what is constant, and the model to run."""

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
            if value.const_value is None and producer is not None and _must_compute(value, nodes, after):
                nodes[producer] = None
                made.update(producer.outputs)
                frontier.extend(read_by(producer))
            else:
                inputs[value] = None
        self.before, self.after = list(nodes), after
        self.constants = {v.name or "": v.const_value for v in inputs if v.const_value is not None}
        self.drawn = sorted((v for v in inputs if v.const_value is None), key=lambda v: v.name or "")
        for value in self.drawn:
            if seeds.array(value, dict.fromkeys(seeds.symbols([value]), 1), 0) is None:
                raise _CannotRun(f"nothing is known of the value {value.name!r}")
        self._fed = {
            key: tensor
            for key, tensor in self.constants.items()
            if tensor.nbytes > _INLINE and tensor.dtype.numpy().kind in _NUMPY_KINDS and _plain(tensor.dtype)
        }
        outputs = dict.fromkeys(value for pair in region.outputs for value in pair)
        self.names = [value.name or "" for value in outputs if value in made]

    def feeds(self, binding: seeds.Binding, seed: int) -> dict[str, np.ndarray]:
        feeds = {key: np.ascontiguousarray(tensor.numpy()) for key, tensor in self._fed.items()}
        for value in self.drawn:
            drawn = seeds.array(value, binding, seed)
            assert drawn is not None  # the constructor saw to it
            feeds[value.name or ""] = drawn
        return feeds

    def value(self, value: ir.Value, values: dict[str, np.ndarray]) -> np.ndarray:
        name = value.name or ""
        return values[name] if name in values else self.constants[name].numpy()

    def proto(self, side: str) -> onnx.ModelProto:
        """The region as a model: ``before``, ``after`` or ``both`` beside each other."""
        pairs = self.region.outputs
        wanted = [old for old, _ in pairs] if side != "after" else []
        wanted += [new for _, new in pairs] if side != "before" else []
        available = [*self.before, *self.after] if side != "before" else self.before
        nodes = _ordered(wanted, available)
        read = {value.name for node in nodes for value in read_by(node)}
        made = {output.name for node in nodes for output in node.outputs}
        graph = onnx.GraphProto(name="region")
        graph.node.extend(ir.to_proto(node) for node in nodes)
        for value in self.drawn:
            if value.name in read:
                graph.input.append(_info(value.name or "", value.dtype, len(value.shape or ())))
        for key, tensor in self.constants.items():
            if key not in read:
                continue
            if key in self._fed:
                graph.input.append(_info(key, tensor.dtype, len(tensor.shape)))
            else:
                proto = ir.to_proto(tensor)
                proto.name = key
                graph.initializer.append(proto)
        graph.output.extend(onnx.ValueInfoProto(name=v.name or "") for v in wanted if v.name in made)
        model = onnx.ModelProto(graph=graph, ir_version=max(4, self.region.model.ir_version))
        for domain, version in self.region.model.opset_imports.items():
            model.opset_import.add(domain=domain, version=version)
        return model

    def inputs_of(self, proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {value.name: feeds[value.name] for value in proto.graph.input}


def read_by(node: ir.Node) -> list[ir.Value]:
    """The values that a node reads, with those that its subgraphs capture from outside."""
    values = [value for value in node.inputs if value is not None]
    graphs = [graph for attribute in node.attributes.values() for graph in graphs_of(attribute)]
    if graphs:
        inner = {graph for start in graphs for graph in (start, *start.subgraphs())}
        for start in graphs:
            candidates = [value for child in start.all_nodes() for value in child.inputs if value is not None]
            for value in [*candidates, *start.outputs]:
                if value.graph not in inner and value not in values:
                    values.append(value)
    return values


def graphs_of(attribute: ir.Attr) -> Sequence[ir.Graph]:
    """The graphs that an attribute holds."""
    if attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    if attribute.type == ir.AttributeType.GRAPHS:
        return tuple(attribute.as_graphs())
    return ()


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


def _ordered(wanted: Sequence[ir.Value], available: Sequence[ir.Node]) -> list[ir.Node]:
    """Those of the nodes that the wanted values need, makers before readers."""
    allowed = set(available)
    done: dict[ir.Node, None] = {}
    stack = [(value.producer(), False) for value in reversed(wanted)]
    while stack:
        node, ready = stack.pop()
        if node is None or node in done or node not in allowed:
            continue
        if ready:
            done[node] = None
        else:
            stack.append((node, True))
            stack.extend((value.producer(), False) for value in reversed(read_by(node)))
    return list(done)


def _larger(values: Sequence[ir.Value]) -> list[seeds.Binding]:
    names = seeds.symbols(values)
    return [seeds.distinct(names, sizes) for sizes in seeds.SIZES[1:]] if names else []


def _session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _runs(cut: _Cut, feeds: dict[str, np.ndarray]) -> bool:
    proto = cut.proto("before")
    try:
        _session(proto).run(None, cut.inputs_of(proto, feeds))
    except Exception:  # whatever it is: before does not run, and that is the answer
        return False
    return True


def _refuted(cut: _Cut, feeds: dict[str, np.ndarray], name: str, reason: str) -> Proof:
    slug = "".join(letter if letter.isalnum() else "-" for letter in name).strip("-")[:60]
    folder = Path(tempfile.mkdtemp(prefix=f"edgeopt-refuted-{slug}-"))
    onnx.save(cut.proto("before"), folder / "before.onnx")
    onnx.save(cut.proto("after"), folder / "after.onnx")
    np.savez(folder / "inputs.npz", **feeds)  # type: ignore[arg-type]
    return Proof(False, reason=reason, refuted=True, reproducer=folder)


def _info(name: str, dtype: ir.DataType | None, rank: int) -> onnx.ValueInfoProto:
    element = onnx.TensorProto.FLOAT if dtype is None else int(dtype)
    return onnx.helper.make_tensor_value_info(name, element, [None] * rank)


def _plain(dtype: ir.DataType) -> bool:
    """Whether onnxruntime takes numpy arrays of the type."""
    return dtype.bitwidth >= 8 and dtype not in {
        ir.DataType.BFLOAT16,
        ir.DataType.FLOAT8E4M3FN,
        ir.DataType.FLOAT8E4M3FNUZ,
        ir.DataType.FLOAT8E5M2,
        ir.DataType.FLOAT8E5M2FNUZ,
    }
