"""Pooling and resizing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeopt.targets.tflite.emitter import PADDING, Emitter
from edgeopt.targets.tflite.operators.convolution import padded_input, same_pads, spatial_pads
from edgeopt.targets.tflite.operators.table import fixed_channels_last, operator, same_scale
from edgeopt.targets.tflite.program import Tensor, Unsupported
from edgeopt.targets.tflite.steps import Step


def window(step: Step) -> tuple[list[int], list[int], list[tuple[int, int]], list[tuple[int, int]]]:
    """Kernel, strides, pads (with what ceil_mode adds at the end) and SAME's pads of a pooling."""
    if len(step.shape()) != 4:
        raise Unsupported("only pooling over one or two spatial axes has a kernel")
    if any(d != 1 for d in step.attribute("dilations", [1, 1])):
        raise Unsupported("dilated pooling has no kernel", "a pooling without dilations")
    kernel = step.attribute("kernel_shape")
    strides = step.attribute("strides", [1, 1])
    sizes = step.shape()[2:]
    pads = spatial_pads(step, sizes, kernel, strides, [1, 1])
    ends = [
        max(after, (out - 1) * stride + size - n - before)
        for n, out, size, stride, (before, after) in zip(
            sizes, step.result()[2:], kernel, strides, pads, strict=True
        )
    ]
    pads = [(before, end) for (before, _), end in zip(pads, ends, strict=True)]
    # What lies behind the last window is never read: pads that floor drops need not be there.
    pads = [
        (before, min(after, max((out - 1) * stride + size - n - before, 0)))
        for n, out, size, stride, (before, after) in zip(
            sizes, step.result()[2:], kernel, strides, pads, strict=True
        )
    ]
    return kernel, strides, pads, [same_pads(*item) for item in zip(sizes, kernel, strides, strict=True)]


@operator("MaxPool", layout=fixed_channels_last, integer=same_scale, fuses=True)
def max_pool(emitter: Emitter, step: Step) -> None:
    """MAX_POOL_2D."""
    if len(step.outputs) > 1 and step.outputs[1].name:
        raise Unsupported("the positions of the largest elements are not given", "MaxPool with one output")
    kernel, strides, pads, sames = window(step)
    lowest = -128.0 if step.integer else float(np.finfo(np.float32).min)
    source = emitter.read(0)
    if source.dtype not in ("float32", "int8"):
        raise Unsupported(f"pooling is not computed in {source.dtype}")
    if step.integer and source.scale is not None and source.zero_point is not None:
        lowest = float((-128.0 - source.zero_point[0]) * source.scale[0])
    if not step.integer and emitter.never_negative(source):
        lowest = 0.0
    source, padding = padded_input(emitter, source, pads, sames, lowest)
    _pool(emitter, "MAX_POOL_2D", source, padding, kernel, strides)


@operator("AveragePool", layout=fixed_channels_last, integer=same_scale, fuses=True)
def average_pool(emitter: Emitter, step: Step) -> None:
    """AVERAGE_POOL_2D, with a PAD of zeros where these count."""
    kernel, strides, pads, sames = window(step)
    source = emitter.read(0)
    if any(map(any, pads)) and step.attribute("count_include_pad", 0):
        given = spatial_pads(step, step.shape()[2:], kernel, strides, [1, 1])
        if any(after > end for (_, after), (_, end) in zip(pads, given, strict=True)):
            raise Unsupported("with ceil_mode, windows beyond the counted pads have no kernel")
        source, padding = emitter.pad(source, [(0, 0), *pads, (0, 0)]), PADDING["VALID"]
    elif any(map(any, pads)) and pads != sames:
        raise Unsupported("pads that do not count are only possible as SAME makes them")
    else:
        padding = PADDING["SAME" if any(map(any, pads)) else "VALID"]
    _pool(emitter, "AVERAGE_POOL_2D", source, padding, kernel, strides)


def _pool(
    emitter: Emitter, code: str, source: Tensor, padding: int, kernel: list[int], strides: list[int]
) -> None:
    emitter.op(
        code,
        [source],
        [emitter.write()],
        "Pool2DOptions",
        padding=padding,
        filterHeight=kernel[0],
        filterWidth=kernel[1],
        strideH=strides[0],
        strideW=strides[1],
        fusedActivationFunction=emitter.activation(),
    )


def nearest_index(size: int, out: int, *, aligned: bool, half: bool) -> np.ndarray:
    """The input index that RESIZE_NEAREST_NEIGHBOR reads for every output index."""
    scale = (size - 1) / (out - 1) if aligned and out > 1 else size / out
    where = (np.arange(out) + (0.5 if half else 0.0)) * np.float32(scale)
    index = np.floor(where + 0.5) if aligned else np.floor(where)
    return np.asarray(np.clip(index, 0, size - 1), np.int64)


def source_index(step: Step, size: int, out: int, scale: float) -> np.ndarray:
    """The input index, rounded as the node says, that ONNX's nearest Resize reads (Resize-19)."""
    x = np.arange(out, dtype=np.float64)
    mode = step.attribute("coordinate_transformation_mode", "half_pixel")
    if mode == "half_pixel":
        where = (x + 0.5) / scale - 0.5
    elif mode == "pytorch_half_pixel":
        where = (x + 0.5) / scale - 0.5 if out > 1 else np.zeros(1)
    elif mode == "align_corners":
        where = x * (size - 1) / (out - 1) if out > 1 else np.zeros(1)
    elif mode == "asymmetric":
        where = x / scale
    elif mode == "half_pixel_symmetric":
        offset = size / 2 * (1 - out / (size * scale))
        where = offset + (x + 0.5) / scale - 0.5
    else:
        raise Unsupported(f"coordinates by {mode} have no kernel", "half_pixel, align_corners or asymmetric")
    rounding = step.attribute("nearest_mode", "round_prefer_floor")
    index = {
        "round_prefer_floor": np.ceil(where - 0.5),
        "round_prefer_ceil": np.floor(where + 0.5),
        "floor": np.floor(where),
        "ceil": np.ceil(where),
    }[rounding]
    return np.asarray(np.clip(index, 0, size - 1), np.int64)


def same_ratio(coordinates: str, scales: Sequence[float], sizes: Sequence[int], outs: Sequence[int]) -> bool:
    """Whether RESIZE_BILINEAR, which knows sizes only, reads the coordinates that ONNX's Resize wants."""
    whole = all(
        abs(scale - out / size) * size < 1e-4 for scale, size, out in zip(scales, sizes, outs, strict=True)
    )
    if not whole:
        return False
    if coordinates == "pytorch_half_pixel":
        return min(outs) > 1
    if coordinates == "align_corners":
        return min(outs) > 1 or tuple(outs) == tuple(sizes)
    return coordinates in ("half_pixel", "asymmetric", "half_pixel_symmetric")


@operator("Resize", layout=fixed_channels_last, integer=same_scale)
def resize(emitter: Emitter, step: Step) -> None:
    """RESIZE_BILINEAR or RESIZE_NEAREST_NEIGHBOR; any other nearest Resize as GATHER per axis."""
    shape, result = step.shape(), step.result()
    if len(shape) != 4 or shape[:2] != result[:2]:
        raise Unsupported("only the last two of four axes can be resized")
    mode = step.attribute("mode", "nearest")
    scales = step.array(2)
    if scales is not None and scales.size == 0:
        scales = None
    if scales is not None and step.attribute("axes") is not None:
        whole = np.ones(4)
        whole[step.attribute("axes")] = scales
        scales = whole
    by_size = [out / size for size, out in zip(shape[2:], result[2:], strict=True)]
    factors = by_size if scales is None else [float(f) for f in scales.reshape(-1)[2:]]
    if mode == "nearest":
        _nearest(emitter, step, factors)
        return
    if mode != "linear":
        raise Unsupported(f"resizing by {mode} has no kernel", "linear or nearest")
    if step.attribute("antialias", 0):
        raise Unsupported("resizing with antialias has no kernel", "antialias=0")
    coordinates = step.attribute("coordinate_transformation_mode", "half_pixel")
    if not same_ratio(coordinates, factors, shape[2:], result[2:]):
        raise Unsupported(
            f"coordinates by {coordinates} with these sizes have no kernel", "half_pixel, whole sizes"
        )
    emitter.op(
        "RESIZE_BILINEAR",
        [emitter.read(0), emitter.shape(result[2:], "size")],
        [emitter.write()],
        "ResizeBilinearOptions",
        alignCorners=coordinates == "align_corners",
        halfPixelCenters=coordinates in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"),
    )


def _nearest(emitter: Emitter, step: Step, factors: list[float]) -> None:
    sizes, outs = step.shape()[2:], step.result()[2:]
    wanted = [source_index(step, *item) for item in zip(sizes, outs, factors, strict=True)]
    source, target = emitter.read(0), emitter.write()
    for aligned, half in ((False, False), (False, True), (True, False)):
        have = [nearest_index(n, out, aligned=aligned, half=half) for n, out in zip(sizes, outs, strict=True)]
        if all(map(np.array_equal, have, wanted)):
            emitter.op(
                "RESIZE_NEAREST_NEIGHBOR",
                [source, emitter.shape(outs, "size")],
                [target],
                "ResizeNearestNeighborOptions",
                alignCorners=aligned,
                halfPixelCenters=half,
            )
            return
    first = emitter.like(target, (target.shape[0], outs[0], sizes[1], target.shape[3]), "rows")
    emitter.op("GATHER", [source, emitter.shape(wanted[0], "rows")], [first], "GatherOptions", axis=1)
    emitter.op("GATHER", [first, emitter.shape(wanted[1], "columns")], [target], "GatherOptions", axis=2)
