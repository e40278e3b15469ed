"""Reductions, pooling and resizing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeopt.targets.tflite import fixed_point as fp
from edgeopt.targets.tflite.operators.pooling import nearest_index
from edgeopt.targets.tflite.program import Operation
from edgeopt.targets.tflite.statements.rescaling import (
    bounds,
    finish,
    kernel,
)
from edgeopt.targets.tflite.sums import centred, scale_of, window


@kernel("MEAN", "SUM")
def reduce(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Sums in int32; a mean's count goes into the multiplier."""
    axes = tuple(int(axis) for axis in np.atleast_1d(arrays[1]))
    x = centred(operation, 0, arrays[0])
    total = x.sum(axis=axes, keepdims=bool(operation.options.get("keepDims")))
    count = int(np.prod([arrays[0].shape[axis] for axis in axes])) if operation.code == "MEAN" else 1
    real = scale_of(operation.inputs[0]) / scale_of(operation.outputs[0])
    multiplier, shift = fp.quantize_multiplier(float(real))
    if count > 1:
        more = min(count.bit_length() - 1, 32, 31 + shift)
        multiplier, shift = (multiplier << more) // count, shift - more
    return finish(operation, fp.multiply(total, multiplier, shift))


@kernel("REDUCE_MAX", "REDUCE_MIN")
def reduce_extremum(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Of integers that share a scale."""
    axes = tuple(int(axis) for axis in np.atleast_1d(arrays[1]))
    pick = np.max if operation.code == "REDUCE_MAX" else np.min
    return np.asarray(pick(arrays[0], axis=axes, keepdims=bool(operation.options.get("keepDims"))))


def _patches(operation: Operation, x: np.ndarray, kernel: tuple[int, int]) -> np.ndarray:
    """The windows of an image, [batch, out height, out width, kernel height, kernel width, channels]."""
    out = operation.outputs[0].shape[1:3]
    result = x
    for axis in (0, 1):
        stride, dilation, before = window(operation, axis, kernel[axis])
        index = np.arange(out[axis])[:, None] * stride + np.arange(kernel[axis])[None] * dilation - before
        place = 1 + 2 * axis
        size = result.shape[place]
        taken = np.take(result, np.clip(index, 0, size - 1), axis=place)
        inside = ((index >= 0) & (index < size)).reshape(
            [index.shape[i - place] if i in (place, place + 1) else 1 for i in range(taken.ndim)]
        )
        result = np.where(inside, taken, 0)
    return result.transpose(0, 1, 3, 2, 4, 5)


@kernel("AVERAGE_POOL_2D", "MAX_POOL_2D")
def pool(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Over the part of each window that lies inside; means rounded half away from zero."""
    size = (int(operation.options["filterHeight"]), int(operation.options["filterWidth"]))
    # Shifted so that the zeros that stand for pads are below every number, and can be told apart.
    patches = _patches(operation, arrays[0].astype(np.int64) + 129, size)
    inside = patches > 0
    low, high = bounds(operation)
    if operation.code == "MAX_POOL_2D":
        return np.asarray(np.clip(patches.max(axis=(3, 4)) - 129, low, high).astype(np.int8))
    counts = inside.sum(axis=(3, 4))
    total = np.where(inside, patches - 129, 0).sum(axis=(3, 4))
    half = counts // 2
    mean = fp.truncated(np.where(total > 0, total + half, total - half), counts)
    return np.asarray(np.clip(mean, low, high).astype(np.int8))


@kernel("RESIZE_BILINEAR")
def resize_bilinear(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Weights of 10 bits."""
    x = arrays[0].astype(np.int64)
    sides = []
    for axis in (0, 1):
        size, out = x.shape[1 + axis], int(arrays[1][axis])
        if operation.options.get("alignCorners") and out > 1:
            step = (1024 * (size - 1) + (out - 1) // 2) // (out - 1)
        else:
            step = (1024 * size + out // 2) // out
        where = np.arange(out, dtype=np.int64) * step
        if operation.options.get("halfPixelCenters"):
            where = where + step // 2 - 512
        lower = np.maximum(fp.truncated(where, 1024), 0)
        upper = np.minimum(fp.truncated(where + 1023, 1024), size - 1)
        sides.append((lower, upper, where - 1024 * lower))
    (top, bottom, down), (first, last, right) = sides
    down, right = down[None, :, None, None], right[None, None, :, None]
    rows = x[:, top], x[:, bottom]
    total = (
        rows[0][:, :, first] * (1024 - down) * (1024 - right)
        + rows[1][:, :, first] * down * (1024 - right)
        + rows[0][:, :, last] * (1024 - down) * right
        + rows[1][:, :, last] * down * right
    )
    return fp.truncated(total + np.where(total > 0, 1 << 19, -(1 << 19)), 1 << 20).astype(np.int8)


@kernel("RESIZE_NEAREST_NEIGHBOR")
def resize_nearest(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The nearest pixel."""
    flags = {
        "aligned": bool(operation.options.get("alignCorners")),
        "half": bool(operation.options.get("halfPixelCenters")),
    }
    rows, columns = (
        nearest_index(size, int(out), **flags)
        for size, out in zip(arrays[0].shape[1:3], arrays[1], strict=True)
    )
    return np.asarray(arrays[0][:, rows][:, :, columns])
