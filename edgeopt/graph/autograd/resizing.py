"""Resize and Upsample: each axis is a small matrix of interpolation weights.

Interpolation along the axes is separable, so every resized axis is one product with a matrix of shape
[output, input], computed on the host from the coordinates as the operator defines them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from edgeopt.graph.autograd.operators import Call, Tensor, operator


@operator("Resize", host=(1, 2, 3))
def resize(
    call: Call,
    x: Tensor,
    roi: list[float] | None = None,
    scales: list[float] | None = None,
    sizes: list[int] | None = None,
) -> Tensor:
    """Samples at other coordinates: nearest, linear or cubic."""
    if call.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise call.refuse("with tf_crop_and_resize")
    axes = [axis % x.dim() for axis in (call.integers("axes") or range(x.dim()))]
    if sizes:
        pairs = _from_sizes(call, [x.shape[axis] for axis in axes], [int(size) for size in sizes])
    else:
        given = [float(scale) for scale in scales or []]
        pairs = [(math.floor(x.shape[axis] * scale), scale) for axis, scale in zip(axes, given, strict=True)]
    for axis, (size, scale) in zip(axes, pairs, strict=True):
        if scale != 1 or size != x.shape[axis]:
            x = _along(call, x, axis, size, scale)
    return x


@operator("Upsample", host=(1,))
def upsample(call: Call, x: Tensor, scales: list[float]) -> Tensor:
    """The old form of Resize: asymmetric coordinates."""
    for axis, scale in enumerate(scales):
        if scale != 1:
            x = _along(call, x, axis, math.floor(x.shape[axis] * scale), float(scale), "asymmetric")
    return x


def _from_sizes(call: Call, before: list[int], sizes: list[int]) -> list[tuple[int, float]]:
    policy = call.text("keep_aspect_ratio_policy", "stretch")
    ratios = [size / have for size, have in zip(sizes, before, strict=True)]
    if policy == "stretch":
        return list(zip(sizes, ratios, strict=True))
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return [(math.floor(have * scale + 0.5), scale) for have in before]


def _along(call: Call, x: Tensor, axis: int, size: int, scale: float, transform: str = "") -> Tensor:
    weights = matrix(call, x.shape[axis], size, scale, transform)
    if call.text("mode", "nearest") == "nearest":
        places = torch.from_numpy(weights.argmax(1)).to(x.device)
        return x.index_select(axis, places)
    spread = torch.from_numpy(weights).to(x.device, x.dtype)
    return torch.matmul(x.movedim(axis, -1), spread.transpose(0, 1)).movedim(-1, axis)


def matrix(call: Call, length: int, size: int, scale: float, transform: str = "") -> np.ndarray:
    """Returns the weights of one axis, float64 of shape [size, length]."""
    transform = transform or call.text("coordinate_transformation_mode", "half_pixel")
    places = _coordinates(transform, np.arange(size, dtype=np.float64), length, size, scale)
    mode = call.text("mode", "nearest")
    weights = np.zeros((size, length))
    if mode == "nearest":
        default = "floor" if call.node.op_type == "Upsample" else "round_prefer_floor"
        chosen = np.clip(_nearest(call.text("nearest_mode", default), places), 0, length - 1)
        weights[np.arange(size), chosen.astype(int)] = 1
        return weights
    stretch = min(scale, 1.0) if call.integer("antialias") else 1.0
    reach = 1 if mode == "linear" else 2
    kernel = _linear if mode == "linear" else _cubic(call.number("cubic_coeff_a", -0.75))
    outside = bool(call.integer("exclude_outside"))
    for row, place in enumerate(places):
        taps = np.arange(math.floor(place - reach / stretch) + 1, math.ceil(place + reach / stretch))
        if not len(taps):
            taps = np.array([round(place)])
        values = np.asarray(kernel((taps - place) * stretch), np.float64)
        if outside:
            values = np.where((taps < 0) | (taps >= length), 0.0, values)
        if outside or stretch < 1:
            values = values / values.sum()
        np.add.at(weights[row], np.clip(taps, 0, length - 1).astype(int), values)
    return weights


def _coordinates(transform: str, out: np.ndarray, length: int, size: int, scale: float) -> np.ndarray:
    places: np.ndarray
    if transform == "align_corners":
        places = out * (length - 1) / (size - 1) if size > 1 else np.zeros_like(out)
    elif transform == "asymmetric":
        places = out / scale
    elif transform == "half_pixel_symmetric":
        adjustment = size / (scale * length)
        places = length / 2 * (1 - adjustment) + (out + 0.5) / scale - 0.5
    elif transform == "pytorch_half_pixel" and size == 1:
        places = np.full_like(out, -0.5)
    else:
        places = (out + 0.5) / scale - 0.5
    return places


def _nearest(mode: str, places: np.ndarray) -> Any:
    if mode == "round_prefer_floor":
        return np.ceil(places - 0.5)
    if mode == "round_prefer_ceil":
        return np.floor(places + 0.5)
    return np.floor(places) if mode == "floor" else np.ceil(places)


def _linear(distance: np.ndarray) -> np.ndarray:
    weights: np.ndarray = np.clip(1 - np.abs(distance), 0, None)
    return weights


def _cubic(a: float) -> Any:
    """Keys' kernel (1981) with the coefficient a."""

    def kernel(distance: np.ndarray) -> np.ndarray:
        d = np.abs(distance)
        near = ((a + 2) * d - (a + 3)) * d**2 + 1
        far = ((d - 5) * d + 8) * d * a - 4 * a
        weights: np.ndarray = np.where(d <= 1, near, np.where(d < 2, far, 0.0))
        return weights

    return kernel
