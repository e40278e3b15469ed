"""Reductions, positions of extremes, and normalizations over axes."""

from __future__ import annotations

from edgeopt.graph.layout import Choice, Layout, channels_last, identity
from edgeopt.targets.tflite.emitter import Emitter
from edgeopt.targets.tflite.operators.table import (
    first_int8,
    fixed_channels_last,
    fixed_output,
    input_int8,
    operator,
    same_scale,
    without_axes,
)
from edgeopt.targets.tflite.program import Tensor, Unsupported
from edgeopt.targets.tflite.steps import Step

INT64 = 4
"""The schema's number of the type that ONNX gives positions in."""

REDUCTIONS = {
    "ReduceMean": "MEAN",
    "ReduceSum": "SUM",
    "ReduceMax": "REDUCE_MAX",
    "ReduceMin": "REDUCE_MIN",
    "ReduceProd": "REDUCE_PROD",
}


def axes_of(step: Step) -> list[int]:
    """The axes reduced; all where none are given, none where that is what ``noop_with_empty_axes`` says."""
    axes = step.ints(1, "axes")
    if axes is None and step.input(1) is not None and step.constant(1) is None:
        raise Unsupported("its axes are computed at run time", "constant axes")
    rank = len(step.shape())
    if not axes:
        return [] if step.attribute("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(axis % rank for axis in axes)


def reduce_layout(step: Step, is_input: bool, index: int, layout: Layout) -> Choice | None:
    """Any layout; without ``keepdims`` the axes drop out of it."""
    rank = len(step.shape())
    rest = (None,) * (len(step.inputs) - 1)
    try:
        axes = axes_of(step)
    except Unsupported:
        return Choice((identity(rank), *rest), (identity(len(step.result())),))
    keeps = len(step.result()) == rank
    if is_input:
        if index > 0 or len(layout) != rank:
            return None
        data = layout
    elif keeps:
        data = layout
    else:
        data = channels_last(rank)
        if without_axes(data, axes) != layout:
            data = identity(rank)
    return Choice((data, *rest), (data if keeps else without_axes(data, axes),))


def _reduce_int8(step: Step) -> bool:
    if step.op_type in ("ReduceMean", "ReduceSum"):
        return first_int8(step)
    return step.op_type in ("ReduceMax", "ReduceMin") and same_scale(step)


@operator(*REDUCTIONS, layout=reduce_layout, integer=_reduce_int8)
def reduce(emitter: Emitter, step: Step) -> None:
    """MEAN, SUM and the like."""
    axes = axes_of(step)
    source, target = emitter.read(0), emitter.write()
    if source.dtype == "bool" and axes and step.op_type in ("ReduceMax", "ReduceMin"):
        _reduce(emitter, "REDUCE_ANY" if step.op_type == "ReduceMax" else "REDUCE_ALL", source, target, axes)
        return
    kinds = ("float32", "int32", "int64", "int8")
    if source.dtype not in (kinds if step.op_type != "ReduceMean" else ("float32", "int8")):
        raise Unsupported(f"it is not computed in {source.dtype}", "a Cast to float32")
    if source.dtype == "int8" and source.scale is None:
        raise Unsupported("plain int8 reductions have no kernel", "a Cast to int32")
    if not axes:
        emitter.reshape(source, target)
        return
    _reduce(emitter, REDUCTIONS[step.op_type], source, target, axes)


def _reduce(emitter: Emitter, code: str, source: Tensor, target: Tensor, axes: list[int]) -> Tensor:
    where = emitter.shape(sorted(emitter.axis(axis) for axis in axes), "axes")
    keeps = len(source.shape) == len(target.shape)
    return emitter.op(code, [source, where], [target], "ReducerOptions", keepDims=keeps)


@operator("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", layout=reduce_layout)
def reduce_composed(emitter: Emitter, step: Step) -> None:
    """A SUM of absolute values or squares, with the root or logarithm taken after it."""
    axes = axes_of(step)
    source, target = emitter.read(0), emitter.write()
    if source.dtype != "float32":
        raise Unsupported(f"it is not computed in {source.dtype}", "a Cast to float32")
    if not axes:
        raise Unsupported("it reduces no axis")
    if step.op_type == "ReduceL1":
        source = emitter.op("ABS", [source], [emitter.like(source, source.shape, "abs")], "AbsOptions")
    elif step.op_type != "ReduceLogSum":
        squared = emitter.like(source, source.shape, "squared")
        source = emitter.op("MUL", [source, source], [squared], "MulOptions", fusedActivationFunction=0)
    after = {"ReduceL2": "SQRT", "ReduceLogSum": "LOG"}.get(step.op_type)
    if after is None:
        _reduce(emitter, "SUM", source, target, axes)
        return
    total = _reduce(emitter, "SUM", source, emitter.like(target, target.shape, "sum"), axes)
    emitter.op(after, [total], [target])


@operator("GlobalAveragePool", layout=fixed_channels_last, integer=first_int8)
def global_average_pool(emitter: Emitter, step: Step) -> None:
    """MEAN over the spatial axes."""
    _reduce(emitter, "MEAN", emitter.read(0), emitter.write(), list(range(2, len(step.shape()))))


@operator("GlobalMaxPool", layout=fixed_channels_last, integer=same_scale)
def global_max_pool(emitter: Emitter, step: Step) -> None:
    """REDUCE_MAX over the spatial axes."""
    _reduce(emitter, "REDUCE_MAX", emitter.read(0), emitter.write(), list(range(2, len(step.shape()))))


def arg_layout(step: Step, is_input: bool, index: int, layout: Layout) -> Choice | None:
    """Any layout; without ``keepdims`` the axis drops out of it."""
    rank = len(step.shape())
    axis = step.attribute("axis", 0) % rank
    keeps = bool(step.attribute("keepdims", 1))
    if is_input or keeps:
        if len(layout) != rank:
            return None
        return Choice((layout,), (layout if keeps else without_axes(layout, [axis]),))
    return Choice((identity(rank),), (identity(rank - 1),))


@operator("ArgMax", "ArgMin", layout=arg_layout, integer=input_int8)
def position(emitter: Emitter, step: Step) -> None:
    """ARG_MAX, ARG_MIN: the first of equal ones."""
    if step.attribute("select_last_index", 0):
        raise Unsupported("the last of equal elements is not found", "select_last_index=0")
    source, target = emitter.read(0), emitter.write()
    if source.dtype not in ("float32", "int32", "int8"):
        raise Unsupported(f"it is not computed in {source.dtype}", "a Cast to float32")
    axis = emitter.axis(step.attribute("axis", 0))
    into = target
    if step.attribute("keepdims", 1):
        into = emitter.like(target, (*target.shape[:axis], *target.shape[axis + 1 :]), "flat")
    code = "ARG_MAX" if step.op_type == "ArgMax" else "ARG_MIN"
    table = "ArgMaxOptions" if code == "ARG_MAX" else "ArgMinOptions"
    emitter.op(code, [source, emitter.shape(axis, "axis")], [into], table, outputType=INT64)
    if into is not target:
        emitter.reshape(into, target)


def _norm_layout(step: Step, is_input: bool, index: int, layout: Layout) -> Choice | None:
    rank = len(step.result())
    axis = step.attribute("axis", -1) % rank
    if len(layout) != rank:
        return None
    if layout[-1] != axis:
        layout = (*(a for a in layout if a != axis), axis)
    return Choice((layout,), (layout,))


@operator("LpNormalization", layout=_norm_layout, integer=fixed_output(1 / 128, 0))
def normalize(emitter: Emitter, step: Step) -> None:
    """L2_NORMALIZATION along the axis that lies last."""
    if step.attribute("p", 2) != 2:
        raise Unsupported("only the 2-norm has a kernel", "p=2")
    emitter.op(
        "L2_NORMALIZATION", [emitter.read(0)], [emitter.write()], "L2NormOptions", fusedActivationFunction=0
    )


@operator("LRN", layout=fixed_channels_last)
def local_response(emitter: Emitter, step: Step) -> None:
    """LOCAL_RESPONSE_NORMALIZATION over a window that is as wide to both sides."""
    size = step.attribute("size")
    if size % 2 == 0 or len(step.shape()) != 4:
        raise Unsupported("only odd windows over the channels of images have a kernel", "an odd size")
    emitter.op(
        "LOCAL_RESPONSE_NORMALIZATION",
        [emitter.read(0)],
        [emitter.write()],
        "LocalResponseNormalizationOptions",
        radius=size // 2,
        bias=float(step.attribute("bias", 1.0)),
        alpha=float(step.attribute("alpha", 1e-4)) / size,
        beta=float(step.attribute("beta", 0.75)),
    )
