"""Putting new nodes and values in place of old ones, so that it can be taken back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from edgeopt.graph import shapes
from edgeopt.graph.building import is_new_constant, tensor_of
from edgeopt.graph.names import site_of
from edgeopt.graph.rule import Replacement
from edgeopt.graph.traversal import read_by


class Splice:
    """A rewrite that can be made and taken back."""

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
                if is_new_constant(value):
                    self.graph.register_initializer(value)
                    self._registered.append(value)
        self.graph.insert_before(self.anchor, self.built)
        fresh = set(self.built)
        for old, new in self.values.items():
            if is_new_constant(new):
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


def built_for(replacement: Replacement) -> list[ir.Node]:
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
            stack.extend((value.producer(), False) for value in read_by(item))
    return list(done)


def inner_value_is_read(nodes: Sequence[ir.Node], replacement: Replacement) -> str:
    """Why the nodes cannot all go: something else reads a value between them; or ""."""
    region = set(nodes)
    for output in (output for item in nodes for output in item.outputs):
        if output in replacement.values:
            continue
        if output.is_graph_output():
            return f"{output.name!r} is an output of the graph"
        for use in output.uses():
            if use.node not in region:
                return f"{output.name!r} is also read by {site_of(use.node)!r}"
    return ""


def not_spliceable(replacement: Replacement) -> str:
    """Why the graph's signature forbids a replacement, or ""."""
    for old, new in replacement.values.items():
        tensor = tensor_of(new)
        if tensor is not None and must_stay_open(old, len(tensor.shape)):
            return f"a Range reads {old.name!r}, and refuses constants that are no scalars"
        if not old.is_graph_output():
            continue
        if new.graph is not None and (new.is_graph_input() or new.is_initializer() or new.is_graph_output()):
            return f"the output {old.name!r} needs a node of its own"
        if new.producer() is None:
            return f"the output {old.name!r} would be a constant"
        if new.graph is not None and new.graph is not old.graph:
            return f"the output {old.name!r} is made in another graph"
    return ""


def must_stay_open(value: ir.Value, rank: int) -> bool:
    """Whether a value may not become a constant of a rank.

    onnxruntime lets a Range compute from tensors of one element and rank 1, but refuses to load a model
    where its inference can see that they are constant: ONNX's own body of AffineGrid is such.
    """
    return any(decides_range(use.node) or (rank > 0 and use.node.op_type == "Range") for use in value.uses())


def decides_range(choice: ir.Node) -> bool:
    """Whether a Range reads what an If gives, no scalar, which a known condition might make constant."""
    if choice.op_type != "If":
        return False
    return any(shapes.dims(value) != () and must_stay_open(value, 1) for value in choice.outputs)


def remove_dead(nodes: Iterable[ir.Node]) -> None:
    """Removes those of the nodes whose outputs nothing reads any more, and what only they read."""
    todo = list(nodes)
    while todo:
        item = todo.pop()
        if item.graph is None or any(out.uses() or out.is_graph_output() for out in item.outputs):
            continue
        makers = [value.producer() for value in read_by(item)]
        item.graph.remove(item, safe=True)
        todo.extend(maker for maker in makers if maker is not None)
