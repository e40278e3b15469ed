"""Merge a Reshape, Transpose and Reshape that only move numbers into the one operator that does.

The numbers of the input are written into an array in order, and moved: what comes out tells which
operator it is. A permutation of one axis (the channel shuffle of Zhang et al. 2017) is a Gather with
constant indices, every k-th element of it a Slice; sub-pixel convolution (Shi et al. 2016) is
DepthToSpace. A pass of ``edgeopt optimize`` alone: compilers know some of these patterns by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.graph.change import NoMatch
from edgeopt.graph.rewriting import Result, constant, initializer, node, opset, rule
from edgeopt.graph.shapes import static_dims
from edgeopt.passes._fusion import Fusion

LARGEST = 2**22
"""Values of more elements are not followed."""


@rule("Reshape -> Transpose -> Reshape", name="moves along one axis or between depth and space")
def merge(first: ir.Node, transpose: ir.Node, last: ir.Node) -> Result:
    """One Gather, Slice or DepthToSpace."""
    moved = _moved(first, transpose, last)
    if moved is None or first.inputs[0] is None:
        return None
    return _along_one_axis(first.inputs[0], moved, last) or _depth_to_space(first.inputs[0], moved, last)


@rule("Reshape -> Transpose -> Reshape -> Gather", name="moves and a choice", shared=True)
def merge_and_pick(first: ir.Node, transpose: ir.Node, last: ir.Node, gather: ir.Node) -> Result:
    """One Gather or Slice of what came before."""
    moved, index = _moved(first, transpose, last), constant(gather.inputs[1])
    if moved is None or index is None or first.inputs[0] is None:
        return None
    if (
        any(use.node.op_type != "Gather" for use in last.outputs[0].uses())
        or last.outputs[0].is_graph_output()
    ):
        return NoMatch("what is moved has another reader")
    picked = np.take(moved, index, axis=gather.attributes.get_int("axis", 0))
    return _along_one_axis(first.inputs[0], picked, gather)


def _moved(first: ir.Node, transpose: ir.Node, last: ir.Node) -> np.ndarray | None:
    """The places that the output's numbers had in the input, in its order."""
    shapes = [static_dims(value) for value in (first.inputs[0], first.outputs[0], last.outputs[0])]
    given, between, left = shapes
    if given is None or between is None or left is None or not 0 < np.prod(given) <= LARGEST:
        return None
    if np.prod(given) != np.prod(between) or np.prod(given) != np.prod(left):
        return None
    order = transpose.attributes.get_ints("perm", tuple(reversed(range(len(between)))))
    places = np.arange(np.prod(given, dtype=np.int64)).reshape(between)
    return places.transpose(order).reshape(left)


def _along_one_axis(x: ir.Value, moved: np.ndarray, like: ir.Node) -> ir.Node | None:
    given = static_dims(x) or ()
    if moved.ndim != len(given):
        return None
    places = np.arange(np.prod(given, dtype=np.int64)).reshape(given)
    for axis in range(len(given)):
        others = [place for place in range(len(given)) if place != axis]
        if any(moved.shape[place] != given[place] for place in others):
            continue
        line = tuple(slice(None) if place == axis else 0 for place in range(len(given)))
        stride = max(1, int(np.prod(given[axis + 1 :])))
        index = moved[line] // stride
        if index.max() >= given[axis] or not np.array_equal(places.take(index, axis), moved):
            continue
        return _picked(x, index, axis, like)
    return None


def _picked(x: ir.Value, index: np.ndarray, axis: int, like: ir.Node) -> ir.Node:
    step = int(index[1] - index[0]) if len(index) > 1 else 1
    if step > 0 and opset(like) >= 10 and np.array_equal(index, index[0] + step * np.arange(len(index))):
        cuts = {"starts": int(index[0]), "ends": int(index[-1]) + 1, "axes": axis, "steps": step}
        parts = [initializer(f"{like.name}.{name}", np.array([cut], np.int64)) for name, cut in cuts.items()]
        return node("Slice", [x, *parts])
    return node("Gather", [x, initializer(f"{like.name}.index", index.astype(np.int64))], {"axis": axis})


def _depth_to_space(x: ir.Value, moved: np.ndarray, like: ir.Node) -> ir.Node | None:
    given = static_dims(x) or ()
    if len(given) != 4 or moved.ndim != 4 or opset(like) < 11:
        return None
    batch, channels, height, width = given
    size = moved.shape[2] // height
    if size < 2 or moved.shape != (batch, channels // size**2, height * size, width * size):
        return None
    places = np.arange(np.prod(given)).reshape(given)
    for mode, split, order in (
        ("DCR", (size, size, channels // size**2), (0, 3, 4, 1, 5, 2)),
        ("CRD", (channels // size**2, size, size), (0, 1, 4, 2, 5, 3)),
    ):
        if np.array_equal(
            places.reshape(batch, *split, height, width).transpose(order).reshape(moved.shape), moved
        ):
            return node("DepthToSpace", [x], {"blocksize": size, "mode": mode})
    return None


@dataclass(frozen=True)
class MergeMoves(Fusion):
    """Merge Reshape, Transpose and Reshape into the Gather, Slice or DepthToSpace that they are."""

    name: ClassVar[str] = "merge-moves"
    patterns = (merge_and_pick, merge)
