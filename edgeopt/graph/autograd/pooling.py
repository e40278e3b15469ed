"""Pools over windows and over whole feature maps."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from edgeopt.graph.autograd.operators import Call, Tensor, operator
from edgeopt.graph.autograd.windows import Window, pad

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _window(call: Call, x: Tensor) -> tuple[Window, list[int], list[int]]:
    """Reads the window and the pads before and after with what ``ceil_mode`` adds."""
    kernel = call.integers("kernel_shape") or []
    if len(kernel) not in _MAX:
        raise call.refuse(f"in {len(kernel)} dimensions")
    window = Window.of(call, kernel, list(x.shape[2:]))
    begin, end = window.pads
    if call.integer("ceil_mode") and call.text("auto_pad", "NOTSET") in ("NOTSET", "VALID"):
        end = [have + more for have, more in zip(end, window.missing(list(x.shape[2:])), strict=True)]
    return window, begin, end


@operator("MaxPool")
def max_pool(call: Call, x: Tensor) -> object:
    """The largest of each window, and on demand where it stands in the flattened input."""
    window, begin, end = _window(call, x)
    rank = len(window.kernel)
    if call.wants(1):
        return _max_pool_with_indices(call, x, window, begin, end)
    if begin == end and all(2 * item <= width for item, width in zip(begin, window.kernel, strict=True)):
        return _MAX[rank](x, window.kernel, window.strides, begin, window.dilations)
    floats = x if x.is_floating_point() else x.double()
    padded = pad(floats, begin, end, -math.inf)
    return _MAX[rank](padded, window.kernel, window.strides, 0, window.dilations).to(x.dtype)


def _max_pool_with_indices(
    call: Call, x: Tensor, window: Window, begin: list[int], end: list[int]
) -> tuple[Tensor, Tensor]:
    rank = len(window.kernel)
    floats = x if x.is_floating_point() else x.double()
    result, places = _MAX[rank](
        pad(floats, begin, end, -math.inf),
        window.kernel,
        window.strides,
        0,
        window.dilations,
        return_indices=True,
    )
    sizes = list(x.shape[2:])
    padded = [size + before + after for size, before, after in zip(sizes, begin, end, strict=True)]
    order = range(rank) if call.integer("storage_order") else range(rank - 1, -1, -1)
    coordinates = {}
    for axis in range(rank - 1, -1, -1):
        coordinates[axis] = places % padded[axis] - begin[axis]
        places = places // padded[axis]
    flat, step = torch.zeros_like(places), 1
    for axis in order:
        flat, step = flat + coordinates[axis] * step, step * sizes[axis]
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *[1] * rank)
    return result.to(x.dtype), flat + planes * math.prod(sizes)


def _window_sum(x: Tensor, window: Window) -> Tensor:
    """Sums each window of a padded tensor."""
    channels, rank = x.shape[1], len(window.kernel)
    ones = torch.ones(channels, 1, *window.kernel, dtype=x.dtype, device=x.device)
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[rank]
    return function(x, ones, None, window.strides, 0, window.dilations, channels)


@operator("AveragePool")
def average_pool(call: Call, x: Tensor) -> Tensor:
    """The mean of each window, with or without its pads."""
    window, begin, end = _window(call, x)
    if begin == end == [0] * len(begin) and len(begin) == 2 and set(window.dilations) == {1}:
        return F.avg_pool2d(x, window.kernel, window.strides)
    sums = _window_sum(pad(x, begin, end), window)
    counted = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    if call.integer("count_include_pad"):
        own_begin, own_end = window.pads
        counted = pad(counted, own_begin, own_end, 1.0)
        begin = [0] * len(begin)
        end = [item - own for item, own in zip(end, own_end, strict=True)]
    return sums / _window_sum(pad(counted, begin, end), window)


@operator("LpPool")
def lp_pool(call: Call, x: Tensor) -> Tensor:
    """The p-norm of each window."""
    window, begin, end = _window(call, x)
    p = call.integer("p", 2)
    return _window_sum(pad(x.abs() ** p, begin, end), window) ** (1.0 / p)


@operator("GlobalAveragePool")
def global_average_pool(call: Call, x: Tensor) -> Tensor:
    """The mean over all spatial axes."""
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(call: Call, x: Tensor) -> Tensor:
    """The largest over all spatial axes."""
    return x.amax(dim=tuple(range(2, x.dim())), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(call: Call, x: Tensor) -> Tensor:
    """The p-norm over all spatial axes."""
    p = call.integer("p", 2)
    return (x.abs() ** p).sum(dim=tuple(range(2, x.dim())), keepdim=True) ** (1.0 / p)
