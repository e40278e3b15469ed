"""Rewriting: small rules that return what to put in place, or why they do not fire.

A rule is a function of the nodes that its pattern matches, first to last along the data:

    @rule("Conv -> BatchNormalization")
    def fold(conv: ir.Node, norm: ir.Node) -> ir.Node | NoMatch: ...

It builds new nodes aside, on the values of the graph, and returns the node or value that takes the place
of the last matched node's output, a ``Replacement`` where that is not all, ``NoMatch`` with the reason
where it might have fired, or ``None`` where the pattern merely looked like it. ``rewrite`` walks the main
graph and every subgraph (of If, Loop, Scan) in order, asks whether the rewrite is allowed, proves it (see
``graph/proof.py``) and splices it in. A tensor is replaced, never written into.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from edgeopt.errors import RuntimeFailure
from edgeopt.graph import proof, shapes
from edgeopt.graph.change import Change, NoMatch, Rewrite, Skipped
from edgeopt.graph.names import all_nodes, carry_names, name_nodes, original_names, unique
from edgeopt.graph.region import read_by

__all__ = [
    "NoMatch",
    "Replacement",
    "Rule",
    "another_reader",
    "constant",
    "initializer",
    "name_nodes",
    "original_names",
    "rewrite",
    "rule",
]

MAX_SWEEPS = 20
"""A sound set of rules settles in a handful of sweeps over the graph; this only bounds a bad one."""

LARGE = 2**24
"""New constants from this many bytes on are mapped from a file."""

_COMMUTATIVE = {"Add", "Mul", "Max", "Min", "And", "Or", "Equal", "Sum"}
_ANY_INPUT = _COMMUTATIVE | {"Concat", "Where"}
"""Operators that a pattern may reach through any of their inputs."""


class Surroundings(Protocol):
    """What rewriting needs of a pass's context."""

    seed: int
    verify: Literal["fast", "full", "off"]

    @property
    def log(self) -> logging.Logger:
        """Where progress is told."""
        ...

    def allow(self, rule: str, site: str) -> bool:
        """Asks whether one rewrite may be made."""
        ...


@dataclass(frozen=True)
class Replacement:
    """What a rule puts in place, where it is more than one output of the last matched node.

    Attributes:
        values: Every value replaced, with the new or existing one that takes its place.
        nodes: The nodes that are replaced, where they are not just those of the pattern.
    """

    values: Mapping[ir.Value, ir.Value]
    nodes: Sequence[ir.Node] = ()


Result = ir.Node | ir.Value | Replacement | NoMatch | None


@dataclass(frozen=True)
class Rule:
    """A named pattern with the function that rewrites what it matches.

    Attributes:
        name: The pattern, as reports show it.
        operators: Per position the operator types that match.
        build: The function.
        shared: Values inside the pattern may have further readers; the nodes that make them then stay.
    """

    name: str
    operators: tuple[frozenset[str], ...]
    build: Callable[..., Result]
    shared: bool = False

    def __call__(self, *nodes: ir.Node) -> Result:
        """Tries the rule on matched nodes."""
        return self.build(*nodes)


def rule(pattern: str, *, name: str = "", shared: bool = False) -> Callable[[Callable[..., Result]], Rule]:
    """Makes a rule of a function.

    Args:
        pattern: Operator types along the data, ``Conv|ConvTranspose -> BatchNormalization``.
        name: The name in reports; the pattern by default.
        shared: Values inside the pattern may have further readers.
    """
    operators = tuple(frozenset(part.strip().split("|")) for part in pattern.split("->"))

    def decorate(build: Callable[..., Result]) -> Rule:
        return Rule(name or pattern, operators, build, shared)

    return decorate


# ---- what rules build with


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a constant: an initializer that no caller can override, or a Constant node's output."""
    tensor = tensor_of(value)
    return None if tensor is None else tensor.numpy()


def tensor_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of a constant, which may still lie in a file; ``None`` where the value is computed."""
    if value is None or value.is_graph_input():
        return None
    return ir.convenience.get_const_tensor(value)


def initializer(name: str, array: np.ndarray) -> ir.Value:
    """A new constant; ``rewrite`` gives it a unique name and registers it with the graph.

    A large one is written to a nameless temporary file and mapped, so that folding the weights of a model
    larger than memory takes no more of it than one of them.
    """
    tensor = ir.Tensor(_mapped(np.asarray(array, order="C")), name=name)
    return ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )


def _mapped(array: np.ndarray) -> np.ndarray:
    if array.nbytes < LARGE:
        return array
    with tempfile.TemporaryFile(prefix="edgeopt-") as file:
        array.tofile(file)
        file.flush()
        return np.memmap(file, dtype=array.dtype, mode="r", shape=array.shape)


def node(
    operator: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, object] | None = None
) -> ir.Node:
    """A new node of ai.onnx with one output; ``rewrite`` names it."""
    given = {key: value for key, value in (attributes or {}).items() if value is not None}
    return ir.node(operator, inputs, given)


def another_reader(value: ir.Value | None, than: ir.Node) -> ir.Node | None:
    """Returns a node beside the given one that reads a value too, if there is one."""
    if value is None:
        return None
    return next((use.node for use in value.uses() if use.node is not than), None)


def sole_reader(value: ir.Value) -> ir.Node | None:
    """The only node that reads a value, once; ``None`` with several readers or where it is an output."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def opset(node: ir.Node) -> int:
    """The opset of ai.onnx in force where a node stands."""
    graph = node.graph
    return 1 if graph is None else graph.opset_imports.get("", graph.opset_imports.get("ai.onnx", 1))


# ---- the walk


@dataclass
class _Walk:
    model: ir.Model
    context: Surroundings
    change: Change = field(default_factory=Change)
    refused: set[tuple[str, str]] = field(default_factory=set)
    skipped: dict[tuple[str, str, str], None] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    named: set[ir.Value] = field(default_factory=set)

    def sweep(self, rules: Sequence[Rule]) -> bool:
        changed = False
        for graph in list(self.model.graphs()):
            for anchor in list(graph):
                for candidate in rules:
                    if anchor.graph is not graph:
                        break
                    for nodes in _matches(candidate, anchor):
                        if self._try(candidate, nodes):
                            changed = True
                            break
        return changed

    def _try(self, candidate: Rule, nodes: Sequence[ir.Node]) -> bool:
        anchor = nodes[-1]
        site = _site(anchor)
        if (candidate.name, anchor.name or "") in self.refused:
            return False
        result = candidate(*nodes)
        if result is None:
            return False
        if isinstance(result, NoMatch):
            self._skip(candidate, site, result.reason)
            return False
        replacement = _replacement(result, nodes)
        replaced = list(dict.fromkeys(replacement.nodes or nodes))
        reason = "" if candidate.shared else _inner_value_is_read(replaced, replacement)
        if reason := reason or _not_spliceable(replacement):
            self._skip(candidate, site, reason)
            return False
        if not self.context.allow(candidate.name, site):
            self.refused.add((candidate.name, anchor.name or ""))
            return False
        built = _built(replacement, replaced)
        self._name(built, replaced)
        for value in replacement.values.values():
            self._name_constant(value)
        error: float | None = None
        splice = _Splice(anchor, replacement, built)
        if self.context.verify != "off":
            region = proof.Region(replaced, built, list(replacement.values.items()), self.model)
            shown = proof.prove(region, f"{candidate.name} at {site}", self.context.seed)
            if not shown.proved and not shown.refuted:
                shown = self._prove_whole(splice, shown)
            if not shown.proved:
                self._leave_out(candidate, anchor, shown)
                return False
            error = shown.error
        names = tuple(dict.fromkeys(name for item in replaced for name in original_names(item)))
        splice.make()
        _remove_dead(replaced)
        self.change.rewrites.append(Rewrite(candidate.name, site, names, error))
        return True

    def _name(self, built: Sequence[ir.Node], replaced: Sequence[ir.Node]) -> None:
        """Names new nodes after what they replace, and makes the names of their values unique."""
        for item in built:
            base = f"{replaced[-1].name}" if replaced[-1].op_type == item.op_type else None
            item.name = self._unique(base or f"{replaced[-1].name}/{item.op_type}")
            carry_names(replaced, item)
            for number, output in enumerate(item.outputs):
                output.name = self._unique(output.name or f"{item.name}:{number}")
            for value in read_by(item):
                self._name_constant(value)

    def _name_constant(self, value: ir.Value) -> None:
        if _is_new_constant(value) and value not in self.named:
            self.named.add(value)
            value.name = self._unique(value.name or "constant")

    def _unique(self, name: str) -> str:
        name = unique(name, self.taken)
        self.taken.add(name)
        return name

    def _prove_whole(self, splice: _Splice, local: proof.Proof) -> proof.Proof:
        """Compares the whole model without and with the rewrite, where its region cannot be run."""
        if proof.model_bytes(self.model) > proof.WHOLE_MODEL:
            return local
        before = self.model.clone()
        splice.make()
        try:
            difference = proof.compare_models(before, self.model, self.context.seed)
        except RuntimeFailure:
            return local
        finally:
            splice.undo()
        if difference.reason:
            return proof.Proof(False, reason=difference.reason, refuted=True)
        return proof.Proof(True, difference.error)

    def _skip(self, candidate: Rule, site: str, reason: str) -> None:
        self.skipped[(candidate.name, site, reason)] = None

    def _leave_out(self, candidate: Rule, anchor: ir.Node, shown: proof.Proof) -> None:
        site = _site(anchor)
        self.refused.add((candidate.name, anchor.name or ""))
        self.change.skipped.append(Skipped(candidate.name, site, shown.reason))
        kept = f"; reproducer in {shown.reproducer}" if shown.reproducer else ""
        why = f"its proof failed: {shown.reason}" if shown.refuted else shown.reason
        self.change.notes.append(f"the rewrite {candidate.name!r} at {site!r} was left out, {why}{kept}")


def rewrite(model: ir.Model, rules: Sequence[Rule], context: Surroundings) -> Change:
    """Applies rules until none fires, proving every rewrite.

    Functions of the model are inlined first, so that shapes are known in them too. Where ``verify`` is
    ``full`` the whole model is compared as well, and left as it was when it differs.

    Args:
        model: The model, edited in place.
        rules: Tried in this order at every node.
        context: Whom to ask, and how to prove.

    Returns:
        Every rewrite made, and every place where a rule might have fired, with the reason.
    """
    notes = prepare(model)
    before = model.clone() if context.verify == "full" else None
    walk = _Walk(model, context, taken=_names(model))
    for _ in range(MAX_SWEEPS):
        walk.skipped.clear()
        if not walk.sweep(rules):
            break
    change = walk.change
    change.notes[:0] = notes
    change.skipped += [Skipped(*key) for key in walk.skipped]
    if change.rewrites:
        remove_unused_initializers(model)
        if before is not None:
            _compare_whole(model, before, change, context)
    return change


def prepare(model: ir.Model) -> list[str]:
    """Inlines functions, names all nodes and infers shapes where some are missing, in place.

    Returns:
        Sentences for the user.
    """
    notes = []
    if model.functions:
        notes.append(f"{len(model.functions)} functions were inlined")
        InlinePass()(model)
    if any(not item.name for item in all_nodes(model)):
        name_nodes(model)
    for graph in model.graphs():
        graph.opset_imports.update(model.opset_imports)  # a subgraph has none of its own
    lacking = any(value.shape is None for item in all_nodes(model) for value in item.outputs if value.name)
    if lacking:
        shapes.infer_shapes(model)
    return notes


def remove_unused_initializers(model: ir.Model) -> None:
    """Drops initializers that nothing reads, in place."""
    for graph in model.graphs():
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del graph.initializers[name]


def _compare_whole(model: ir.Model, before: ir.Model, change: Change, context: Surroundings) -> None:
    if proof.model_bytes(before) > proof.WHOLE_MODEL:
        change.notes.append("the whole model is above 1 GiB: only the single rewrites were proved")
        return
    try:
        difference = proof.compare_models(before, model, context.seed)
    except RuntimeFailure as failure:
        change.notes.append(f"the whole model could not be compared: {failure.message}")
        return
    if difference.reason:
        model.graph = before.graph
        change.notes.append(f"all rewrites were taken back: the whole model differs ({difference.reason})")
        change.rewrites.clear()


def _matches(candidate: Rule, anchor: ir.Node) -> Iterator[list[ir.Node]]:
    """Every chain of nodes that ends at the anchor and fits the pattern."""
    if anchor.domain not in ("", "ai.onnx") or anchor.op_type not in candidate.operators[-1]:
        return
    yield from _upwards(candidate.operators[:-1], [anchor])


def _upwards(operators: Sequence[frozenset[str]], chain: list[ir.Node]) -> Iterator[list[ir.Node]]:
    if not operators:
        yield chain
        return
    head = chain[0]
    inputs = head.inputs if head.op_type in _ANY_INPUT else head.inputs[:1]
    for value in dict.fromkeys(inputs):
        producer = None if value is None else value.producer()
        if producer is None or producer.graph is not head.graph or producer.op_type not in operators[-1]:
            continue
        if producer.domain in ("", "ai.onnx") and value is producer.outputs[0]:
            yield from _upwards(operators[:-1], [producer, *chain])


def _inner_value_is_read(nodes: Sequence[ir.Node], replacement: Replacement) -> str:
    """Why the nodes cannot all go: something else reads a value between them; or ""."""
    region = set(nodes)
    for output in (output for item in nodes for output in item.outputs):
        if output in replacement.values:
            continue
        if output.is_graph_output():
            return f"{output.name!r} is an output of the graph"
        for use in output.uses():
            if use.node not in region:
                return f"{output.name!r} is also read by {_site(use.node)!r}"
    return ""


def _replacement(result: ir.Node | ir.Value | Replacement, nodes: Sequence[ir.Node]) -> Replacement:
    if isinstance(result, Replacement):
        return result
    value = result.outputs[0] if isinstance(result, ir.Node) else result
    return Replacement({nodes[-1].outputs[0]: value})


def _not_spliceable(replacement: Replacement) -> str:
    """Why the graph's signature forbids a replacement, or ""."""
    for old, new in replacement.values.items():
        if not old.is_graph_output():
            continue
        if new.graph is not None and (new.is_graph_input() or new.is_initializer() or new.is_graph_output()):
            return f"the output {old.name!r} needs a node of its own"
        if new.producer() is None:
            return f"the output {old.name!r} would be a constant"
        if new.graph is not None and new.graph is not old.graph:
            return f"the output {old.name!r} is made in another graph"
    return ""


def _built(replacement: Replacement, replaced: Sequence[ir.Node]) -> list[ir.Node]:
    """The new nodes behind the new values, makers before readers."""
    done: dict[ir.Node, None] = {}
    stack = [(value.producer(), False) for value in replacement.values.values()]
    while stack:
        item, ready = stack.pop()
        if item is None or item.graph is not None or item in done:
            continue
        if ready:
            done[item] = None
        else:
            stack.append((item, True))
            stack.extend((value.producer(), False) for value in item.inputs if value is not None)
    return list(done)


class _Splice:
    """Puts new nodes and values in place, and can take them back."""

    def __init__(self, anchor: ir.Node, replacement: Replacement, built: Sequence[ir.Node]) -> None:
        assert anchor.graph is not None
        self.anchor, self.graph = anchor, anchor.graph
        self.values, self.built = dict(replacement.values), list(built)
        self._uses: list[tuple[ir.Node, int, ir.Value]] = []
        self._outputs: list[tuple[ir.Graph, int, ir.Value]] = []
        self._names: list[tuple[ir.Value, str | None]] = []
        self._registered: list[ir.Value] = []

    def make(self) -> None:
        """Inserts the nodes and redirects all readers and graph outputs."""
        for item in self.built:
            for value in read_by(item):
                if _is_new_constant(value):
                    self.graph.register_initializer(value)
                    self._registered.append(value)
        self.graph.insert_before(self.anchor, self.built)
        fresh = set(self.built)
        for old, new in self.values.items():
            if _is_new_constant(new):
                self.graph.register_initializer(new)
                self._registered.append(new)
            new.shape = shapes.merge(new.shape, old.shape)
            if new.type is None:
                new.type = old.type
            for use in list(old.uses()):
                if use.node not in fresh:
                    self._uses.append((use.node, use.idx, old))
                    use.node.replace_input_with(use.idx, new)
            if old.is_graph_output():
                self._as_output(old, new)
            elif new.producer() in fresh:
                self._swap_names(old, new)

    def undo(self) -> None:
        """Restores the graph as it was before ``make``."""
        for reader, index, old in self._uses:
            reader.replace_input_with(index, old)
        for graph, index, old in self._outputs:
            graph.outputs[index] = old
        for value, _ in self._names:
            value.name = None
        for value, name in self._names:
            value.name = name
        self.graph.remove(self.built)
        for value in self._registered:
            self.graph.initializers.pop(value.name or "", None)
        self._uses, self._outputs, self._names, self._registered = [], [], [], []

    def _as_output(self, old: ir.Value, new: ir.Value) -> None:
        graph = old.graph
        assert graph is not None
        for index, output in enumerate(graph.outputs):
            if output is old:
                self._outputs.append((graph, index, old))
                graph.outputs[index] = new
        self._swap_names(old, new)

    def _swap_names(self, old: ir.Value, new: ir.Value) -> None:
        one, two = old.name, new.name
        self._names += [(old, one), (new, two)]
        old.name = None
        new.name = one
        old.name = two


def _remove_dead(nodes: Iterable[ir.Node]) -> None:
    """Removes those of the nodes whose outputs nothing reads any more, and what only they read."""
    todo = list(nodes)
    while todo:
        item = todo.pop()
        if item.graph is None or any(out.uses() or out.is_graph_output() for out in item.outputs):
            continue
        makers = [value.producer() for value in read_by(item)]
        item.graph.remove(item, safe=True)
        todo.extend(maker for maker in makers if maker is not None)


def _is_new_constant(value: ir.Value) -> bool:
    return value.const_value is not None and value.graph is None and value.producer() is None


def _site(item: ir.Node) -> str:
    names = original_names(item)
    return names[-1] if names else item.name or item.op_type


def _names(model: ir.Model) -> set[str]:
    taken = {item.name for item in all_nodes(model) if item.name}
    for graph in model.graphs():
        taken.update(value.name for value in graph.inputs if value.name)
        taken.update(graph.initializers)
    taken.update(out.name for item in all_nodes(model) for out in item.outputs if out.name)
    return taken
