"""Operators that move elements about, and those that make shapes and constants."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from edgeopt.graph.autograd.dtypes import to_torch, torch_dtype
from edgeopt.graph.autograd.operators import Call, Tensor, operator


@operator("Reshape", host=(1,))
def reshape(call: Call, x: Tensor, shape: list[int] | None = None) -> Tensor:
    """Gives another shape; 0 copies a size, -1 is worked out."""
    shape = call.integers("shape") or [] if shape is None else [int(size) for size in shape]
    if not call.integer("allowzero"):
        shape = [x.shape[index] if size == 0 else size for index, size in enumerate(shape)]
    elif 0 in shape:
        shape = [max(size, 0) for size in shape]
    return torch.reshape(x, shape)


@operator("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    """Makes a matrix: the axes before ``axis`` by those from it on."""
    axis = call.integer("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    rows = 1
    for size in x.shape[:axis]:
        rows *= size
    return x.reshape(rows, x.numel() // rows if rows else 0)


@operator("Transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    """Reorders axes, by default reversing them."""
    order = call.integers("perm")
    return x.permute(order if order is not None else list(reversed(range(x.dim()))))


@operator("Squeeze", host=(1,))
def squeeze(call: Call, x: Tensor, axes: list[int] | None = None) -> Tensor:
    """Drops axes of size one."""
    axes = call.integers("axes") if axes is None else axes
    if axes is None:
        return x.squeeze()
    return x.squeeze(tuple(int(axis) for axis in axes)) if axes else x


@operator("Unsqueeze", host=(1,))
def unsqueeze(call: Call, x: Tensor, axes: list[int] | int | None = None) -> Tensor:
    """Inserts axes of size one."""
    found = call.integers("axes") or [] if axes is None else axes if isinstance(axes, list) else [axes]
    rank = x.dim() + len(found)
    for axis in sorted(int(item) % rank for item in found):
        x = x.unsqueeze(axis)
    return x


@operator("Expand", host=(1,))
def expand(call: Call, x: Tensor, shape: list[int]) -> Tensor:
    """Broadcasts with a shape."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(int(size) for size in shape)))


@operator("Tile", host=(1,))
def tile(call: Call, x: Tensor, repeats: list[int]) -> Tensor:
    """Repeats along each axis."""
    return x.repeat(*(int(item) for item in repeats))


@operator("Concat")
def concat(call: Call, *values: Tensor) -> Tensor:
    """Joins along an axis."""
    return torch.cat(values, call.integer("axis"))


@operator("Split", host=(1,))
def split(call: Call, x: Tensor, sizes: list[int] | None = None) -> tuple[Tensor, ...]:
    """Parts along an axis, into given sizes or equal ones, of which the last may be smaller."""
    axis = call.integer("axis")
    sizes = call.integers("split") if sizes is None else [int(size) for size in sizes]
    if sizes is None:
        count = call.integer("num_outputs", len(call.node.outputs))
        size = -(-x.shape[axis] // count)
        sizes = [size] * (count - 1) + [x.shape[axis] - size * (count - 1)]
    parts: tuple[Tensor, ...] = torch.split(x, sizes, axis)
    return parts


@operator("Slice", host=(1, 2, 3, 4))
def slice_axes(
    call: Call,
    x: Tensor,
    starts: list[int],
    ends: list[int],
    axes: list[int] | None = None,
    steps: list[int] | None = None,
) -> Tensor:
    """Cuts ranges out of axes, backwards too."""
    axes = list(range(len(starts))) if axes is None else axes
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(starts), strict=True):
        places = range(x.shape[axis])[slice(int(start), _end(int(end), int(step)), int(step))]
        if places.step > 0:
            index: list[slice] = [slice(None)] * x.dim()
            index[axis] = slice(places.start, max(places.stop, places.start), places.step)
            x = x[tuple(index)]
        else:
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64, device=x.device))
    return x


def _end(end: int, step: int) -> int | None:
    """ONNX goes backwards to the very first element with an end far below zero."""
    return None if step < 0 and end < -(2**30) else end


@operator("Pad", host=(1, 3))
def pad_axes(
    call: Call, x: Tensor, pads: list[int], value: Tensor | None = None, axes: list[int] | None = None
) -> Tensor:
    """Pads axes with a constant, the edge, a reflection or the other end; negative pads cut off."""
    mode = call.text("mode", "constant")
    chosen = list(range(x.dim())) if axes is None else [int(axis) % x.dim() for axis in axes]
    begin, end = [0] * x.dim(), [0] * x.dim()
    for index, axis in enumerate(chosen):
        begin[axis], end[axis] = int(pads[index]), int(pads[index + len(chosen)])
    if mode == "constant":
        pairs = [item for both in zip(reversed(begin), reversed(end), strict=True) for item in both]
        fill = 0.0 if value is None else value.reshape(-1)[0].item()
        return F.pad(x, pairs, value=fill)
    for axis in range(x.dim()):
        if begin[axis] or end[axis]:
            places = _sources(mode, x.shape[axis], begin[axis], end[axis])
            x = x.index_select(axis, torch.tensor(places, dtype=torch.int64, device=x.device))
    return x


def _sources(mode: str, size: int, begin: int, end: int) -> list[int]:
    """Lists the element that each padded place takes."""
    places = range(-begin, size + end)
    if mode == "edge":
        return [min(max(place, 0), size - 1) for place in places]
    if mode == "wrap":
        return [place % size for place in places]
    period = max(2 * (size - 1), 1)
    return [size - 1 - abs(size - 1 - place % period) for place in places]


@operator("Shape")
def shape_of(call: Call, x: Tensor) -> Tensor:
    """The sizes, as int64 on the host."""
    start, end = call.integer("start"), call.node.attributes.get_int("end", None)
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


@operator("Size")
def size_of(call: Call, x: Tensor) -> Tensor:
    """The number of elements, as int64 on the host."""
    return torch.tensor(x.numel(), dtype=torch.int64)


@operator("Constant")
def constant(call: Call) -> Tensor:
    """A constant written as an attribute."""
    name, attribute = next(iter(call.node.attributes.items()))
    if name == "value":
        return to_torch(attribute.as_tensor(), call.node.name or "Constant", call.dtype)
    if name in ("value_int", "value_ints"):
        return torch.tensor(attribute.value, dtype=torch.int64)
    if name in ("value_float", "value_floats"):
        return torch.tensor(attribute.value, dtype=call.dtype or torch.float32)
    raise call.refuse(f"with {name}")


@operator("ConstantOfShape", host=(0,))
def constant_of_shape(call: Call, shape: list[int]) -> Tensor:
    """A tensor of one number."""
    given = call.node.attributes.get_tensor("value", None)
    fill = torch.zeros(1) if given is None else to_torch(given, "value")
    dtype = call.dtype if call.dtype is not None and fill.is_floating_point() else fill.dtype
    return torch.full([int(size) for size in shape], fill.reshape(-1)[0].item(), dtype=dtype)


@operator("Range", host=(0, 1, 2))
def arithmetic_range(call: Call, start: Any, limit: Any, step: Any) -> Tensor:
    """Numbers from start to below the limit."""
    first, last, by = (item[0] if isinstance(item, list) else item for item in (start, limit, step))
    kind = call.node.inputs[0].dtype if call.node.inputs[0] is not None else None
    dtype = torch_dtype(kind)
    if dtype is None:
        dtype = torch.float32 if isinstance(first, float) else torch.int64
    dtype = call.dtype if call.dtype is not None and dtype.is_floating_point else dtype
    count = max(int(-(-(last - first) // by)), 0)
    return (torch.arange(count, dtype=torch.float64) * by + first).to(dtype)


@operator("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """Moves channels into blocks of pixels."""
    block = call.integer("blocksize", 1)
    batch, channels, height, width = x.shape
    depth = channels // block**2
    if call.text("mode", "DCR") == "DCR":
        moved = x.reshape(batch, block, block, depth, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        moved = x.reshape(batch, depth, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    return moved.reshape(batch, depth, height * block, width * block)


@operator("SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """Moves blocks of pixels into channels."""
    block = call.integer("blocksize", 1)
    batch, channels, height, width = x.shape
    moved = x.reshape(batch, channels, height // block, block, width // block, block)
    order = (0, 3, 5, 1, 2, 4) if call.text("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return moved.permute(order).reshape(batch, channels * block**2, height // block, width // block)


@operator("Trilu", host=(1,))
def triangle(call: Call, x: Tensor, diagonal: Any = 0) -> Tensor:
    """Keeps the upper or lower triangle."""
    k = int(diagonal[0] if isinstance(diagonal, list) else diagonal or 0)
    return torch.triu(x, k) if call.integer("upper", 1) else torch.tril(x, k)


@operator("EyeLike")
def eye_like(call: Call, x: Tensor) -> Tensor:
    """Ones on a diagonal."""
    dtype = torch_dtype(call.integer("dtype")) if call.integer("dtype") else x.dtype
    ones = torch.ones(max(x.shape), dtype=torch.float64)
    k = call.integer("k")
    full = torch.diag(ones, 0) if not k else torch.diag(torch.ones(max(x.shape) + abs(k)), k)
    return full[: x.shape[0], : x.shape[1]].to(dtype)


@operator("ReverseSequence", host=(1,))
def reverse_sequence(call: Call, x: Tensor, lengths: list[int]) -> Tensor:
    """Reverses the first elements of each sequence."""
    time, batch = call.integer("time_axis"), call.integer("batch_axis", 1)
    moved = x.movedim((batch, time), (0, 1))
    rows = [
        torch.cat((row[: int(count)].flip(0), row[int(count) :]))
        for row, count in zip(moved, lengths, strict=True)
    ]
    return torch.stack(rows).movedim((0, 1), (batch, time))
