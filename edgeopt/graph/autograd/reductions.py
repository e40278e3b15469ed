"""Operators that reduce axes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from edgeopt.graph.autograd.operators import Call, Tensor, operator

Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _over_each(function: Callable[..., Tensor]) -> Reduction:
    """Reduces one axis after another with a function that takes only one."""

    def reduce(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
            x = function(x, axis, keepdim=keep)
        return x

    return reduce


def _extreme(x: Tensor, axes: tuple[int, ...], keep: bool, *, largest: bool) -> Tensor:
    """The largest or smallest; of nothing, the least or greatest number of the type."""
    if x.numel():
        return x.amax(axes, keepdim=keep) if largest else x.amin(axes, keepdim=keep)
    if x.is_floating_point():
        fill: float | bool = -math.inf if largest else math.inf
    elif x.dtype == torch.bool:
        fill = not largest
    else:
        fill = torch.iinfo(x.dtype).min if largest else torch.iinfo(x.dtype).max
    shape = torch.empty(x.shape, device="meta").sum(axes, keepdim=keep).shape
    return torch.full(shape, fill, dtype=x.dtype, device=x.device)


REDUCTIONS: dict[str, Reduction] = {
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: _extreme(x, axes, keep, largest=True),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: _extreme(x, axes, keep, largest=False),
    "ReduceProd": _over_each(torch.prod),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: (x * x).sum(axes, keepdim=keep),
}


def _reduce(call: Call, x: Tensor, axes: list[int] | None, function: Reduction) -> Tensor:
    axes = call.integers("axes") if axes is None else axes
    if not axes:
        if call.integer("noop_with_empty_axes"):
            name = call.node.op_type
            if name in ("ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp"):
                return function(x.unsqueeze(-1), (-1,), False)  # each element by itself
            return x
        axes = list(range(x.dim()))
    if not axes:
        return function(x.unsqueeze(-1), (-1,), False)
    return function(x, tuple(axes), bool(call.integer("keepdims", 1))).to(x.dtype)


for _name, _function in REDUCTIONS.items():
    operator(_name, host=(1,))(
        lambda call, x, axes=None, function=_function: _reduce(call, x, axes, function)
    )


@operator("ArgMax", "ArgMin")
def arg_extreme(call: Call, x: Tensor) -> Tensor:
    """Where the largest or smallest stands along an axis; of equals the first, or the last on demand."""
    axis, keep = call.integer("axis"), bool(call.integer("keepdims", 1))
    x = x if x.dtype != torch.bool else x.to(torch.uint8)
    best = x.amax(axis, keepdim=True) if call.node.op_type == "ArgMax" else x.amin(axis, keepdim=True)
    hits = (x == best).to(torch.uint8)
    if call.integer("select_last_index"):
        found = x.shape[axis] - 1 - hits.flip(axis).argmax(axis, keepdim=True)
    else:
        found = hits.argmax(axis, keepdim=True)
    return found if keep else found.squeeze(axis)


@operator("CumSum", host=(1,))
def cumulative_sum(call: Call, x: Tensor, axis: int | list[int]) -> Tensor:
    """Sums along an axis up to each element, or up to the one before."""
    dim = axis[0] if isinstance(axis, list) else axis
    x = x.flip(dim) if call.integer("reverse") else x
    result = x.cumsum(dim).to(x.dtype)
    result = result - x if call.integer("exclusive") else result
    return result.flip(dim) if call.integer("reverse") else result


@operator("TopK", host=(1,))
def top_k(call: Call, x: Tensor, count: list[int]) -> tuple[Tensor, Tensor]:
    """The largest or smallest along an axis, in order; of equals the first come first."""
    axis, largest = call.integer("axis", -1), bool(call.integer("largest", 1))
    order = torch.sort(x, dim=axis, descending=largest, stable=True).indices
    places = order.narrow(axis, 0, int(count[0]))
    return x.gather(axis, places), places
