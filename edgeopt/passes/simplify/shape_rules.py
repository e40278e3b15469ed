"""Shapes that are known before the graph runs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.change import NoMatch
from edgeopt.graph.rewriting import Replacement, Result, initializer, node, rule, tensor_of
from edgeopt.graph.shape_values import SHAPE_OPERATORS, known
from edgeopt.graph.shapes import dims

_PATTERN = "|".join(sorted(SHAPE_OPERATORS - {"Identity"}))


@rule(_PATTERN, name="known shape", shared=True)
def compute_ahead(last: ir.Node) -> Result:
    """A number computed from static sizes is a constant."""
    output = last.outputs[0]
    numbers = _numbers(output)
    if numbers is None or output.is_graph_output():
        return None
    if all(_numbers(use.node.outputs[0]) is not None for use in output.uses()):
        return None  # what reads it is known too, and will be the constant
    return Replacement({output: initializer(f"{output.name}", numbers)}, [last])


@rule("Reshape", name="Reshape to a known shape")
def reshape_to_known(reshape: ir.Node) -> Result:
    """A computed shape of which at most one size is unknown, beside those copied, becomes a constant."""
    if tensor_of(reshape.inputs[1]) is not None:
        return None
    wanted, given = known(reshape.inputs[1]), dims(reshape.inputs[0])
    if wanted is None:
        wanted = _from_output(reshape)
    if wanted is None or reshape.attributes.get_int("allowzero", 0) != 0:
        return None
    target = reshape_target(list(wanted.reshape(-1)), given)
    if target is None:
        return NoMatch("more than one size is not known before the graph runs")
    return node(
        "Reshape", [reshape.inputs[0], initializer(f"{reshape.name}.shape", np.array(target, np.int64))]
    )


def reshape_target(
    wanted: list[int | str | None], given: tuple[int | str | None, ...] | None
) -> list[int] | None:
    """Writes a shape with 0 for a size that is copied and -1 for the one that follows from the others."""
    unknown = [place for place, size in enumerate(wanted) if not isinstance(size, int)]
    target = [size if isinstance(size, int) else 0 for size in wanted]
    if not unknown:
        return target
    if len(unknown) == 1 and -1 not in target and 0 not in wanted:
        target[unknown[0]] = -1
        return target
    free = -1 not in target
    for place in unknown:
        copied = given is not None and place < len(given) and isinstance(wanted[place], str)
        if copied and given is not None and given[place] == wanted[place]:
            continue
        if not free:
            return None
        target[place], free = -1, False
    return target


def _from_output(reshape: ir.Node) -> np.ndarray | None:
    shape = dims(reshape.outputs[0])
    if shape is None or sum(not isinstance(size, int) for size in shape) > 1:
        return None
    if any(size == 0 for size in shape):
        return None
    return np.array([*shape, None], dtype=object)[:-1]


def _numbers(value: ir.Value) -> np.ndarray | None:
    """All numbers of a value that is computed, where they are known."""
    node = value.producer()
    if node is None or value.dtype is None or node.op_type not in SHAPE_OPERATORS:
        return None
    found = known(value)
    if found is None or any(item is None or isinstance(item, str) for item in found.reshape(-1)):
        return None
    return np.array(found.tolist(), dtype=value.dtype.numpy()).reshape(found.shape)


RULES = (compute_ahead, reshape_to_known)
