"""Move transposes to where they cost least, and let those that meet cancel.

Models of frameworks that keep channels last, and networks that change the order of axes for one operator,
are full of transposes around operators that do not care. The engine is ``graph/layout.py``, which also
chooses the layouts of the TFLite target: each value is left in some order of its axes, a Transpose of the
model only renames them, and a move is paid for wherever a value is read in another order than it was left
in. Operators that work on elements take any order; those along given axes take any order too and find
their axes in it; all others want the order as it is, as do the model's inputs and outputs.

The cost is elements moved, with a charge for each operator. The graph changes only where it falls, and the
whole model is then compared on seeded inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.errors import RuntimeFailure
from edgeopt.graph import proof
from edgeopt.graph.change import Change, Rewrite, Skipped
from edgeopt.graph.layout import (
    OVERHEAD,
    Assignment,
    Choice,
    Layout,
    assign,
    identity,
    moves_only_units,
    permutation,
    shape_of,
)
from edgeopt.graph.names import carry_names, original_names, unique
from edgeopt.graph.region import graphs_of
from edgeopt.graph.rewriting import constant, opset, prepare, remove_unused_initializers
from edgeopt.graph.shapes import dims
from edgeopt.graph.traversal import captured_by
from edgeopt.passes.base import Context, Pass, Stage

RULE = "layouts with the least transposes"

_ELEMENTWISE = {
    *(
        "Abs",
        "Acos",
        "Acosh",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "Cast",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Cosh",
    ),
    *("Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN"),
    *(
        "LeakyRelu",
        "Log",
        "Mish",
        "Neg",
        "Not",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Sin",
    ),
    *("Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
}
_BROADCAST = {
    *("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min"),
    *("Mod", "Mul", "Or", "Pow", "PRelu", "Sub", "Sum", "Where", "Xor"),
}
_REDUCE = {
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
    *("ReduceProd", "ReduceSum", "ReduceSumSquare"),
}

_MEETING = {"Transpose", "Concat", "Split"}
"""Where moving a transpose may pay."""


@dataclass(frozen=True)
class _Step:
    """A node, or the readers that want a value as it is (graph outputs)."""

    node: ir.Node | None
    inputs: Sequence[ir.Value | None]
    outputs: Sequence[ir.Value]


def _rank(value: ir.Value | None) -> int:
    return len(dims(value) or ())


def _is_constant(value: ir.Value) -> bool:
    return constant(value) is not None


def _offer(step: _Step, is_input: bool, index: int, layout: Layout) -> Choice | None:
    """The way to run a step with a layout at one of its inputs or outputs; ``None`` where there is none."""
    node, given = step.node, step.inputs
    value = given[index] if is_input else step.outputs[index]
    if value is None or len(layout) != _rank(value):
        return None
    plain = Choice(
        tuple(None if value is None else identity(_rank(value)) for value in given),
        tuple(identity(_rank(value)) for value in step.outputs),
    )
    if node is not None and _is_move(node):
        order = _order(node)
        before = layout if is_input else tuple(order[axis] for axis in layout)
        return Choice((before,), (tuple(order.index(axis) for axis in before),))
    if layout == identity(len(layout)):
        return plain
    if node is None or not _follows(node, layout):
        return None
    first = len(layout)
    inputs = tuple(layout if _moves(node, place, first) else None for place in range(len(given)))
    if any(
        want is None and value is not None and not _kept(node, place)
        for place, (want, value) in enumerate(zip(inputs, given, strict=True))
    ):
        return None
    return Choice(inputs, tuple(layout for _ in step.outputs))


def _follows(node: ir.Node, layout: Layout) -> bool:
    """Whether an operator can compute in another order of axes."""
    if node.domain not in ("", "ai.onnx") or any(graphs_of(item) for item in node.attributes.values()):
        return False
    if any(_rank(value) != len(layout) for value in node.outputs if value.name):
        return False
    if node.op_type in _ELEMENTWISE or node.op_type in _BROADCAST:
        return True
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return all(dims(value) == () for value in node.inputs[1:])
    if node.op_type in ("Concat", "Split"):
        return True
    if node.op_type == "Softmax":
        axis = node.attributes.get_int("axis", -1 if opset(node) >= 13 else 1)
        return opset(node) >= 13 and layout[-1] == axis % len(layout)
    return (
        node.op_type in _REDUCE and bool(node.attributes.get_int("keepdims", 1)) and _axes(node) is not None
    )


def _moves(node: ir.Node, place: int, rank: int) -> bool:
    """Whether an input is one of the tensors that the operator computes on, with all axes."""
    value = node.inputs[place]
    if value is None or _rank(value) != rank:
        return False
    return place == 0 or node.op_type in _BROADCAST or node.op_type == "Concat"


def _kept(node: ir.Node, place: int) -> bool:
    """Whether an input stays as it is in every order: a scalar, a constant, a parameter."""
    value = node.inputs[place]
    if value is None or (node.op_type not in _BROADCAST and node.op_type != "Concat"):
        return place > 0
    return constant(value) is not None or dims(value) == ()


def _is_move(node: ir.Node) -> bool:
    """Whether a node is a Transpose of a value whose rank is known."""
    if node.op_type != "Transpose" or node.domain not in ("", "ai.onnx"):
        return False
    return dims(node.inputs[0]) is not None and len(_order(node)) == _rank(node.inputs[0])


def _order(transpose: ir.Node) -> Layout:
    rank = _rank(transpose.inputs[0])
    return tuple(transpose.attributes.get_ints("perm", tuple(reversed(range(rank)))))


def _axes(reduce: ir.Node) -> list[int] | None:
    given = reduce.attributes.get_ints("axes", None)
    if given is None and len(reduce.inputs) > 1 and reduce.inputs[1] is not None:
        numbers = constant(reduce.inputs[1])
        given = None if numbers is None else [int(axis) for axis in numbers.reshape(-1)]
    rank = _rank(reduce.inputs[0])
    return None if not given or not rank else [axis % rank for axis in given]


# ---- the graph


@dataclass
class _Rebuild:
    """Writes an assignment into a graph, in place."""

    model: ir.Model
    found: Assignment
    steps: Sequence[_Step]
    axes: dict[ir.Node, list[int]]
    held: dict[ir.Value, dict[Layout, ir.Value]] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def run(self) -> None:
        graph = self.model.graph
        self.taken = {value.name or "" for node in graph.all_nodes() for value in node.outputs}
        self.taken |= {node.name or "" for node in graph.all_nodes()}
        self.taken |= {value.name or "" for value in (*graph.inputs, *graph.initializers.values())}
        self.wanted = [(value, value.name) for value in graph.outputs]
        for step, choice in zip(self.steps, self.found.choices, strict=True):
            if step.node is None:
                continue
            if _is_move(step.node):
                self._alias(step, choice)
            else:
                self._place(step, choice)
        self._close()
        gone = [step.node for step in self.steps if step.node is not None and self._is_alias(step.node)]
        for node in reversed(gone):
            if not any(value.uses() or value.is_graph_output() for value in node.outputs):
                graph.remove(node, safe=True)
        remove_unused_initializers(self.model)

    def _is_alias(self, node: ir.Node) -> bool:
        return _is_move(node) and node.outputs[0] in self.held

    def _alias(self, step: _Step, choice: Choice) -> None:
        """A Transpose leaves the data as they are: its output is its input under another layout."""
        assert step.node is not None and choice.inputs[0] is not None and step.inputs[0] is not None
        read = self._read(step.inputs[0], choice.inputs[0], step.node)
        self.held[step.outputs[0]] = {choice.outputs[0]: read}

    def _place(self, step: _Step, choice: Choice) -> None:
        node = step.node
        assert node is not None
        for place, value in enumerate(step.inputs[: len(node.inputs)]):
            if value is None:
                continue
            want = choice.inputs[place]
            if constant(value) is None:
                new = self._read(value, want if want is not None else identity(_rank(value)), node)
            else:
                new = self._constant(value, choice, node, place)
            if new is not value:
                node.replace_input_with(place, new)
        for value in step.inputs[len(node.inputs) :]:  # captured by a subgraph
            if value is not None and constant(value) is None:
                self._redirect_captured(value, node)
        layout = choice.outputs[0] if choice.outputs else ()
        if layout != identity(len(layout)):
            self._turn(node, layout)
        for output, left in zip(step.outputs, choice.outputs, strict=True):
            self.held[output] = {left: output}
            if left != identity(len(left)) and output.shape is not None:
                output.shape = ir.Shape([output.shape[axis] for axis in left])

    def _turn(self, node: ir.Node, layout: Layout) -> None:
        """Finds the operator's axes in another order."""
        rank = len(layout)
        if node.op_type in ("Concat", "Split", "Softmax"):
            default = {"Concat": 1, "Split": 0, "Softmax": -1}[node.op_type]
            axis = (node.attributes.get_int("axis", default) or 0) % rank
            node.attributes["axis"] = ir.AttrInt64("axis", layout.index(axis))
        elif node.op_type in _REDUCE:
            axes = sorted(layout.index(axis) for axis in self.axes[node])
            if "axes" in node.attributes:
                node.attributes["axes"] = ir.AttrInt64s("axes", axes)
            else:
                node.replace_input_with(1, self._new_constant(f"{node.name}.axes", np.array(axes, np.int64)))

    def _constant(self, value: ir.Value, choice: Choice, node: ir.Node, place: int) -> ir.Value:
        layout = choice.outputs[0] if choice.outputs else ()
        numbers = constant(value)
        follows = node.op_type in _BROADCAST or node.op_type == "Concat"
        if not follows or layout == identity(len(layout)) or numbers is None or numbers.size == 1:
            return value
        aligned = numbers.reshape((1,) * (len(layout) - numbers.ndim) + numbers.shape)
        return self._new_constant(f"{value.name}.moved", np.ascontiguousarray(aligned.transpose(layout)))

    def _new_constant(self, name: str, numbers: np.ndarray) -> ir.Value:
        name = self._unique(name)
        tensor = ir.tensor(numbers, name=name)
        value = ir.val(name, tensor.dtype, numbers.shape, const_value=tensor)
        self.model.graph.register_initializer(value)
        return value

    def _read(self, value: ir.Value, want: Layout, reader: ir.Node | None) -> ir.Value:
        """The value in a layout, moved before the reader where nothing has moved it yet."""
        held = self.held.setdefault(value, {identity(_rank(value)): value})
        if want not in held:
            have, source = next(iter(held.items()))
            move = ir.node("Transpose", [source], {"perm": permutation(have, want)})
            move.name = self._unique(f"{value.name}/Transpose")
            maker = value.producer()
            carry_names([maker] if maker is not None else [], move)
            result = move.outputs[0]
            result.name, result.type = self._unique(f"{value.name}.moved"), value.type
            shape = source.shape
            if shape is not None:
                result.shape = ir.Shape([shape[axis] for axis in permutation(have, want)])
            self._insert(move, source, reader)
            held[want] = result
        return held[want]

    def _insert(self, move: ir.Node, source: ir.Value, reader: ir.Node | None) -> None:
        maker = source.producer()
        graph = self.model.graph
        if maker is not None and maker.graph is graph:
            graph.insert_after(maker, move)
        elif len(graph):
            graph.insert_before(graph[0], move)
        else:
            graph.append(move)

    def _redirect_captured(self, value: ir.Value, node: ir.Node) -> None:
        new = self._read(value, identity(_rank(value)), node)
        if new is value:
            return
        inner = {
            graph
            for item in node.attributes.values()
            for start in graphs_of(item)
            for graph in (start, *start.subgraphs())
        }
        for use in list(value.uses()):
            if use.node.graph in inner:
                use.node.replace_input_with(use.idx, new)
        for graph in inner:
            for place, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[place] = new

    def _close(self) -> None:
        """Gives the graph's outputs their order and names back."""
        graph = self.model.graph
        for place, (value, name) in enumerate(self.wanted):
            new = self._read(value, identity(_rank(value)), None)
            if new is value:
                continue
            if new.is_graph_input() or new.is_initializer() or new in graph.outputs:
                copy = ir.node("Identity", [new], name=self._unique(f"{name}/Identity"))
                copy.outputs[0].type, copy.outputs[0].shape = new.type, new.shape
                graph.append(copy)
                new = copy.outputs[0]
            graph.outputs[place] = new
            value.name, new.name = self._unique(f"{name}.moved"), name

    def _unique(self, name: str) -> str:
        name = unique(name, self.taken)
        self.taken.add(name)
        return name


def _steps(graph: ir.Graph) -> list[_Step]:
    steps = []
    for node in graph:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            continue
        named = [value for value in node.outputs if value.name]
        steps.append(_Step(node, [*node.inputs, *captured_by(node)], named))
    return [*steps, _Step(None, list(graph.outputs), [])]


def _cost(graph: ir.Graph) -> int:
    """What the transposes of a graph move, in elements, with the charge for each."""
    total = 0
    for node in graph:
        source = node.inputs[0] if _is_move(node) else None
        if source is None or constant(source) is not None:
            continue
        shape, order = shape_of(source), _order(node)
        total += OVERHEAD
        if not shape or not moves_only_units(shape, identity(len(shape)), order):
            total += int(np.prod(shape, dtype=np.int64))
    return total


def _may_gain(moving: Sequence[ir.Node]) -> bool:
    """Whether a transpose can reach another, or an operator behind which there is less to move."""
    for start in moving:
        seen, todo = {start}, [start]
        while todo:
            node = todo.pop()
            near = [value.producer() for value in node.inputs if value is not None]
            near += [use.node for value in node.outputs for use in value.uses()]
            for other in near:
                if other is None or other in seen or other.graph is not start.graph:
                    continue
                seen.add(other)
                if other.op_type in _MEETING or other.op_type in _REDUCE:
                    return True
                if other.op_type in _ELEMENTWISE or other.op_type in _BROADCAST:
                    todo.append(other)
    return False


@dataclass(frozen=True)
class Layouts(Pass):
    """Move transposes to where they cost least, and let those that meet cancel."""

    name: ClassVar[str] = "layouts"
    stage: ClassVar[Stage] = "schedule"

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Edits the model in place."""
        change = Change(summary="none", notes=prepare(model))
        before = _cost(model.graph)
        moving = [node for node in model.graph if _is_move(node)]
        if not _may_gain(moving):
            return change
        original = model.clone()
        steps = _steps(model.graph)
        try:
            found = assign(
                steps,
                lambda number, is_input, index, layout: _offer(steps[number], is_input, index, layout),
                inputs=[value for value in model.graph.inputs if constant(value) is None],
                constant=_is_constant,
                fixed={value.name or "": identity(_rank(value)) for value in model.graph.inputs},
            )
        except ValueError as failure:
            change.skipped.append(Skipped(RULE, "", str(failure)))
            return change
        site = (original_names(moving[0]) or (moving[0].name or "",))[0]
        if found.moved >= before:
            change.skipped.append(Skipped(RULE, site, f"no order moves less than {before} elements"))
            return change
        if not context.allow(RULE, site):
            return change
        names = tuple(dict.fromkeys(name for node in moving for name in original_names(node)))
        reduces = [step.node for step in steps if step.node is not None and step.node.op_type in _REDUCE]
        rebuild = _Rebuild(model, found, steps, {node: _axes(node) or [] for node in reduces})
        rebuild.run()
        reason, error = "", None
        if context.verify != "off":
            reason, error = _compared(original, model, context.seed)
        if reason:
            model.graph = original.graph
            change.skipped.append(Skipped(RULE, site, reason))
            change.notes.append(f"the transposes stay where they were: {reason}")
            return change
        left = sum(node.op_type == "Transpose" for node in model.graph)
        change.rewrites.append(Rewrite(RULE, site, names, error))
        change.details = {"moved_before": before, "moved": found.moved}
        change.summary = f"{len(moving)} -> {left} transposes, {before} -> {found.moved} elements moved"
        return change


def _compared(original: ir.Model, model: ir.Model, seed: int) -> tuple[str, float | None]:
    if proof.model_bytes(original) > proof.WHOLE_MODEL:
        return "unproved: the whole model is above 1 GiB", None
    try:
        difference = proof.compare_models(original, model, seed)
    except RuntimeFailure as failure:
        return f"unproved: {failure.message}", None
    return difference.reason, difference.error
