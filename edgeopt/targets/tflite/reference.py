"""Our statement, in numpy, of what TFLite's int8 operators compute.

After the TensorFlow Lite 8-bit quantization specification
(https://ai.google.dev/edge/litert/models/quantization_spec) and its reference kernels. Each function
takes an operation with the arrays of its inputs and returns the array of its first output. The tests
hold these against LiteRT's reference kernels bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgeopt.targets.tflite import fixed_point as fp
from edgeopt.targets.tflite import floats
from edgeopt.targets.tflite.program import Operation, Program, Tensor
from edgeopt.targets.tflite.sums import DATA_INPUT, accumulate, centred, scale_of, window, zero_of

Kernel = Callable[[Operation, Sequence[np.ndarray]], np.ndarray]
KERNELS: dict[str, Kernel] = {}


def kernel(*codes: str) -> Callable[[Kernel], Kernel]:
    """Registers the statement of one or several operators."""

    def register(function: Kernel) -> Kernel:
        KERNELS.update(dict.fromkeys(codes, function))
        return function

    return register


def execute(
    program: Program, feeds: Mapping[str, np.ndarray], kernels: Mapping[str, Kernel] = KERNELS
) -> dict[str, np.ndarray]:
    """Runs a whole program.

    Args:
        program: The program; all its operators must be stated in ``kernels``, or be in ``floats``.
        feeds: The inputs, by the names of their tensors.
        kernels: The statements: these, those of ``exact`` or those of ``xnnpack``.

    Returns:
        Every computed tensor by its name.

    Raises:
        KeyError: An operator is not stated, or an input is missing.
    """
    values: dict[str, np.ndarray] = {tensor.name: feeds[tensor.name] for tensor in program.inputs}
    for operation in program.operations:
        arrays = [
            np.zeros(0) if t is None else t.data if t.data is not None else values[t.name]
            for t in operation.inputs
        ]
        if operation.code == "SPLIT":
            axis = int(np.asarray(arrays[0]).reshape(-1)[0])
            parts = np.split(arrays[1], len(operation.outputs), axis=axis)
            values.update((tensor.name, part) for tensor, part in zip(operation.outputs, parts, strict=True))
            continue
        is_float = operation.outputs[0].dtype == "float32" and operation.code in floats.FUNCTIONS
        made = floats.compute(operation, arrays) if is_float else kernels[operation.code](operation, arrays)
        values[operation.outputs[0].name] = made
    return values


# ---- parameters


def bounds(operation: Operation) -> tuple[int, int]:
    """The output's range, narrowed by the fused activation or by what the operator itself clips."""
    kind = operation.options.get("fusedActivationFunction", 0)
    kind = {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}.get(operation.code, kind)
    output = operation.outputs[0]
    low, high = {0: (None, None), 1: (0.0, None), 2: (-1.0, 1.0), 3: (0.0, 6.0)}[kind]

    def quantized(value: float) -> int:
        ratio = np.float32(value) / np.float32(scale_of(output))
        return zero_of(output) + math.floor(abs(float(ratio)) + 0.5) * (1 if value >= 0 else -1)

    return (
        -128 if low is None else max(-128, quantized(low)),
        127 if high is None else min(127, quantized(high)),
    )


def finish(operation: Operation, accumulator: np.ndarray) -> np.ndarray:
    """Adds the output's zero point and clips."""
    low, high = bounds(operation)
    return np.asarray(np.clip(accumulator + zero_of(operation.outputs[0]), low, high).astype(np.int8))


def requantize(operation: Operation, accumulator: np.ndarray, factors: Sequence[float]) -> np.ndarray:
    """Brings an accumulator to the output's scale, by one factor or one per channel (last axis)."""
    parts = [fp.quantize_multiplier(factor) for factor in factors]
    multiplier = np.array([part[0] for part in parts], np.int64)
    shift = np.array([part[1] for part in parts], np.int64)
    return finish(operation, fp.multiply(accumulator, multiplier, shift))


def channel_factors(operation: Operation, index: int = 0) -> list[float]:
    """input scale · weight scale / output scale, per channel, in double precision."""
    weight = operation.inputs[1]
    if weight is None or weight.scale is None:
        raise KeyError("the weight is not quantized")
    given, made = scale_of(operation.inputs[index]), scale_of(operation.outputs[0])
    return [given * float(scale) / made for scale in weight.scale]


# ---- convolutions and matrices


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


@kernel("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
def conv(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Sums in int32 over windows, pads standing for zero."""
    factors = channel_factors(operation, DATA_INPUT.get(operation.code, 0))
    return requantize(operation, accumulate(operation, arrays), factors)


@kernel("FULLY_CONNECTED")
def fully_connected(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """A matrix product, rounded once; with one weight scale its product with the input's is a float32."""
    accumulator = accumulate(operation, arrays)
    tensor, output = operation.inputs[1], operation.outputs[0]
    factors = channel_factors(operation)
    if tensor is not None and tensor.scale is not None and tensor.scale.size == 1:
        product = np.float32(scale_of(operation.inputs[0])) * np.float32(tensor.scale[0])
        factors = [float(product) / scale_of(output)]
    parts = [fp.quantize_multiplier(factor) for factor in factors]
    multiplier = np.array([part[0] for part in parts], np.int64)
    shift = np.array([part[1] for part in parts], np.int64)
    return finish(operation, fp.multiply_once(accumulator, multiplier, shift))


@kernel("BATCH_MATMUL")
def batch_matmul(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """A product of two computed matrices."""
    accumulator = accumulate(operation, arrays)
    product = np.float32(scale_of(operation.inputs[0])) * np.float32(scale_of(operation.inputs[1]))
    return requantize(operation, accumulator, [float(product) / scale_of(operation.outputs[0])])


# ---- elementwise


@kernel("ADD", "SUB")
def add(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Both inputs to 20 more bits at twice the larger scale, summed, then to the output's scale."""
    scales = [scale_of(operation.inputs[0]), scale_of(operation.inputs[1])]
    twice = 2 * max(scales)
    terms = []
    for index, scale in enumerate(scales):
        multiplier, shift = fp.quantize_multiplier(scale / twice)
        wide = centred(operation, index, arrays[index]) << 20
        terms.append(fp.rounding_shift(fp.doubling_high_multiply(wide, multiplier), -shift))
    total = terms[0] + terms[1] if operation.code == "ADD" else terms[0] - terms[1]
    multiplier, shift = fp.quantize_multiplier(twice / ((1 << 20) * scale_of(operation.outputs[0])))
    return finish(operation, fp.rounding_shift(fp.doubling_high_multiply(total, multiplier), -shift))


@kernel("MUL")
def mul(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The product of the integers, by the scales' quotient in float32."""
    product = centred(operation, 0, arrays[0]) * centred(operation, 1, arrays[1])
    return requantize(operation, product, [_float32_factor(operation, operation.inputs[:2])])


def _float32_factor(operation: Operation, inputs: Sequence[Tensor | None], more: float = 1.0) -> float:
    factor = np.float32(more)
    for tensor in inputs:
        factor = np.float32(factor * np.float32(scale_of(tensor)))
    return float(np.float32(factor / np.float32(scale_of(operation.outputs[0]))))


@kernel("MAXIMUM", "MINIMUM")
def extremum(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Of integers that share a scale."""
    pick = np.maximum if operation.code == "MAXIMUM" else np.minimum
    return np.asarray(pick(arrays[0], arrays[1]))


@kernel("RELU", "RELU6", "RELU_N1_TO_1")
def relu(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """To the output's scale, then clipped."""
    return requantize(
        operation, centred(operation, 0, arrays[0]), [_float32_factor(operation, operation.inputs[:1])]
    )


@kernel("LEAKY_RELU")
def leaky_relu(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """A factor of its own for negative numbers."""
    x = centred(operation, 0, arrays[0])
    alpha = float(np.float32(operation.options["alpha"]))
    straight = _float32_factor(operation, operation.inputs[:1])
    sloped = float(
        np.float32(np.float32(scale_of(operation.inputs[0])) * np.float32(alpha))
        / np.float32(scale_of(operation.outputs[0]))
    )
    return np.where(x >= 0, requantize(operation, x, [straight]), requantize(operation, x, [sloped]))


@kernel("PRELU")
def prelu(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """As LEAKY_RELU, with quantized slopes."""
    x = centred(operation, 0, arrays[0])
    sloped = x * centred(operation, 1, arrays[1])
    straight = _float32_factor(operation, operation.inputs[:1])
    return np.where(
        x >= 0,
        requantize(operation, x, [straight]),
        requantize(operation, sloped, [_float32_factor(operation, operation.inputs[:2])]),
    )


@kernel("HARD_SWISH")
def hard_swish(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """x · relu6(x + 3) / 6 in 16-bit fixed point."""
    wide = centred(operation, 0, arrays[0]) << 7
    fine = np.float32(1 / 128) * np.float32(scale_of(operation.inputs[0]))
    out, out_shift = fp.quantize_multiplier(float(fine / np.float32(scale_of(operation.outputs[0]))))
    gate, gate_shift = fp.quantize_multiplier(float(fine / np.float32(3.0 / 32768.0)))

    def narrow(multiplier: int) -> int:
        return 32767 if multiplier >= fp.INT32_MAX - (1 << 15) else (multiplier + (1 << 15)) >> 16

    def left(x: np.ndarray, by: int) -> np.ndarray:
        return np.asarray(np.clip(x << by, -32768, 32767))

    value = fp.doubling_high_multiply(wide, narrow(out), bits=16)
    reluish = left(wide, gate_shift - 1) if gate_shift > 0 else wide
    reluish = fp.doubling_high_multiply(reluish, narrow(gate), bits=16)
    if gate_shift > 0:
        reluish = left(reluish, 1)
    elif gate_shift < 0:
        reluish = fp.rounding_shift(reluish, -gate_shift)
    reluish = (reluish + (1 << 15)) >> 1
    product = fp.truncated(reluish * value, 1 << 15)
    return finish(operation, fp.rounding_shift(product, -out_shift))


def _by_table(
    operation: Operation, array: np.ndarray, function: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """A function tabulated over all 256 inputs, in float32."""
    tensor, output = operation.inputs[0], operation.outputs[0]
    inputs = (np.arange(-128, 128) - zero_of(tensor)).astype(np.float32) * np.float32(scale_of(tensor))
    real = function(inputs).astype(np.float32) * np.float32(1 / np.float32(scale_of(output)))
    table = np.clip(_away(real) + zero_of(output), -128, 127).astype(np.int8)
    return np.asarray(table[array.astype(np.int64) + 128])


def _away(real: np.ndarray) -> np.ndarray:
    """Rounds half away from zero."""
    return np.asarray(np.trunc(real + np.copysign(np.float32(0.5), real)))


@kernel("LOGISTIC")
def logistic(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """By table."""
    return _by_table(operation, arrays[0], lambda x: 1.0 / (1.0 + np.exp(-x)))


@kernel("TANH")
def tanh(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """By table."""
    return _by_table(operation, arrays[0], np.tanh)


@kernel("SOFTMAX")
def softmax(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Exponentials of differences from the row's largest, in fixed point with 5 integer bits."""
    real = min(scale_of(operation.inputs[0]) * float(operation.options.get("beta", 1.0)) * 2**26, 2.0**31 - 1)
    multiplier, shift = fp.quantize_multiplier(real)
    smallest = -math.floor(31 * 2**26 / 2**shift)
    rows = arrays[0].reshape(-1, arrays[0].shape[-1]).astype(np.int64)
    result = np.empty(rows.shape, np.int8)
    for number, row in enumerate(rows):
        difference = row - row.max()
        live = difference >= smallest
        scaled = fp.doubling_high_multiply(np.where(live, difference, 0) << shift, multiplier)
        exponentials = fp.exp_of_negative(scaled, 5)
        total = int(np.where(live, fp.rounding_shift(exponentials, 12), 0).sum())
        inverse, over = fp.reciprocal(total, 12)
        shares = fp.rounding_shift(fp.doubling_high_multiply(exponentials, inverse), over + 31 - 8)
        result[number] = np.where(live, np.clip(shares - 128, -128, 127), -128)
    return result.reshape(arrays[0].shape)


# ---- reductions and pooling


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


# ---- quantization and moves


@kernel("QUANTIZE")
def quantize(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """From float, rounded half away from zero, or from another scale."""
    if arrays[0].dtype == np.int8:
        factor = scale_of(operation.inputs[0]) / scale_of(operation.outputs[0])
        return requantize(operation, centred(operation, 0, arrays[0]), [factor])
    real = arrays[0].astype(np.float32) / np.float32(scale_of(operation.outputs[0]))
    return finish(operation, _away(real).astype(np.int64))


@kernel("DEQUANTIZE")
def dequantize(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """scale · (q - zero point)."""
    centre = centred(operation, 0, arrays[0]).astype(np.float32)
    return np.asarray(centre * np.float32(scale_of(operation.inputs[0])), np.float32)


@kernel("RESHAPE")
def reshape(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The same numbers."""
    return arrays[0].reshape(operation.outputs[0].shape)


@kernel("CONCATENATION")
def concatenate(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The same numbers: all share a scale."""
    return np.concatenate(list(arrays), axis=int(operation.options["axis"]))


@kernel("PAD", "PADV2")
def pad(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """PAD fills with the zero point."""
    fill = int(arrays[2].reshape(-1)[0]) if operation.code == "PADV2" else zero_of(operation.inputs[0])
    return np.pad(arrays[0], arrays[1].tolist(), constant_values=fill)


@kernel("SLICE")
def slice_(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """From where on, and how many."""
    where = tuple(slice(int(b), int(b + s)) for b, s in zip(arrays[1], arrays[2], strict=True))
    return np.asarray(arrays[0][where])


@kernel("STRIDED_SLICE")
def strided_slice(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """With steps; a masked end reaches the last element."""
    mask = int(operation.options.get("endMask", 0))
    where = tuple(
        slice(int(begin), None if mask >> axis & 1 else int(end), int(step))
        for axis, (begin, end, step) in enumerate(zip(*arrays[1:4], strict=True))
    )
    return np.asarray(arrays[0][where])


@kernel("TRANSPOSE")
def transpose(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The same numbers in another order."""
    return arrays[0].transpose(arrays[1].tolist())


@kernel("GATHER")
def gather(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Chosen entries of one axis."""
    return np.take(arrays[0], arrays[1], axis=int(operation.options["axis"]))


@kernel("RESIZE_NEAREST_NEIGHBOR")
def resize_nearest(operation: Operation, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The nearest pixel."""
    from edgeopt.targets.tflite.operators.pooling import nearest_index

    flags = {
        "aligned": bool(operation.options.get("alignCorners")),
        "half": bool(operation.options.get("halfPixelCenters")),
    }
    rows, columns = (
        nearest_index(size, int(out), **flags)
        for size, out in zip(arrays[0].shape[1:3], arrays[1], strict=True)
    )
    return np.asarray(arrays[0][:, rows][:, :, columns])
