"""Writing layouts into a graph: a move stands where a value is read in another order than it was left in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgeopt.graph.layout import Assignment, Choice, Layout, identity, permutation
from edgeopt.graph.names import carry_names, unique
from edgeopt.graph.region import graphs_of
from edgeopt.graph.rewriting import constant, remove_unused_initializers
from edgeopt.passes._layout_offers import BROADCAST, REDUCE, Step, is_move, rank_of


@dataclass
class Rebuild:
    """Writes an assignment into a graph, in place."""

    model: ir.Model
    found: Assignment
    steps: Sequence[Step]
    axes: dict[ir.Node, list[int]]
    held: dict[ir.Value, dict[Layout, ir.Value]] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Puts moves in, takes Transposes out, and gives the graph's outputs their order and names back."""
        graph = self.model.graph
        self.taken = {value.name or "" for node in graph.all_nodes() for value in node.outputs}
        self.taken |= {node.name or "" for node in graph.all_nodes()}
        self.taken |= {value.name or "" for value in (*graph.inputs, *graph.initializers.values())}
        self.wanted = [(value, value.name) for value in graph.outputs]
        for step, choice in zip(self.steps, self.found.choices, strict=True):
            if step.node is None:
                continue
            if is_move(step.node):
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
        return is_move(node) and node.outputs[0] in self.held

    def _alias(self, step: Step, choice: Choice) -> None:
        """A Transpose leaves the data as they are: its output is its input under another layout."""
        assert step.node is not None and choice.inputs[0] is not None and step.inputs[0] is not None
        read = self._read(step.inputs[0], choice.inputs[0])
        self.held[step.outputs[0]] = {choice.outputs[0]: read}

    def _place(self, step: Step, choice: Choice) -> None:
        node = step.node
        assert node is not None
        for place, value in enumerate(step.inputs[: len(node.inputs)]):
            if value is None:
                continue
            want = choice.inputs[place]
            if constant(value) is None:
                new = self._read(value, want if want is not None else identity(rank_of(value)))
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
        elif node.op_type in REDUCE:
            axes = sorted(layout.index(axis) for axis in self.axes[node])
            if "axes" in node.attributes:
                node.attributes["axes"] = ir.AttrInt64s("axes", axes)
            else:
                node.replace_input_with(1, self._new_constant(f"{node.name}.axes", np.array(axes, np.int64)))

    def _constant(self, value: ir.Value, choice: Choice, node: ir.Node, place: int) -> ir.Value:
        layout = choice.outputs[0] if choice.outputs else ()
        numbers = constant(value)
        follows = node.op_type in BROADCAST or node.op_type == "Concat"
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

    def _read(self, value: ir.Value, want: Layout) -> ir.Value:
        """The value in a layout, moved behind its producer where nothing has moved it yet."""
        held = self.held.setdefault(value, {identity(rank_of(value)): value})
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
            self._insert(move, source)
            held[want] = result
        return held[want]

    def _insert(self, move: ir.Node, source: ir.Value) -> None:
        maker = source.producer()
        graph = self.model.graph
        if maker is not None and maker.graph is graph:
            graph.insert_after(maker, move)
        elif len(graph):
            graph.insert_before(graph[0], move)
        else:
            graph.append(move)

    def _redirect_captured(self, value: ir.Value, node: ir.Node) -> None:
        new = self._read(value, identity(rank_of(value)))
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
            new = self._read(value, identity(rank_of(value)))
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
