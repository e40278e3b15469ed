"""Steps that compute: arithmetic, casts, reductions, products, convolutions, normalizations."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from benchmarks.random_graphs.graph import FLOAT, INT64, Graph, Value

UNARY = (
    "Relu",
    "Neg",
    "Abs",
    "Sigmoid",
    "Tanh",
    "Erf",
    "Softplus",
    "LeakyRelu",
    "Identity",
    "Dropout",
    "Elu",
)
EXACT_UNARY = ("Relu", "Neg", "Abs", "Identity")
CASTS = (
    *("float32", "float64", "float16", "bool", "int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
)


def unary(g: Graph) -> None:
    """Elementwise, one operand."""
    if x := g.value(lambda v: v.dtype == FLOAT):
        operator = g.pick(UNARY)
        attributes = {"alpha": 0.1} if operator == "LeakyRelu" else {}
        g.add(
            operator,
            [x.name],
            Value(g.name(), x.shape, x.dtype, x.exact and operator in EXACT_UNARY),
            **attributes,
        )


def clip(g: Graph) -> None:
    """Clip with one or two limits."""
    if x := g.floats():
        low, high = sorted(g.random.integers(-2, 7, 2))
        limits = ["" if g.chance(0.2) else g.constant(np.float32(end)) for end in (low, high)]
        g.add("Clip", [x.name, *limits], Value(g.name(), x.shape, x.dtype, x.exact))


def binary(g: Graph) -> None:
    """Elementwise, two operands, one of them often a constant, sometimes a neutral one."""
    x = g.value(lambda v: v.dtype in (FLOAT, INT64, np.dtype(np.int32), np.dtype(np.float64)))
    if x is None:
        return
    integer = x.dtype.kind == "i"
    operator = g.pick(["Add", "Sub", "Mul"] if integer else ["Add", "Sub", "Mul", "Div", "Max", "Min"])
    other = g.value(lambda v: v.dtype == x.dtype and v.shape == x.shape)
    if other is not None and g.chance(0.4) and operator != "Div":
        g.add(operator, [x.name, other.name], Value(g.name(), x.shape, x.dtype, integer))
        return
    shape = g.pick(
        [(), (1,), x.shape, x.shape[-1:], tuple(s if i == 1 else 1 for i, s in enumerate(x.shape))]
    )
    numbers = g.random.integers(1, 4, shape) * g.pick([1, -1, 0.5] if not integer else [1, -1])
    if g.chance(0.3):
        numbers = np.full(shape, g.pick([0, 1]) if operator != "Div" else 1)
    inputs = [x.name, g.constant(numbers, x.dtype)]
    if g.chance(0.2) and operator != "Div":
        inputs.reverse()
    exact = integer or (x.exact and operator in ("Max", "Min"))
    g.add(operator, inputs, Value(g.name(), np.broadcast_shapes(x.shape, shape), x.dtype, exact))


def cast(g: Graph) -> None:
    """To any type, from a value that may be cut."""
    if x := g.value(lambda v: v.exact or v.dtype.kind != "f"):
        dtype = np.dtype(g.pick(CASTS))
        if x.dtype.kind == "f" and dtype.kind in "iu":  # what overflows is undefined
            limited = g.add("Clip", [x.name, g.constant(0, x.dtype), g.constant(7, x.dtype)])
            x = Value(limited, x.shape, x.dtype, x.exact)
        kind = helper.np_dtype_to_tensor_dtype(dtype)
        g.add("Cast", [x.name], Value(g.name(), x.shape, dtype, x.exact or x.dtype.kind != "f"), to=kind)


def round_trip(g: Graph) -> None:
    """Through a type that numpy has not, and back: bfloat16, a string or a packed integer."""
    through = [TensorProto.STRING, *([TensorProto.BFLOAT16] if g.opset >= 13 else [])]
    through += [TensorProto.INT4, TensorProto.UINT4] if g.opset >= 21 else []
    kind = g.pick(through)
    x = g.value(lambda v: v.exact and v.dtype == (INT64 if kind == TensorProto.STRING else FLOAT))
    if x is None:
        return
    before = x.name
    if kind in (TensorProto.INT4, TensorProto.UINT4):
        before = g.add("Clip", [before, g.constant(0, FLOAT), g.constant(7, FLOAT)])
    there = g.add("Cast", [before], to=kind)
    back = helper.np_dtype_to_tensor_dtype(x.dtype)
    g.add("Cast", [there], Value(g.name(), x.shape, x.dtype, True), to=back)


def integers(g: Graph) -> None:
    """Arithmetic of integers of any width, as far as onnxruntime has it."""
    if x := g.value(lambda v: v.dtype.kind in "iu"):
        wide = x.dtype.itemsize >= 4
        operator = g.pick(["Add", "Mul", "Max", "Min", "Sub"] if wide else ["Max", "Min", "Identity"])
        if operator in ("Max", "Min") and g.opset < 12:
            return
        shape = g.pick([(), (1,), x.shape])
        second = [g.constant(g.random.integers(0, 3, shape), x.dtype)] if operator != "Identity" else []
        out = np.broadcast_shapes(x.shape, shape) if second else x.shape
        g.add(operator, [x.name, *second], Value(g.name(), out, x.dtype, True))


def reduce(g: Graph) -> None:
    """A reduction over some axes, or a softmax."""
    if x := g.value(lambda v: v.dtype == FLOAT and len(v.shape) >= 1):
        operator = g.pick(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "Softmax"])
        if operator == "Softmax":
            g.add("Softmax", [x.name], Value(g.name(), x.shape), axis=int(g.random.integers(len(x.shape))))
            return
        axes = sorted({int(axis) for axis in g.random.integers(0, len(x.shape), 2)})
        keep = int(g.random.integers(2))
        kept = [1 if at in axes else size for at, size in enumerate(x.shape) if keep or at not in axes]
        out = Value(g.name(), tuple(kept), x.dtype, x.exact and operator in ("ReduceMax", "ReduceMin"))
        g.axes(operator, x.name, axes, out, 13 if operator == "ReduceSum" else 18, keepdims=keep)


def product(g: Graph) -> None:
    """MatMul or Gemm, with a bias, with siblings, or of two values."""
    if (x := g.value(lambda v: v.dtype == FLOAT and len(v.shape) >= 2)) is None:
        return
    width = x.shape[-1]
    if len(x.shape) == 2 and g.chance(0.4):
        columns, turned = int(g.pick([3, 4, 8])), int(g.random.integers(2))
        weight = g.weight(*((columns, width) if turned else (width, columns)))
        bias = [g.weight(columns)] if g.chance(0.7) else []
        g.add("Gemm", [x.name, weight, *bias], Value(g.name(), (x.shape[0], columns)), transB=turned)
        return
    if g.chance(0.2):
        other = g.add(
            "Transpose", [x.name], perm=[*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2]
        )
        g.add("MatMul", [x.name, other], Value(g.name(), (*x.shape[:-1], x.shape[-2])))
        return
    for _ in range(int(g.pick([1, 1, 3]))):
        columns = int(g.pick([3, 4, 8]))
        out = Value(g.name(), (*x.shape[:-1], columns))
        g.add("MatMul", [x.name, g.weight(width, columns)], out)
        if g.chance(0.7):
            inputs = [out.name, g.weight(columns)]
            g.add("Add", inputs if g.chance(0.5) else inputs[::-1], Value(g.name(), out.shape))


def convolve(g: Graph) -> None:
    """Conv with what comes before and after it, or a pool."""
    if (x := g.value(lambda v: v.dtype == FLOAT and len(v.shape) == 4 and min(v.shape[2:]) >= 2)) is None:
        return
    batch, channels, height, width = x.shape
    how = g.pick(
        ["Conv", "Conv", "Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "BatchNormalization"]
    )
    if how == "BatchNormalization":
        _norm(g, x, channels)
    elif how == "GlobalAveragePool":
        g.add(how, [x.name], Value(g.name(), (batch, channels, 1, 1)))
    elif how != "Conv":
        g.add(how, [x.name], Value(g.name(), (batch, channels, height - 1, width - 1)), kernel_shape=[2, 2])
    else:
        kernel, groups = int(g.pick([1, 2])), int(g.pick([1, channels]))
        made, pad = int(g.pick([2, 4])) * groups, int(g.random.integers(2)) * (kernel - 1)
        weight = g.weight(made, channels // groups, kernel, kernel)
        bias = [g.weight(made)] if g.chance(0.5) else []
        grown = [size + 2 * pad - kernel + 1 for size in (height, width)]
        out = Value(g.name(), (batch, made, *grown))
        g.add("Conv", [x.name, weight, *bias], out, group=groups, pads=[pad] * 4)
        if g.chance(0.4):
            _norm(g, out, made)


def _norm(g: Graph, x: Value, channels: int) -> None:
    parameters = [g.weight(channels), g.weight(channels), g.weight(channels)]
    variance = g.constant(g.random.random(channels) + 0.5, FLOAT)
    g.add("BatchNormalization", [x.name, *parameters, variance], Value(g.name(), x.shape), epsilon=1e-3)


def choose(g: Graph) -> None:
    """Comparisons, logic and Where on values without rounding."""
    if x := g.value(lambda v: v.exact and v.dtype in (FLOAT, INT64)):
        kind = g.pick(["Less", "Greater", "Equal"])
        condition = Value(g.name(), x.shape, np.dtype(bool), True)
        g.add(kind, [x.name, g.constant(0 if g.chance(0.5) else 1, x.dtype)], condition)
        test = g.add("Not", [condition.name]) if g.chance(0.3) else condition.name
        if g.chance(0.3):
            test = g.constant(np.full(x.shape, g.chance(0.5)))
        g.add("Where", [test, x.name, g.constant(2, x.dtype)], Value(g.name(), x.shape, x.dtype, True))


def constants(g: Graph) -> None:
    """A value computed from constants alone."""
    size = int(g.pick([3, 4, 30]))
    ends = [g.constant(np.float32(number)) for number in (0, size, 1)]
    line = g.add("Range", ends)
    if g.chance(0.5):
        line = g.add("Mul", [line, g.constant(np.float32(0.25))])
    shape = g.add("ConstantOfShape", [g.constant([2, 1], INT64)])
    g.add("Add", [line, shape], Value(g.name(), (2, size), FLOAT, False))


def quantize(g: Graph) -> None:
    """QuantizeLinear and DequantizeLinear, which no exact pass may touch."""
    if x := g.value(lambda v: v.exact and v.dtype == FLOAT):
        parameters = [g.constant(np.float32(0.05)), g.constant(np.uint8(128))]
        stored = g.add("QuantizeLinear", [x.name, *parameters])
        g.add("DequantizeLinear", [stored, *parameters], Value(g.name(), x.shape))
