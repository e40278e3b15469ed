"""Walking through a quantized model and its float form together, one product after another.

Values of all calls are kept for the place reached and no others, so every node runs once or twice in all,
however many layers are looked at, and memory is that of one cut through the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import onnxruntime

from edgeopt.errors import RuntimeFailure
from edgeopt.graph.execute import first_line
from edgeopt.graph.region import feeds_of, open_session, ordered, part, read_by
from edgeopt.passes._blocks import find_blocks, varying

Values = dict[str, np.ndarray]
"""Values of one call, by name."""


@dataclass(slots=True)
class Lane:
    """One of the models on the way: what of it has been computed, call by call.

    Attributes:
        model: The model.
        calls: Per call the values that something not yet run reads.
        nodes: Its nodes that depend on inputs, by name.
        constants: Its other nodes.
        left: Names of the nodes that have not been run.
    """

    model: ir.Model
    calls: list[Values]
    nodes: dict[str, ir.Node] = field(default_factory=dict)
    constants: list[ir.Node] = field(default_factory=list)
    left: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        moving = varying(self.model.graph)
        self.nodes = {node.name or "": node for node in moving}
        known = set(moving)
        self.constants = [node for node in self.model.graph if node not in known]
        self.left = set(self.nodes)

    def output(self, node: str) -> str:
        """The name of a node's first output."""
        return self.nodes[node].outputs[0].name or ""

    def reaches(self, nodes: Sequence[str], value: str) -> bool:
        """Whether a value is known once the next nodes have run."""
        inside = (output.name for name in nodes if name in self.nodes for output in self.nodes[name].outputs)
        return value in self.calls[0] or value in inside

    def before(self, nodes: Sequence[str], wanted: Sequence[str]) -> list[str]:
        """Those of the next nodes that some values need, by name."""
        inside = [self.nodes[name] for name in nodes if name in self.nodes]
        made = {output.name or "": output for node in inside for output in node.outputs}
        found = ordered([made[name] for name in wanted if name in made], inside)
        return [node.name or "" for node in found]

    def run(self, nodes: Sequence[str], wanted: Sequence[str]) -> Iterator[Values]:
        """Computes values of the next nodes from those kept, call by call; values kept are passed on.

        Raises:
            RuntimeFailure: onnxruntime cannot run them.
        """
        inside = [self.nodes[name] for name in nodes if name in self.nodes]
        made = {output.name or "": output for node in inside for output in node.outputs}
        values = [made[name] for name in dict.fromkeys(wanted) if name in made]
        try:
            session, _lent = self._session(values, inside) if values else (None, {})
        except Exception as failure:  # onnxruntime raises a class of its own per status code
            raise RuntimeFailure(f"onnxruntime cannot load a part: {first_line(failure)}") from failure
        inputs: list[str] = [] if session is None else [item.name for item in session.get_inputs()]
        for call in self.calls:
            found = {name: call[name] for name in wanted if name not in made}
            if session is not None:
                try:
                    results = session.run(None, {name: call[name] for name in inputs})
                except Exception as failure:
                    reason = f"onnxruntime fails to run a part: {first_line(failure)}"
                    raise RuntimeFailure(reason) from failure
                found.update(zip((value.name or "" for value in values), results, strict=True))
            yield found

    def _session(
        self, values: list[ir.Value], inside: list[ir.Node]
    ) -> tuple[onnxruntime.InferenceSession, Values]:
        """Opens what computes some values; returns with it the constants that it reads where they lie."""
        proto, fed = part(values, [*inside, *self.constants], self.model)
        inputs = [item for item in proto.graph.input if item.name not in fed]
        del proto.graph.input[:]
        proto.graph.input.extend(inputs)
        constants = feeds_of(fed)
        return open_session(proto, constants), constants

    def mark(self) -> tuple[list[Values], set[str]]:
        """The place reached, for ``back_to``."""
        return [dict(call) for call in self.calls], set(self.left)

    def back_to(self, mark: tuple[list[Values], set[str]]) -> None:
        """Returns to a place reached before."""
        self.calls, self.left = [dict(call) for call in mark[0]], set(mark[1])

    def needed(self, without: Sequence[str] = ()) -> set[str]:
        """Names of what the nodes that have not been run read, less some of them, and of the outputs."""
        found = {value.name or "" for value in self.model.graph.outputs}
        for name in self.left.difference(without):
            found.update(value.name or "" for value in read_by(self.nodes[name]))
        return found

    def advance(self, nodes: Sequence[str]) -> None:
        """Runs nodes and keeps what the others need."""
        for _ in self.follow(nodes, ()):
            pass

    def follow(self, nodes: Sequence[str], wanted: Sequence[str]) -> Iterator[Values]:
        """Runs nodes and keeps what the others need, as ``advance``; yields values wanted, call by call."""
        self.left -= set(nodes)
        needed = self.needed()
        inside = {
            value.name or "" for name in nodes if name in self.nodes for value in self.nodes[name].outputs
        }
        kept = sorted(inside & needed)
        for index, found in enumerate(self.run(nodes, [*wanted, *kept])):
            call = self.calls[index]
            call.update((name, found[name]) for name in kept)
            for name in [name for name in call if name not in needed]:
                del call[name]
            yield {name: found[name] for name in wanted if name in found}


def segments(model: ir.Model) -> list[list[str]]:
    """Parts the nodes that depend on inputs, by name, so that few segments have more than one product."""
    return [[node.name or "" for node in block.nodes] for block in find_blocks(model.graph, most=0)]


def lane(model: ir.Model, calls: Sequence[Mapping[str, np.ndarray]]) -> Lane:
    """Stands at the beginning of a model with the inputs of its calls."""
    return Lane(model, [dict(call) for call in calls])
