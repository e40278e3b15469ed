"""Operators that move data without changing it."""

from __future__ import annotations

import numpy as np

from edgeopt.graph.layout import Choice, Layout, after_reshape, channels_last, identity
from edgeopt.targets.tflite.emitter import Emitter
from edgeopt.targets.tflite.operators.table import (
    all_same_scale,
    first_only,
    in_order,
    operator,
    same,
    same_scale,
)
from edgeopt.targets.tflite.program import Tensor, Unsupported
from edgeopt.targets.tflite.steps import Step


def reshape_layout(step: Step, is_input: bool, index: int, layout: Layout) -> Choice | None:
    """What a reshape needs not move; in the order of the axes it is always possible."""
    before, after = step.shape(), step.result()
    rest = (None,) * (len(step.inputs) - 1)
    other: Layout | None = None
    if is_input and index == 0:
        other = after_reshape(before, after, layout)
        if other is not None:
            return Choice((layout, *rest), (other,))
    elif not is_input:
        other = after_reshape(after, before, layout)
        if other is not None:
            return Choice((other, *rest), (layout,))
    return Choice((identity(len(before)), *rest), (identity(len(after)),))


@operator("Reshape", "Flatten", "Squeeze", "Unsqueeze", layout=reshape_layout, integer=same_scale)
def reshape(emitter: Emitter, step: Step) -> None:
    """RESHAPE; nothing where memory already has that shape."""
    source, target = emitter.read(0), emitter.write()
    if source.shape == target.shape:
        emitter.define(step.outputs[0], source, emitter.choice.outputs[0])
    else:
        emitter.reshape(source, target)


def transpose_layout(step: Step, is_input: bool, index: int, layout: Layout) -> Choice | None:
    """A transpose only renames axes: output axis j is input axis perm[j]."""
    rank = len(step.result())
    order = step.attribute("perm", list(reversed(range(rank))))
    if len(layout) != rank:
        return None
    if is_input:
        return Choice((layout,), (tuple(order.index(axis) for axis in layout),))
    return Choice((tuple(order[axis] for axis in layout),), (layout,))


@operator("Transpose", layout=transpose_layout, integer=same_scale)
def transpose(emitter: Emitter, step: Step) -> None:
    """Nothing: the layout that the output is left in says it; readers transpose where they must."""
    emitter.define(step.outputs[0], emitter.read(0), emitter.choice.outputs[0])


@operator("Identity", "Dropout", layout=first_only, integer=same_scale)
def alias(emitter: Emitter, step: Step) -> None:
    """Nothing."""
    training = step.array(2) if step.op_type == "Dropout" else None
    if training is not None and training.any():
        ratio = step.array(1)
        if ratio is None or ratio.any():
            raise Unsupported("it drops at random, as in training", "a model exported for inference")
    if len(step.outputs) > 1:
        raise Unsupported("the mask of a Dropout in training is not given", "a model exported for inference")
    emitter.define(step.outputs[0], emitter.read(0), emitter.choice.outputs[0])


@operator("Concat", layout=same, integer=all_same_scale)
def concat(emitter: Emitter, step: Step) -> None:
    """CONCATENATION."""
    inputs: list[Tensor | None] = [emitter.read(index) for index in range(len(step.inputs))]
    axis = emitter.choice.outputs[0].index(step.attribute("axis") % len(step.result()))
    emitter.op(
        "CONCATENATION",
        inputs,
        [emitter.write()],
        "ConcatenationOptions",
        axis=axis,
        fusedActivationFunction=0,
    )


@operator("Split", layout=first_only, integer=same_scale)
def split(emitter: Emitter, step: Step) -> None:
    """SPLIT into equal parts, else SPLIT_V."""
    axis = step.attribute("axis", 0) % len(step.shape())
    sizes = [step.result(index)[axis] for index in range(len(step.outputs))]
    where = emitter.shape(emitter.axis(axis), "axis")
    source = emitter.read(0)
    targets = [emitter.write(index) for index in range(len(step.outputs))]
    if len(set(sizes)) == 1:
        emitter.op("SPLIT", [where, source], targets, "SplitOptions", numSplits=len(sizes))
        return
    parts = emitter.shape(sizes, "sizes")
    emitter.op("SPLIT_V", [source, parts, where], targets, "SplitVOptions", numSplits=len(sizes))


@operator("Slice", layout=first_only, integer=same_scale)
def slice_(emitter: Emitter, step: Step) -> None:
    """SLICE, or STRIDED_SLICE for steps other than one."""
    shape = step.shape()
    starts, ends = step.ints(1, "starts"), step.ints(2, "ends")
    axes, strides = step.ints(3, "axes"), step.ints(4)
    if starts is None or ends is None or _computed(step, 3) or _computed(step, 4):
        raise Unsupported("its bounds are computed at run time", "constant bounds")
    axes = list(range(len(starts))) if axes is None else axes
    strides = [1] * len(starts) if strides is None else strides
    layout = emitter.layout()
    begin, end, stride = [0] * len(shape), list(shape), [1] * len(shape)
    for start, stop, axis, by in zip(starts, ends, axes, strides, strict=True):
        first, last, by = slice(start, stop, by).indices(shape[axis])
        begin[axis], end[axis], stride[axis] = first, last, by
    source, target = emitter.read(0), emitter.write()
    if all(by == 1 for by in stride):
        emitter.slice(source, [begin[axis] for axis in layout], target)
        return
    if len(shape) > 5:
        raise Unsupported("a slice with steps has a kernel for up to five axes")
    # An end of -1 with a negative step means "to the first element, inclusive": only the mask says so.
    mask = sum(1 << k for k, axis in enumerate(layout) if end[axis] < 0)
    emitter.op(
        "STRIDED_SLICE",
        [
            source,
            *(emitter.shape([item[axis] for axis in layout], "bounds") for item in (begin, end, stride)),
        ],
        [target],
        "StridedSliceOptions",
        endMask=mask,
    )


@operator("Pad", layout=first_only, integer=same_scale)
def pad(emitter: Emitter, step: Step) -> None:
    """PAD, PADV2, MIRROR_PAD, or a GATHER per axis for the other modes."""
    shape = step.shape()
    amounts = step.ints(1, "pads")
    if amounts is None or _computed(step, 2) or _computed(step, 3):
        raise Unsupported("its pads are computed at run time", "constant pads")
    axes = step.ints(3)
    axes = list(range(len(shape))) if axes is None else [axis % len(shape) for axis in axes]
    pairs = [(0, 0)] * len(shape)
    for index, axis in enumerate(axes):
        pairs[axis] = (amounts[index], amounts[index + len(axes)])
    mode = step.attribute("mode", "constant")
    value = step.array(2)
    fill = float(value.reshape(-1)[0]) if value is not None and value.size else step.attribute("value", 0.0)
    layout = emitter.layout()
    source, target = emitter.read(0), emitter.write()
    if source.dtype not in ("float32", "int32", "int64", "int8"):
        raise Unsupported(f"padding is not computed in {source.dtype}")
    crop = [(min(before, 0), min(after, 0)) for before, after in pairs]
    if any(map(any, crop)):
        kept = tuple(size + sum(cut) for size, cut in zip(shape, crop, strict=True))
        inner = emitter.like(target, tuple(kept[axis] for axis in layout), "cropped")
        source = emitter.slice(source, [-crop[axis][0] for axis in layout], inner)
        pairs = [(max(before, 0), max(after, 0)) for before, after in pairs]
        shape = kept
    if mode != "constant":
        _pad_by_index(emitter, step, source, target, pairs, mode)
        return
    _pad_constant(emitter, source, target, [pairs[axis] for axis in layout], fill)


def _pad_constant(
    emitter: Emitter, source: Tensor, target: Tensor, pairs: list[tuple[int, int]], fill: float
) -> None:
    if not any(map(any, pairs)):
        emitter.reshape(source, target)
        return
    paddings = emitter.shape(pairs, "paddings")
    if fill == 0.0:
        emitter.op("PAD", [source, paddings], [target], "PadOptions")
    else:
        number = emitter.number(fill, source, "pad_value")
        emitter.op("PADV2", [source, paddings, number], [target], "PadV2Options")


def _pad_by_index(
    emitter: Emitter, step: Step, source: Tensor, target: Tensor, pairs: list[tuple[int, int]], mode: str
) -> None:
    if mode not in ("reflect", "edge", "wrap"):
        raise Unsupported(f"padding by {mode} has no kernel", "constant, reflect, edge or wrap")
    layout = emitter.layout()
    inside = all(max(pair) < source.shape[layout.index(axis)] for axis, pair in enumerate(pairs))
    if mode == "reflect" and inside and source.dtype != "int64":
        paddings = emitter.shape([pairs[axis] for axis in layout], "paddings")
        emitter.op("MIRROR_PAD", [source, paddings], [target], "MirrorPadOptions", mode=0)
        return
    padded = [axis for axis in range(len(pairs)) if any(pairs[axis])]
    if not padded:
        emitter.reshape(source, target)
    names = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}
    for number, axis in enumerate(padded):
        place = layout.index(axis)
        index = np.pad(np.arange(source.shape[place]), pairs[axis], mode=names[mode])  # type: ignore[call-overload]
        sizes = tuple(len(index) if k == place else size for k, size in enumerate(source.shape))
        made = target if number == len(padded) - 1 else emitter.like(target, sizes, "padded")
        emitter.op("GATHER", [source, emitter.shape(index, "index")], [made], "GatherOptions", axis=place)
        source = made


def gather_layout(step: Step, is_input: bool, index: int, layout: Layout) -> Choice | None:
    """The data's other axes keep their order; the indices' axes stand where the axis stood."""
    if (is_input and index > 0) or not step.shape():
        return None
    rank, axis = len(step.shape()), step.attribute("axis", 0) % len(step.shape())
    more = len(step.shape(1))
    indices = identity(more) if more else None
    if is_input:
        if len(layout) != rank:
            return None
        data = layout
    else:
        data = (
            channels_last(rank)
            if len(layout) > 2 and layout == channels_last(len(layout))
            else identity(rank)
        )
    out: list[int] = []
    for at in data:
        if at == axis:
            out.extend(range(axis, axis + more))
        else:
            out.append(at if at < axis else at + more - 1)
    return Choice((data, indices), (tuple(out),))


@operator("Gather", layout=gather_layout, integer=same_scale)
def gather(emitter: Emitter, step: Step) -> None:
    """GATHER."""
    indices = step.array(1)
    axis = step.attribute("axis", 0) % len(step.shape())
    source = emitter.read(0)
    if indices is not None:
        where = emitter.shape(np.where(indices < 0, indices + step.shape()[axis], indices), "indices")
    else:
        where = emitter.read(1)
    emitter.op("GATHER", [source, where], [emitter.write()], "GatherOptions", axis=emitter.axis(axis))


@operator("GatherND", layout=in_order)
def gather_nd(emitter: Emitter, step: Step) -> None:
    """GATHER_ND; batch dimensions become indices where these are known."""
    batches = step.attribute("batch_dims", 0)
    indices = step.array(1)
    if indices is None:
        if batches:
            raise Unsupported("batch_dims need constant indices", "batch_dims=0")
        where = emitter.read(1)
    else:
        depth = np.array(step.shape()[batches : batches + indices.shape[-1]])
        indices = np.where(indices < 0, indices + depth, indices)
        if batches:
            places = np.indices(indices.shape[:-1])[:batches]
            indices = np.concatenate([np.moveaxis(places, 0, -1), indices], axis=-1)
        where = emitter.shape(indices, "indices")
    emitter.op("GATHER_ND", [emitter.read(0), where], [emitter.write()], "GatherNdOptions")


def _free_rank(step: Step, is_input: bool, index: int, layout: Layout) -> Choice | None:
    if (is_input and index > 0) or len(layout) != len(step.result()):
        return None
    return Choice((layout, *(None for _ in step.inputs[1:])), (layout,))


@operator("Expand", layout=_free_rank, integer=same_scale)
def expand(emitter: Emitter, step: Step) -> None:
    """BROADCAST_TO, after a RESHAPE where the input has fewer axes."""
    if len(step.shape()) != len(step.result()):
        raise Unsupported("its input has fewer axes than its output", "a Reshape before it")
    target = emitter.write()
    sizes = emitter.shape(target.shape)
    emitter.op("BROADCAST_TO", [emitter.read(0), sizes], [target], "BroadcastToOptions")


@operator("Tile", layout=first_only, integer=same_scale)
def tile(emitter: Emitter, step: Step) -> None:
    """TILE."""
    repeats = step.ints(1)
    if repeats is None:
        raise Unsupported("its repeats are computed at run time", "constant repeats")
    counts = emitter.shape([repeats[axis] for axis in emitter.layout()], "repeats")
    emitter.op("TILE", [emitter.read(0), counts], [emitter.write()], "TileOptions")


def _spatial(step: Step, is_input: bool, index: int, layout: Layout) -> Choice | None:
    return Choice((channels_last(4),), (channels_last(4),))


@operator("DepthToSpace", layout=_spatial, integer=same_scale)
def depth_to_space(emitter: Emitter, step: Step) -> None:
    """DEPTH_TO_SPACE; the column-row-depth order reorders the channels first."""
    block = step.attribute("blocksize")
    source = emitter.read(0)
    if step.attribute("mode", "DCR") == "CRD":
        channels = step.shape()[1]
        order = np.arange(channels).reshape(channels // block**2, block, block).transpose(1, 2, 0).reshape(-1)
        made = emitter.like(source, source.shape, "reordered")
        source = emitter.op(
            "GATHER", [source, emitter.shape(order, "order")], [made], "GatherOptions", axis=3
        )
    emitter.op("DEPTH_TO_SPACE", [source], [emitter.write()], "DepthToSpaceOptions", blockSize=block)


@operator("SpaceToDepth", layout=_spatial, integer=same_scale)
def space_to_depth(emitter: Emitter, step: Step) -> None:
    """SPACE_TO_DEPTH; the column-row-depth order reorders the channels after it."""
    block = step.attribute("blocksize")
    source, target = emitter.read(0), emitter.write()
    if step.attribute("mode", "DCR") != "CRD":
        emitter.op("SPACE_TO_DEPTH", [source], [target], "SpaceToDepthOptions", blockSize=block)
        return
    made = emitter.like(target, target.shape, "blocks")
    emitter.op("SPACE_TO_DEPTH", [source], [made], "SpaceToDepthOptions", blockSize=block)
    order = np.arange(target.shape[3]).reshape(block**2, -1).T.reshape(-1)
    emitter.op("GATHER", [made, emitter.shape(order, "order")], [target], "GatherOptions", axis=3)


@operator("CumSum", layout=first_only)
def cumulative_sum(emitter: Emitter, step: Step) -> None:
    """CUMSUM."""
    axis = step.ints(1)
    if axis is None:
        raise Unsupported("its axis is computed at run time", "a constant axis")
    source = emitter.read(0)
    if source.dtype not in ("float32", "int32", "int64"):
        raise Unsupported(f"it is not computed in {source.dtype}")
    where = emitter.shape(emitter.axis(axis[0]), "axis")
    emitter.op(
        "CUMSUM",
        [source, where],
        [emitter.write()],
        "CumsumOptions",
        exclusive=bool(step.attribute("exclusive", 0)),
        reverse=bool(step.attribute("reverse", 0)),
    )


def _computed(step: Step, index: int) -> bool:
    return step.input(index) is not None and step.constant(index) is None
