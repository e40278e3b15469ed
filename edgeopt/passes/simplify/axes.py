"""Axes that are moved, added or removed: what a Reshape or a reduction can do by itself.

Moving axes of size 1 changes the order of no number, so such a Transpose beside a Reshape is part of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.graph.rewriting import Result, initializer, node, opset, rule
from edgeopt.graph.shape_values import integers
from edgeopt.graph.shapes import dims
from edgeopt.passes.simplify.shape_rules import reshape_target

_RESHAPES = "Reshape|Flatten|Squeeze|Unsqueeze"
_REDUCTIONS = "|".join(
    f"Reduce{name}" for name in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare")
)


@rule(f"{_RESHAPES} -> Transpose", name="Reshape -> Transpose that moves nothing")
def reshape_then_move(reshape: ir.Node, transpose: ir.Node) -> Result:
    """One Reshape."""
    return _reshaped(reshape, transpose) if _moves_nothing(transpose) else None


@rule(f"Transpose -> {_RESHAPES}", name="Transpose that moves nothing -> Reshape")
def move_then_reshape(transpose: ir.Node, reshape: ir.Node) -> Result:
    """One Reshape."""
    return _reshaped(transpose, reshape) if _moves_nothing(transpose) else None


@rule(f"{_REDUCTIONS} -> {_RESHAPES}", name="reduced axes removed")
def reduce_without(reduction: ir.Node, reshape: ir.Node) -> Result:
    """A reduction can leave out the axes that it reduces."""
    axes, shape = _reduced(reduction), dims(reduction.outputs[0])
    if axes is None or shape is None or not _keeps(reduction):
        return None
    left = tuple(size for axis, size in enumerate(shape) if axis not in axes)
    if None in left or len(set(left) - {1}) < len([size for size in left if not isinstance(size, int)]):
        return None
    return _reduction(reduction, False) if dims(reshape.outputs[0]) == left else None


@rule(f"{_REDUCTIONS} -> {_RESHAPES}", name="reduced axes put back")
def reduce_and_keep(reduction: ir.Node, reshape: ir.Node) -> Result:
    """A reduction can keep the axes that it reduces, at size 1."""
    axes, shape = _reduced(reduction), dims(reduction.inputs[0])
    if axes is None or shape is None or _keeps(reduction):
        return None
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return None if None in kept or dims(reshape.outputs[0]) != kept else _reduction(reduction, True)


@rule("ReduceMean|ReduceSum|ReduceMax|ReduceMin", name="reduction of one element", shared=True)
def drop_reduction(reduction: ir.Node) -> Result:
    """The mean, sum or extreme of one number is that number."""
    axes, shape = _reduced(reduction), dims(reduction.inputs[0])
    if axes is None or shape is None or any(shape[axis] != 1 for axis in axes):
        return None
    return reduction.inputs[0] if _keeps(reduction) else None


def _moves_nothing(transpose: ir.Node) -> bool:
    """Whether only axes of size 1 change their place among the others."""
    shape = dims(transpose.inputs[0])
    if shape is None:
        return False
    order = transpose.attributes.get_ints("perm", tuple(reversed(range(len(shape)))))
    moved = [axis for axis in order if shape[axis] != 1]
    return moved == sorted(moved)


def _reshaped(first: ir.Node, second: ir.Node) -> Result:
    x, wanted = first.inputs[0], dims(second.outputs[0])
    if x is None or wanted is None or any(size == 0 for size in wanted) or opset(second) < 5:
        return None
    if wanted == dims(x) and None not in wanted:
        return x
    target = reshape_target(list(wanted), dims(x))
    if target is None:
        return None
    return node("Reshape", [x, initializer(f"{second.name}.shape", np.array(target, np.int64))])


def _reduced(reduction: ir.Node) -> list[int] | None:
    """The axes that are reduced, from the front; ``None`` where they are all or computed."""
    rank = len(dims(reduction.inputs[0]) or ())
    axes: Sequence[int] | None = reduction.attributes.get_ints("axes", None)
    if axes is None and len(reduction.inputs) > 1:
        axes = integers(reduction.inputs[1])
    return sorted(axis % rank for axis in axes) if axes and rank else None


def _keeps(reduction: ir.Node) -> bool:
    return reduction.attributes.get_int("keepdims", 1) != 0


def _reduction(reduction: ir.Node, keep: bool) -> ir.Node:
    attributes = {name: item for name, item in reduction.attributes.items() if name != "keepdims"}
    attributes["keepdims"] = ir.AttrInt64("keepdims", int(keep))
    return ir.Node("", reduction.op_type, list(reduction.inputs), list(attributes.values()))


RULES = (reshape_then_move, move_then_reshape, reduce_without, reduce_and_keep, drop_reduction)
