"""Taking values apart and putting them together: Slice, Concat, Split and Gather that follow each other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgeopt.graph.change import NoMatch
from edgeopt.graph.rewriting import Result, constant, initializer, node, opset, rule, sole_reader
from edgeopt.graph.shape_values import integers
from edgeopt.graph.shapes import dims

Cuts = Mapping[int, tuple[int, int, int]]
"""Per axis where a slice starts, where it ends, and its step."""


@rule("Slice -> Slice", shared=True)
def merge_slices(first: ir.Node, second: ir.Node) -> Result:
    """Cuts along different axes are one cut; of several that share the first, each is one."""
    if first.outputs[0].is_graph_output() or any(
        use.node.op_type != "Slice" for use in first.outputs[0].uses()
    ):
        return NoMatch("what is cut first is read by others too")
    one, two = _cuts(first), _cuts(second)
    if one is None or two is None:
        return NoMatch("a start, end, axis or step is computed")
    if set(one) & set(two):
        return NoMatch("both cut the same axis")
    return _sliced(first.inputs[0], {**one, **two}, second)


@rule("Slice -> Squeeze", name="Slice -> Squeeze is Gather")
def pick(cut: ir.Node, squeeze: ir.Node) -> Result:
    """One element of one axis, without that axis."""
    cuts, axes = _cuts(cut), _squeezed(squeeze)
    if cuts is None or axes is None or len(cuts) != 1 or list(cuts) != axes:
        return None
    ((axis, (start, end, step)),) = cuts.items()
    if step != 1 or not (end == start + 1 or (start == -1 and end >= 2**31 - 1)):
        return None
    if dims(cut.outputs[0]) is None or (dims(cut.outputs[0]) or ())[axis] != 1:
        return None
    index = initializer(f"{cut.name}.index", np.array(start, np.int64))
    return node("Gather", [cut.inputs[0], index], {"axis": axis})


@rule("Gather -> Unsqueeze", name="Gather -> Unsqueeze is Gather")
def pick_and_keep(gather: ir.Node, unsqueeze: ir.Node) -> Result:
    """One element of an axis that is put back: an index of one axis keeps it."""
    index, rank = constant(gather.inputs[1]), len(dims(gather.inputs[0]) or ())
    axes = _axes(unsqueeze)
    if index is None or index.ndim or not rank or axes is None:
        return None
    axis = gather.attributes.get_int("axis", 0) % rank
    if [place % rank for place in axes] != [axis]:
        return None
    kept = initializer(f"{gather.name}.index", index.reshape(1))
    return node("Gather", [gather.inputs[0], kept], {"axis": axis})


@rule("Concat -> Concat")
def merge_concats(first: ir.Node, second: ir.Node) -> Result:
    """What is joined along the same axis is joined at once."""
    joined, rank = first.outputs[0], len(dims(first.outputs[0]) or ())
    axis = second.attributes.get_int("axis", 1)
    same = first.attributes.get_int("axis", 1)
    if axis != same and not (rank and axis % rank == same % rank):
        return None
    if sole_reader(joined) is None:
        return NoMatch("what is joined first has another reader")
    inputs = [part for value in second.inputs for part in (first.inputs if value is joined else [value])]
    return node("Concat", inputs, {"axis": axis})


@rule("Split", name="Split into one", shared=True)
def drop_split(split: ir.Node) -> Result:
    """The only part is the whole."""
    return split.inputs[0] if len(split.outputs) == 1 else None


@rule("Expand -> Add|Sub|Mul|Div|Where|Equal|Less|Greater|And|Or", name="Expand before broadcasting")
def drop_expand(expand: ir.Node, reader: ir.Node) -> Result:
    """An operator that broadcasts to the shape anyway needs no expanded operand."""
    x, result = expand.inputs[0], dims(reader.outputs[0])
    shape, place = dims(x), list(reader.inputs).index(expand.outputs[0])
    others = [dims(value) for number, value in enumerate(reader.inputs) if number != place]
    if x is None or shape is None or result is None or None in result or None in others:
        return None
    aligned = [(1,) * (len(result) - len(other or ())) + (other or ()) for other in (shape, *others)]
    if any(len(other) != len(result) for other in aligned):
        return None
    for axis, size in enumerate(result):
        sizes = [other[axis] for other in aligned]
        if None in sizes or (size != 1 and size not in sizes):
            return None
    inputs = [x if number == place else value for number, value in enumerate(reader.inputs)]
    return ir.Node("", reader.op_type, inputs, list(reader.attributes.values()))


def _cuts(cut: ir.Node) -> Cuts | None:
    """The constant cuts of a Slice, by axis from the front; ``None`` where one is computed."""
    rank = len(dims(cut.inputs[0]) or ())
    if opset(cut) < 10:
        starts, ends = (list(cut.attributes.get_ints(name, ())) for name in ("starts", "ends"))
        axes: list[int] | None = list(cut.attributes.get_ints("axes", range(len(starts))))
        steps: list[int] | None = [1] * len(starts)
    else:
        given = [integers(value) for value in cut.inputs[1:3]]
        if given[0] is None or given[1] is None:
            return None
        starts, ends = given[0], given[1]
        axes = _optional(cut, 3, list(range(len(starts))))
        steps = _optional(cut, 4, [1] * len(starts))
    if not rank or axes is None or steps is None:
        return None
    numbers = zip(starts, ends, steps, strict=True)
    return {axis % rank: cuts for axis, cuts in zip(axes, numbers, strict=True)}


def _optional(cut: ir.Node, position: int, default: list[int]) -> list[int] | None:
    value = cut.inputs[position] if len(cut.inputs) > position else None
    return default if value is None else integers(value)


def _sliced(x: ir.Value | None, cuts: Cuts, like: ir.Node) -> ir.Node | NoMatch:
    starts, ends, steps = (list(numbers) for numbers in zip(*cuts.values(), strict=True))
    if opset(like) < 10:
        if any(step != 1 for step in steps):
            return NoMatch("a step needs opset 10")
        return node("Slice", [x], {"starts": starts, "ends": ends, "axes": list(cuts)})
    parts = {"starts": starts, "ends": ends, "axes": list(cuts), "steps": steps}
    if all(step == 1 for step in steps):
        del parts["steps"]
    values = [initializer(f"{like.name}.{name}", np.array(part, np.int64)) for name, part in parts.items()]
    return node("Slice", [x, *values])


def _axes(reshaping: ir.Node) -> list[int] | None:
    """The constant axes of a Squeeze or Unsqueeze, as they are written."""
    if opset(reshaping) < 13:
        given = reshaping.attributes.get_ints("axes", None)
        return None if given is None else list(given)
    return integers(reshaping.inputs[1]) if len(reshaping.inputs) > 1 else None


def _squeezed(squeeze: ir.Node) -> list[int] | None:
    axes, rank = _axes(squeeze), len(dims(squeeze.inputs[0]) or ())
    return None if axes is None or not rank else sorted(axis % rank for axis in axes)


RULES = (merge_slices, pick, pick_and_keep, merge_concats, drop_split, drop_expand)
