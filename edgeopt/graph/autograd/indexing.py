"""Operators that read and write by index."""

from __future__ import annotations

import torch

from edgeopt.graph.autograd.operators import Call, Tensor, operator


def _positive(indices: Tensor, size: int) -> Tensor:
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


@operator("Gather")
def gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Takes slices along an axis."""
    axis = call.integer("axis") % x.dim()
    places = _positive(indices, x.shape[axis])
    taken = x.index_select(axis, places.reshape(-1))
    return taken.reshape((*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]))


@operator("GatherElements")
def gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Takes single elements along an axis."""
    axis = call.integer("axis")
    return x.gather(axis, _positive(indices, x.shape[axis]))


@operator("GatherND")
def gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Takes slices by tuples of indices, behind batch axes."""
    batch = call.integer("batch_dims")
    depth = indices.shape[-1]
    outer = x.shape[:batch]
    rows = x.reshape(-1, *x.shape[batch:])
    places = indices.reshape(len(rows), *indices.shape[batch:])
    index = [_positive(places[..., part], x.shape[batch + part]) for part in range(depth)]
    number = torch.arange(len(rows), device=x.device).reshape(-1, *[1] * (places.dim() - 2))
    found = rows[(number, *index)]
    return found.reshape((*outer, *found.shape[1:]))


@operator("ScatterND")
def scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Writes slices at tuples of indices, one after another."""
    depth = indices.shape[-1]
    places = tuple(_positive(indices[..., part], x.shape[part]).reshape(-1) for part in range(depth))
    values = updates.reshape(len(places[0]) if places else 1, *x.shape[depth:])
    reduction = call.text("reduction", "none")
    if reduction in ("none", "add"):
        return x.index_put(places, values, accumulate=reduction == "add")
    flat = torch.zeros_like(places[0])
    for part, place in enumerate(places):
        flat = flat * x.shape[part] + place
    rows = x.reshape(-1, *x.shape[depth:]) if depth < x.dim() else x.reshape(-1)
    kind = {"mul": "prod", "max": "amax", "min": "amin"}[reduction]
    spread = flat.reshape(-1, *[1] * (values.dim() - 1)).expand_as(values)
    return rows.scatter_reduce(0, spread, values, kind).reshape(x.shape)


@operator("ScatterElements", "Scatter")
def scatter_elements(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Writes single elements along an axis."""
    axis = call.integer("axis")
    places = _positive(indices, x.shape[axis])
    reduction = call.text("reduction", "none")
    if reduction == "none":
        return x.scatter(axis, places, updates)
    kind = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[reduction]
    return x.scatter_reduce(axis, places, updates, kind)


@operator("OneHot", host=(1,))
def one_hot(call: Call, indices: Tensor, depth: list[int] | int | float, values: Tensor) -> Tensor:
    """The on value at each index along a new axis, the off value elsewhere."""
    count = int(depth[0] if isinstance(depth, list) else depth)
    axis = call.integer("axis", -1)
    places = indices.long()
    inside = torch.remainder(places, count).unsqueeze(-1)
    hits = torch.arange(count, device=places.device) == inside
    hits = hits & ((places >= -count) & (places < count)).unsqueeze(-1)
    result = torch.where(hits, values[1], values[0])
    return result.movedim(-1, axis if axis >= 0 else result.dim() + axis)


@operator("NonZero")
def non_zero(call: Call, x: Tensor) -> Tensor:
    """The indices of what is not zero, one column each."""
    return torch.nonzero(x).transpose(0, 1)


@operator("Compress")
def compress(call: Call, x: Tensor, condition: Tensor) -> Tensor:
    """Takes the slices along an axis where a condition holds."""
    axis = call.node.attributes.get_int("axis", None)
    places = torch.nonzero(condition).reshape(-1)
    return x.reshape(-1)[places] if axis is None else x.index_select(axis, places)
