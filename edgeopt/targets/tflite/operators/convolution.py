"""Convolutions, transposed convolutions and fully connected layers."""

from __future__ import annotations

import numpy as np

from edgeopt.graph.layout import Choice, Layout, identity, shape_of
from edgeopt.targets.tflite.emitter import PADDING, Emitter
from edgeopt.targets.tflite.operators.table import fixed_channels_last, in_order, int8, operator
from edgeopt.targets.tflite.program import Tensor, Unsupported
from edgeopt.targets.tflite.steps import Constant, Step, parameters


def same_pads(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """What TFLite's SAME pads before and after an axis; VALID pads nothing."""
    out = -(-size // stride)
    total = max((out - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def spatial_pads(
    step: Step, sizes: tuple[int, ...], kernel: list[int], strides: list[int], dilations: list[int]
) -> list[tuple[int, int]]:
    """The pads of a convolution or pooling per spatial axis, ``auto_pad`` resolved."""
    rank = len(kernel)
    auto = step.attribute("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = [same_pads(*item) for item in zip(sizes, kernel, strides, dilations, strict=True)]
        return pads if auto == "SAME_UPPER" else [(after, before) for before, after in pads]
    if auto == "VALID":
        return [(0, 0)] * rank
    flat = step.attribute("pads", [0] * (2 * rank))
    return list(zip(flat[:rank], flat[rank:], strict=True))


def padded_input(
    emitter: Emitter,
    source: Tensor,
    pads: list[tuple[int, int]],
    sames: list[tuple[int, int]],
    value: float = 0.0,
) -> tuple[Tensor, int]:
    """The input, padded by an operation of its own unless SAME or VALID does it, and that padding."""
    if pads == sames and any(map(any, pads)):
        return source, PADDING["SAME"]
    return emitter.pad(source, [(0, 0), *pads, (0, 0)], value), PADDING["VALID"]


@operator("Conv", layout=fixed_channels_last, integer=int8, fuses=True)
def conv(emitter: Emitter, step: Step) -> None:
    """CONV_2D, or DEPTHWISE_CONV_2D where every group has one input channel."""
    known = step.constant(1)
    if len(step.shape()) != 4:
        raise Unsupported("only convolutions over one or two spatial axes have a kernel")
    if known is None:
        raise Unsupported("its weight is computed at run time")
    weight = known.data
    kernel = list(weight.shape[2:])
    strides = step.attribute("strides", [1, 1])
    dilations = step.attribute("dilations", [1, 1])
    group = step.attribute("group", 1)
    sizes = step.shape()[2:]
    pads = spatial_pads(step, sizes, kernel, strides, dilations)
    sames = [same_pads(*item) for item in zip(sizes, kernel, strides, dilations, strict=True)]
    if min(min(pair) for pair in pads) < 0:
        raise Unsupported("negative pads are not supported")
    source, padding = padded_input(emitter, emitter.read(0), pads, sames)
    options = {
        "padding": padding,
        "strideH": strides[0],
        "strideW": strides[1],
        "dilationHFactor": dilations[0],
        "dilationWFactor": dilations[1],
        "fusedActivationFunction": emitter.activation(),
    }
    out, per_group = weight.shape[:2]
    name = _name(step, 1)
    if per_group == 1 and group > 1:
        data = weight.reshape(out, *kernel).transpose(1, 2, 0)[None]
        tensor = emitter.weight(name, data, known, axis=3)
        bias = bias_of(emitter, step, out, known)
        emitter.op(
            "DEPTHWISE_CONV_2D",
            [source, tensor, bias],
            [emitter.write()],
            "DepthwiseConv2DOptions",
            depthMultiplier=out // group,
            **options,
        )
        return
    tensor = emitter.weight(name, weight.transpose(0, 2, 3, 1), known, axis=0)
    bias = bias_of(emitter, step, out, known)
    emitter.op("CONV_2D", [source, tensor, bias], [emitter.write()], "Conv2DOptions", **options)


@operator("ConvTranspose", layout=fixed_channels_last, integer=int8, fuses=True)
def conv_transpose(emitter: Emitter, step: Step) -> None:
    """TRANSPOSE_CONV, and a SLICE where the pads are not those of SAME or VALID."""
    known = step.constant(1)
    if len(step.shape()) != 4:
        raise Unsupported("only transposed convolutions over one or two spatial axes have a kernel")
    if known is None:
        raise Unsupported("its weight is computed at run time")
    if step.attribute("group", 1) != 1:
        raise Unsupported("grouped transposed convolution has no kernel", "one group")
    weight = known.data
    strides = step.attribute("strides", [1, 1])
    dilations = step.attribute("dilations", [1, 1])
    if dilations != [1, 1]:
        weight = _dilated(weight, dilations, known)
    kernel = list(weight.shape[2:])
    sizes, outs = step.shape()[2:], step.result()[2:]
    begins = transposed_begins(step, sizes, outs, kernel, strides)
    full = [(n - 1) * s + k for n, s, k in zip(sizes, strides, kernel, strict=True)]
    sames = [
        (-(-out // s) == n, max((n - 1) * s + k - out, 0) // 2)
        for n, s, k, out in zip(sizes, strides, kernel, outs, strict=True)
    ]
    channels = weight.shape[1]
    tensor = emitter.weight(_name(step, 1), weight.transpose(1, 2, 3, 0), known, axis=0)
    bias = bias_of(emitter, step, channels, known)
    target = emitter.write()
    options = {
        "strideH": strides[0],
        "strideW": strides[1],
        "fusedActivationFunction": emitter.activation(),
    }
    if begins == [0, 0] and all(out >= size for out, size in zip(outs, full, strict=True)):
        made, padding = target, "VALID"
    elif all(fits and begin == before for (fits, before), begin in zip(sames, begins, strict=True)):
        made, padding = target, "SAME"
    else:
        whole = [max(size, begin + out) for size, begin, out in zip(full, begins, outs, strict=True)]
        made, padding = emitter.like(target, (target.shape[0], *whole, channels), "full"), "VALID"
    emitter.op(
        "TRANSPOSE_CONV",
        [emitter.shape(made.shape), tensor, emitter.read(0), bias],
        [made],
        "TransposeConvOptions",
        padding=PADDING[padding],
        **options,
    )
    if made is not target:
        emitter.slice(made, [0, *begins, 0], target)


def transposed_begins(
    step: Step, sizes: tuple[int, ...], outs: tuple[int, ...], kernel: list[int], strides: list[int]
) -> list[int]:
    """How much of the full output a transposed convolution crops before each spatial axis."""
    rank = len(kernel)
    extra = step.attribute("output_padding", [0] * rank)
    auto = step.attribute("auto_pad", "NOTSET")
    if "output_shape" in step.node.attributes or auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((n - 1) * s + k + e - out, 0)
            for n, s, k, e, out in zip(sizes, strides, kernel, extra, outs, strict=True)
        ]
        return [t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in totals]
    return list(step.attribute("pads", [0] * (2 * rank))[:rank])


def _dilated(weight: np.ndarray, dilations: list[int], known: Constant) -> np.ndarray:
    """The weight of a dilated convolution with its zeros written out."""
    kernel = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    spread = np.zeros((*weight.shape[:2], *kernel), weight.dtype)
    if known.zero_point is not None and np.any(known.zero_point):
        raise Unsupported("its weight has a zero point", "symmetric weights")
    spread[:, :, :: dilations[0], :: dilations[1]] = weight
    return spread


def fully_connected_layout(step: Step, is_input: bool, index: int, layout: Layout) -> Choice | None:
    """Any layout whose last axis is the last; the bias and weight are parameters.

    A product of two computed values, or with a stack of matrices, has the layout of the model.
    """
    rank = len(step.shape())
    known = step.constant(1)
    if known is None or known.data.ndim != 2 or step.constant(0) is not None:
        every = tuple(None if value is None else identity(len(shape_of(value))) for value in step.inputs)
        return Choice(every, (identity(rank),))
    rest = (None,) * (len(step.inputs) - 1)
    if (is_input and index > 0) or len(layout) != rank or rank < 1 or layout[-1] != rank - 1:
        return Choice((identity(rank), *rest), (identity(rank),))
    return Choice((layout, *rest), (layout,))


@operator("Gemm", layout=in_order, integer=int8, fuses=True)
def gemm(emitter: Emitter, step: Step) -> None:
    """FULLY_CONNECTED."""
    if step.attribute("alpha", 1.0) != 1.0 or step.attribute("beta", 1.0) != 1.0:
        raise Unsupported(
            "alpha and beta other than 1 are not supported", "fold them into the weight and bias"
        )
    if step.attribute("transA", 0):
        raise Unsupported("a transposed first input is not supported", "a Transpose before it")
    known = step.constant(1)
    if known is None:
        raise Unsupported("its weight is computed at run time", "MatMul and Add")
    transposed = bool(step.attribute("transB", 0))
    fully_connected(emitter, step, known, transposed)


@operator("MatMul", layout=fully_connected_layout, integer=int8, fuses=True)
def matmul(emitter: Emitter, step: Step) -> None:
    """FULLY_CONNECTED with a constant matrix, else BATCH_MATMUL."""
    known = step.constant(1)
    if known is not None and known.data.ndim == 2 and len(step.shape()) >= 2 and step.constant(0) is None:
        fully_connected(emitter, step, known, transposed=False)
        return
    if step.activation or len(step.inputs) > 2:
        raise Unsupported("a matrix product of two computed values takes in no bias or activation")
    if min(len(step.shape(0)), len(step.shape(1))) < 2:
        raise Unsupported("a matrix product with a vector", "an Unsqueeze before it")
    inputs: list[Tensor | None] = []
    for index in (0, 1):
        fixed, value = step.constant(index), step.inputs[index]
        if value is None:
            raise Unsupported(f"input {index} is missing")
        if fixed is None:
            inputs.append(emitter.value(value, identity(len(shape_of(value)))))
        else:
            inputs.append(emitter.weight(value.name or "matrix", fixed.data, fixed))
    emitter.op("BATCH_MATMUL", inputs, [emitter.write()], "BatchMatMulOptions", adjX=False, adjY=False)


def fully_connected(emitter: Emitter, step: Step, known: Constant, transposed: bool) -> None:
    """Writes FULLY_CONNECTED; the weight is stored as [out, in]."""
    weight = known.data if transposed else known.data.T
    if known.scale is not None and known.scale.size > 1 and known.axis != (0 if transposed else 1):
        raise Unsupported("its weight has a scale per input channel", "one per output channel")
    tensor = emitter.weight(_name(step, 1), weight, known, axis=0)
    emitter.op(
        "FULLY_CONNECTED",
        [emitter.read(0), tensor, bias_of(emitter, step, weight.shape[0], known)],
        [emitter.write()],
        "FullyConnectedOptions",
        fusedActivationFunction=emitter.activation(),
        keepNumDims=len(step.shape()) > 2,
    )


def bias_of(emitter: Emitter, step: Step, channels: int, weight: Constant) -> Tensor:
    """The bias as a vector; zeros where there is none, since the fast kernels want one."""
    known = step.constant(2)
    if step.input(2) is not None and known is None:
        raise Unsupported("its bias is computed at run time", "an Add after it")
    if known is None:
        known = zero_bias(step, channels, weight)
    data = known.data.reshape(-1)
    if data.size == 1 and channels > 1:
        data = np.full(channels, data[0], data.dtype)
    return emitter.weight(_name(step, 2) if step.input(2) is not None else f"{step.name}/bias", data, known)


def zero_bias(step: Step, channels: int, weight: Constant) -> Constant:
    """A bias of zeros, int32 at the product of the scales where the step runs in integers."""
    given = parameters(step.inputs[0])
    if not step.integer or weight.scale is None or given is None:
        return Constant(np.zeros(channels, np.float32))
    scale = np.float32(given.scale) * weight.scale.reshape(-1)
    return Constant(np.zeros(channels, np.int32), scale, np.zeros(scale.shape, np.int64))


def _name(step: Step, index: int) -> str:
    value = step.input(index)
    return (value.name if value is not None else None) or f"{step.name}/{index}"
