"""Steps that move numbers: shapes, orders of axes, cuts and joins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import helper

from benchmarks.random_graphs.graph import FLOAT, INT64, Graph, Value


def reshape(g: Graph) -> None:
    """Any reshaping operator."""
    if (x := g.value(lambda v: bool(v.shape))) is None:
        return
    how, rank = g.pick(["Reshape", "Flatten", "Squeeze", "Unsqueeze", "computed"]), len(x.shape)

    def out(shape: Sequence[int]) -> Value:
        return Value(g.name(), tuple(int(size) for size in shape), x.dtype, x.exact)

    if how == "Flatten":
        axis = int(g.random.integers(0, rank + 1))
        sizes = (int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:])))
        g.add("Flatten", [x.name], out(sizes), axis=axis)
    elif how == "Unsqueeze":
        axis = int(g.random.integers(0, rank + 1))
        if rank < 5:
            g.axes("Unsqueeze", x.name, [axis], out([*x.shape[:axis], 1, *x.shape[axis:]]), 13)
    elif how == "Squeeze":
        ones = [axis for axis, size in enumerate(x.shape) if size == 1]
        if ones:
            g.axes("Squeeze", x.name, ones, out([size for size in x.shape if size != 1]), 13)
    elif how == "computed" and rank >= 2:
        shape = g.add("Shape", [x.name])
        first = g.add("Gather", [shape, g.constant([0], INT64)])
        target = g.add("Concat", [first, g.constant([-1], INT64)], axis=0)
        g.add("Reshape", [x.name, target], out([x.shape[0], np.prod(x.shape[1:])]))
    else:
        sizes = list(x.shape)
        if rank >= 2 and g.chance(0.6):
            at = int(g.random.integers(0, rank - 1))
            sizes[at : at + 2] = [sizes[at] * sizes[at + 1]]
        elif rank < 5:
            at = int(g.random.integers(0, rank))
            factor = next((f for f in (2, 3) if sizes[at] % f == 0), 1)
            sizes[at : at + 1] = [factor, sizes[at] // factor]
        target = [-1 if at == 0 and g.chance(0.5) else size for at, size in enumerate(sizes)]
        g.add("Reshape", [x.name, g.constant(target, INT64)], out(sizes))


def transpose(g: Graph) -> None:
    """Any order of axes, sometimes back again."""
    if x := g.value(lambda v: len(v.shape) >= 2):
        order = [int(axis) for axis in g.random.permutation(len(x.shape))]
        out = Value(g.name(), tuple(x.shape[axis] for axis in order), x.dtype, x.exact)
        g.add("Transpose", [x.name], out, perm=order)
        if g.chance(0.3):
            back = [int(axis) for axis in np.argsort(order)]
            g.add("Transpose", [out.name], Value(g.name(), x.shape, x.dtype, x.exact), perm=back)


def cut(g: Graph) -> None:
    """Slice, Split or Gather along one axis."""
    if (x := g.value(lambda v: len(v.shape) >= 1 and max(v.shape) > 1 and v.dtype != bool)) is None:
        return
    axis = int(g.pick([axis for axis, size in enumerate(x.shape) if size > 1]))
    size, written = x.shape[axis], axis if g.chance(0.6) else axis - len(x.shape)

    def out(left: Sequence[int]) -> Value:
        return Value(g.name(), (*x.shape[:axis], *left, *x.shape[axis + 1 :]), x.dtype, x.exact)

    how = g.pick(["Slice", "Slice", "Split", "Gather", "one"])
    if how == "Slice":
        step = int(g.pick([1, 1, 2, -1]))
        start, end = (
            (0, size) if g.chance(0.2) else sorted(int(i) for i in g.random.choice(size + 1, 2, False))
        )
        if step == -1:
            start, end = size - 1, -size - 1
        length = len(range(*slice(start, None if end < 0 else end, step).indices(size)))
        end = 2**31 - 1 if end == size and g.chance(0.3) else end
        parts = [g.constant([number], INT64) for number in (start, end, written, step)]
        g.add("Slice", [x.name, *parts], out([length]))
    elif how == "Split" and size >= 2:
        one = int(g.random.integers(1, size))
        first, second = out([one]), out([size - one])
        second = Value(g.name(), second.shape, second.dtype, second.exact)
        sizes = [one, size - one]
        attributes = {"axis": written, **({"split": sizes} if g.opset < 13 else {})}
        inputs = [x.name] if g.opset < 13 else [x.name, g.constant(sizes, INT64)]
        g.nodes.append(helper.make_node("Split", inputs, [first.name, second.name], **attributes))
        g.pool += [first, second]
    else:
        index = g.random.integers(0, size, () if how == "one" else (int(g.random.integers(1, 4)),))
        g.add("Gather", [x.name, g.constant(index, INT64)], out(index.shape), axis=written)


def join(g: Graph) -> None:
    """Concat, Tile, Expand or Pad."""
    if (x := g.value(lambda v: bool(v.shape) and np.prod(v.shape) < 2000)) is None:
        return
    axis, how = (
        int(g.random.integers(len(x.shape))),
        g.pick(
            ["Concat", "Concat", *(["Tile", "Expand", "Pad"] if x.dtype in (FLOAT, INT64) else ["Concat"])]
        ),
    )
    if how == "Concat":
        others = [v for v in g.pool if v.dtype == x.dtype and v.shape == x.shape][-2:]
        shape = tuple(s * len(others) if i == axis else s for i, s in enumerate(x.shape))
        g.add("Concat", [v.name for v in others], Value(g.name(), shape, x.dtype, x.exact), axis=axis)
    elif how == "Tile":
        counts = [int(g.pick([1, 1, 2])) for _ in x.shape]
        shape = tuple(size * count for size, count in zip(x.shape, counts, strict=True))
        g.add("Tile", [x.name, g.constant(counts, INT64)], Value(g.name(), shape, x.dtype, x.exact))
    elif how == "Expand":
        shape = tuple(int(g.pick([1, 3])) if size == 1 else size for size in x.shape)
        g.add("Expand", [x.name, g.constant(shape, INT64)], Value(g.name(), shape, x.dtype, x.exact))
    elif x.dtype == FLOAT:
        pads = [int(number) for number in g.random.integers(0, 2, 2 * len(x.shape))]
        half = len(x.shape)
        shape = tuple(s + pads[i] + pads[half + i] for i, s in enumerate(x.shape))
        g.add("Pad", [x.name, g.constant(pads, INT64)], Value(g.name(), shape, x.dtype, x.exact))
