"""A model cut into stages that run one after another, where not all tapped values fit into memory at once.

Each call goes through every node once: a stage hands on what later ones read, and its tapped values are gone
before the next one begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime

from edgeopt.errors import RuntimeFailure
from edgeopt.graph.execute import Feeds, first_line
from edgeopt.graph.region import feeds_of, is_plain, open_session, ordered, part, read_by

Arrays = dict[str, np.ndarray]


@dataclass(slots=True)
class _Stage:
    """One of the stages.

    Attributes:
        session: Computes it.
        constants: What the session reads where it lies.
        taps: The tapped values that it makes.
        handed: What later stages read of all that is known behind it.
    """

    session: onnxruntime.InferenceSession
    constants: Arrays
    taps: list[str]
    handed: set[str]


class Stages:
    """Runs a model stage by stage.

    Args:
        model: The model; it is not changed.
        groups: Tapped results of nodes, a group for each stage, in the order of the graph.

    Raises:
        RuntimeFailure: onnxruntime cannot load a stage.
    """

    def __init__(self, model: ir.Model, groups: Sequence[Sequence[ir.Value]]) -> None:
        place = {node: index for index, node in enumerate(model.graph)}
        needed = sorted(
            ordered([tap for group in groups for tap in group], list(place)), key=place.__getitem__
        )
        ends = [max(place[_maker(tap)] for tap in group) for group in groups]
        self._stages: list[_Stage] = []
        start = -1
        for group, end in zip(groups, ends, strict=True):
            nodes = [node for node in needed if start < place[node] <= end]
            later = {value for node in needed if place[node] > end for value in read_by(node)}
            made = {value for node in nodes for value in node.outputs}
            wanted = list(dict.fromkeys([*group, *sorted(made & later, key=lambda value: value.name or "")]))
            proto, fed = part(wanted, nodes, model)
            kept = [item for item in proto.graph.input if item.name not in fed]
            del proto.graph.input[:]
            proto.graph.input.extend(kept)
            constants = feeds_of(fed)
            try:
                session = open_session(proto, constants, optimize=True)
            except Exception as failure:  # onnxruntime raises a class of its own per status code
                raise RuntimeFailure(f"onnxruntime cannot load a part: {first_line(failure)}") from failure
            handed = {value.name or "" for value in later}
            self._stages.append(_Stage(session, constants, [tap.name or "" for tap in group], handed))
            start = end

    def run(self, feeds: Feeds) -> Iterator[tuple[str, np.ndarray]]:
        """Runs one call; yields the tapped values, stage by stage.

        Raises:
            RuntimeFailure: onnxruntime fails on these inputs.
        """
        known = dict(feeds)
        for stage in self._stages:
            inputs = {item.name: known[item.name] for item in stage.session.get_inputs()}
            names = [item.name for item in stage.session.get_outputs()]
            try:
                results = stage.session.run(names, inputs)
            except Exception as failure:
                reason = f"onnxruntime fails to run a part: {first_line(failure)}"
                raise RuntimeFailure(reason) from failure
            made = dict(zip(names, results, strict=True))
            known.update(made)
            known = {name: array for name, array in known.items() if name in stage.handed}
            del inputs, results
            for name in stage.taps:
                yield name, made.pop(name)
            del made


def can_be_cut(model: ir.Model) -> bool:
    """Whether every value that might be handed on is a tensor that onnxruntime takes, of known type."""
    if model.functions:
        return False
    values = (value for node in model.graph for value in node.outputs if value.name)
    return all(isinstance(value.type, ir.TensorType) and is_plain(value.type.dtype) for value in values)


def _maker(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node
