"""The integer sums of TFLite's weighted operators, exact, on numpy arrays.

Every statement of these operators starts from the same int32 accumulator: inputs less their zero points
times weights, over windows whose pads stand for zero, plus the int32 bias. They differ in how they bring
it to the output's scale. Products of one window position are summed by matrix products in floating point
wide enough to be exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgeopt.targets.tflite.program import Operation, Tensor

FLOAT32_EXACT = 2**24
LARGEST_PRODUCT = 255 * 128

DATA_INPUT = {"TRANSPOSE_CONV": 2}
"""Which input is the data, where it is not the first; the weight is always the second."""


def scale_of(tensor: Tensor | None) -> float:
    """The scale, as the float32 that it is."""
    if tensor is None or tensor.scale is None:
        raise KeyError("the tensor is not quantized")
    return float(tensor.scale[0])


def zero_of(tensor: Tensor | None) -> int:
    """The zero point."""
    return 0 if tensor is None or tensor.zero_point is None else int(tensor.zero_point[0])


def centred(operation: Operation, index: int, array: np.ndarray) -> np.ndarray:
    """An input less its zero point, wide."""
    return np.asarray(array.astype(np.int64) - zero_of(operation.inputs[index]))


def window(operation: Operation, axis: int, kernel: int) -> tuple[int, int, int]:
    """Stride, dilation and the pad before an axis (0 for height, 1 for width)."""
    stride = int(operation.options["strideW" if axis else "strideH"])
    dilation = int(operation.options.get("dilationWFactor" if axis else "dilationHFactor", 1))
    first = operation.inputs[0]
    size = 0 if first is None else first.shape[1 + axis]
    out = operation.outputs[0].shape[1 + axis]
    total = max((out - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return stride, dilation, total // 2 if operation.options["padding"] == 0 else 0


def accumulate(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The accumulator of a weighted operator, in the output's shape, as int64 that fits int32.

    Raises:
        KeyError: The operator has no weights.
    """
    return _SUMS[operation.code](operation, arrays).reshape(operation.outputs[0].shape)


def _taps(operation: Operation, x: np.ndarray, kernel: tuple[int, int]) -> Callable[[int, int], np.ndarray]:
    """Gives, for a position in the window, what lies there for every output: [batch, out h, out w, c]."""
    out = operation.outputs[0].shape[1:3]
    geometry = [window(operation, axis, kernel[axis]) for axis in (0, 1)]
    pads, spans = [], []
    for (stride, dilation, before), size, k, count in zip(geometry, x.shape[1:3], kernel, out, strict=True):
        span = (count - 1) * stride + 1
        pads.append((before, max(span + (k - 1) * dilation - before - size, 0)))
        spans.append(span)
    padded = np.pad(x, ((0, 0), *pads, (0, 0)))

    def tap(row: int, column: int) -> np.ndarray:
        top, left = row * geometry[0][1], column * geometry[1][1]
        return np.asarray(
            padded[:, top : top + spans[0] : geometry[0][0], left : left + spans[1] : geometry[1][0]]
        )

    return tap


def _exact_float(terms: int) -> type[np.floating]:
    """The float type in which a sum of so many products of 8-bit numbers is exact."""
    return np.float32 if terms * LARGEST_PRODUCT < FLOAT32_EXACT else np.float64


def _conv(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    weight = arrays[1]
    channels = weight.shape[3]
    groups = arrays[0].shape[-1] // channels
    kind = _exact_float(channels)
    x = centred(operation, 0, arrays[0]).astype(kind)
    tap = _taps(operation, x, (weight.shape[1], weight.shape[2]))
    each = weight.shape[0] // groups
    shape = operation.outputs[0].shape
    total = np.zeros((groups, int(np.prod(shape[:-1])), each))
    for row in range(weight.shape[1]):
        for column in range(weight.shape[2]):
            here = tap(row, column).reshape(-1, groups, channels).transpose(1, 0, 2)
            matrix = weight[:, row, column].astype(kind).reshape(groups, each, channels).transpose(0, 2, 1)
            total += np.ascontiguousarray(here) @ matrix
    result = total.transpose(1, 0, 2).reshape(shape).astype(np.int64)
    return np.asarray(result + arrays[2].astype(np.int64))


def _depthwise(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    weight = arrays[1].astype(np.int64)[0]
    each = weight.shape[-1] // arrays[0].shape[-1]
    x = np.repeat(centred(operation, 0, arrays[0]), each, axis=-1)
    tap = _taps(operation, x, (weight.shape[0], weight.shape[1]))
    total = np.zeros(operation.outputs[0].shape, np.int64)
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            total += tap(row, column) * weight[row, column]
    return np.asarray(total + arrays[2].astype(np.int64))


def _transpose_conv(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Scatters each input over a window of the output."""
    weight, x = arrays[1].astype(np.int64), centred(operation, 2, arrays[2])
    shape = operation.outputs[0].shape
    strides = [int(operation.options[key]) for key in ("strideH", "strideW")]
    full = [(size - 1) * s + k for size, s, k in zip(x.shape[1:3], strides, weight.shape[1:3], strict=True)]
    wide = np.zeros((shape[0], *full, shape[3]), np.int64)
    for row in range(weight.shape[1]):
        for column in range(weight.shape[2]):
            part = x @ weight[:, row, column].T
            rows = slice(row, row + (x.shape[1] - 1) * strides[0] + 1, strides[0])
            columns = slice(column, column + (x.shape[2] - 1) * strides[1] + 1, strides[1])
            wide[:, rows, columns] += part
    befores = [
        max(whole - size, 0) // 2 if operation.options["padding"] == 0 else 0
        for whole, size in zip(full, shape[1:3], strict=True)
    ]
    total = np.zeros(shape, np.int64)
    cut = wide[:, befores[0] : befores[0] + shape[1], befores[1] : befores[1] + shape[2]]
    total[:, : cut.shape[1], : cut.shape[2]] = cut
    return np.asarray(total + arrays[3].astype(np.int64))


def _fully_connected(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    x, weight = centred(operation, 0, arrays[0]), centred(operation, 1, arrays[1])
    return np.asarray(x.reshape(-1, weight.shape[1]) @ weight.T + arrays[2].astype(np.int64))


def _batch_matmul(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(centred(operation, 0, arrays[0]) @ centred(operation, 1, arrays[1]))


_SUMS: dict[str, Callable[[Operation, Sequence[np.ndarray]], np.ndarray]] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transpose_conv,
    "FULLY_CONNECTED": _fully_connected,
    "BATCH_MATMUL": _batch_matmul,
}
