"""Random valid graphs through every exact pass.

    python benchmarks/fuzz.py COUNT [--first SEED] [--verify off|fast|full] [--keep FOLDER]

Each graph is grown from its seed, node by node, on values whose shapes are known: 1 to 40 steps over
arithmetic, data movement, reductions, products, convolutions, normalizations, shape arithmetic, casts
between all types, quantization, and If and Loop bodies that capture values from outside. Weights are
shared, constants repeated, nodes doubled, some dimensions symbolic. Proofs are off unless asked for, so
that a wrong rule shows; what decides is onnxruntime's reference mode before and after, at the sizes that
the graph was grown with and, where it runs there, at others. Operators that jump (Floor, comparisons,
casts to integers) are put only on values that no rewrite may change in the last bits. Prints how many
graphs were equal, not valid, or different.
"""

from __future__ import annotations

import argparse
import collections
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from edgeopt.errors import RuntimeFailure
from edgeopt.graph.execute import Executor
from edgeopt.optimization import optimize

FLOAT, INT64 = np.dtype(np.float32), np.dtype(np.int64)
TOLERANCE = {np.dtype(np.float16): 3e-2, FLOAT: 1e-4, np.dtype(np.float64): 1e-4}
"""How far a whole graph may differ, relative to the largest magnitude: many rewrites add up."""

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
CASTS = ("float32", "float64", "float16", "int32", "int64", "int8", "uint8", "bool")


@dataclass(frozen=True)
class Value:
    """A value of the graph: its name, shape and dtype, and whether no rewrite may change its last bits."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype = FLOAT
    exact: bool = False


@dataclass
class Graph:
    """A graph that grows."""

    random: np.random.Generator
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    pool: list[Value] = field(default_factory=list)
    count: int = 0

    def name(self) -> str:
        """A new name."""
        self.count += 1
        return f"v{self.count}"

    def chance(self, share: float) -> bool:
        """True so often."""
        return bool(self.random.random() < share)

    def pick(self, items: Sequence[Any]) -> Any:
        """One of the items."""
        return items[int(self.random.integers(len(items)))]

    def constant(self, array: Any, dtype: Any = None) -> str:
        """A constant, sometimes one that is there already."""
        array = np.asarray(array, dtype)
        for name, other in self.weights.items():
            same = other.dtype == array.dtype and other.shape == array.shape
            if same and self.chance(0.5) and np.array_equal(other, array):
                return name
        name = f"w{self.name()}"
        self.weights[name] = array
        return name

    def weight(self, *shape: int, dtype: np.dtype = FLOAT) -> str:
        """A random weight, sometimes a shared one."""
        alike = [n for n, w in self.weights.items() if w.shape == shape and w.dtype == dtype]
        if alike and self.chance(0.3):
            return str(self.pick(alike))
        return self.constant(self.random.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:]))), dtype)

    def add(self, operator: str, inputs: Sequence[str], out: Value | None = None, **attributes: Any) -> str:
        """A node; its output goes into the pool where its shape is given."""
        name = out.name if out is not None else self.name()
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        if out is not None:
            self.pool.append(out)
        if self.chance(0.04) and operator not in ("If", "Loop", "Dropout"):
            self.nodes.append(helper.make_node(operator, list(inputs), [self.name()], **attributes))
            if out is not None:
                twin = self.nodes[-1].output[0]
                self.pool.append(Value(twin, out.shape, out.dtype, out.exact))
        return name

    def axes(
        self, operator: str, x: str, axes: Sequence[int], out: Value, since: int, **attributes: Any
    ) -> None:
        """A node whose axes are an attribute before an opset and an input from there."""
        if self.opset < since:
            self.add(operator, [x], out, axes=list(axes), **attributes)
        else:
            self.add(operator, [x, self.constant(list(axes), INT64)], out, **attributes)

    def value(self, wanted: Callable[[Value], bool]) -> Value | None:
        """The newest value that fits, or one of the newest."""
        fitting = [value for value in self.pool if wanted(value)]
        if not fitting:
            return None
        return fitting[-1] if self.chance(0.6) else self.pick(fitting[-5:])

    def floats(self, rank: int | None = None) -> Value | None:
        """A float32 value."""
        return self.value(lambda v: v.dtype == FLOAT and (rank is None or len(v.shape) == rank))


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


def reshape(g: Graph) -> None:
    """Any reshaping operator."""
    if (x := g.value(lambda v: bool(v.shape))) is None:
        return
    how, rank = g.pick(["Reshape", "Flatten", "Squeeze", "Unsqueeze", "computed"]), len(x.shape)

    def out(shape: Sequence[int]) -> Value:
        return Value(g.name(), tuple(int(size) for size in shape), x.dtype, x.exact)

    if how == "Flatten":
        axis = int(g.random.integers(0, rank + 1))
        sizes = (int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:])))
        g.add("Flatten", [x.name], out(sizes), axis=axis)
    elif how == "Unsqueeze":
        axis = int(g.random.integers(0, rank + 1))
        if rank < 5:
            g.axes("Unsqueeze", x.name, [axis], out([*x.shape[:axis], 1, *x.shape[axis:]]), 13)
    elif how == "Squeeze":
        ones = [axis for axis, size in enumerate(x.shape) if size == 1]
        if ones:
            g.axes("Squeeze", x.name, ones, out([size for size in x.shape if size != 1]), 13)
    elif how == "computed" and rank >= 2:
        shape = g.add("Shape", [x.name])
        first = g.add("Gather", [shape, g.constant([0], INT64)])
        target = g.add("Concat", [first, g.constant([-1], INT64)], axis=0)
        g.add("Reshape", [x.name, target], out([x.shape[0], np.prod(x.shape[1:])]))
    else:
        sizes = list(x.shape)
        if rank >= 2 and g.chance(0.6):
            at = int(g.random.integers(0, rank - 1))
            sizes[at : at + 2] = [sizes[at] * sizes[at + 1]]
        elif rank < 5:
            at = int(g.random.integers(0, rank))
            factor = next((f for f in (2, 3) if sizes[at] % f == 0), 1)
            sizes[at : at + 1] = [factor, sizes[at] // factor]
        target = [-1 if at == 0 and g.chance(0.5) else size for at, size in enumerate(sizes)]
        g.add("Reshape", [x.name, g.constant(target, INT64)], out(sizes))


def transpose(g: Graph) -> None:
    """Any order of axes, sometimes back again."""
    if x := g.value(lambda v: len(v.shape) >= 2):
        order = [int(axis) for axis in g.random.permutation(len(x.shape))]
        out = Value(g.name(), tuple(x.shape[axis] for axis in order), x.dtype, x.exact)
        g.add("Transpose", [x.name], out, perm=order)
        if g.chance(0.3):
            back = [int(axis) for axis in np.argsort(order)]
            g.add("Transpose", [out.name], Value(g.name(), x.shape, x.dtype, x.exact), perm=back)


def cut(g: Graph) -> None:
    """Slice, Split or Gather along one axis."""
    if (x := g.value(lambda v: len(v.shape) >= 1 and max(v.shape) > 1 and v.dtype != bool)) is None:
        return
    axis = int(g.pick([axis for axis, size in enumerate(x.shape) if size > 1]))
    size, written = x.shape[axis], axis if g.chance(0.6) else axis - len(x.shape)

    def out(left: Sequence[int]) -> Value:
        return Value(g.name(), (*x.shape[:axis], *left, *x.shape[axis + 1 :]), x.dtype, x.exact)

    how = g.pick(["Slice", "Slice", "Split", "Gather", "one"])
    if how == "Slice":
        step = int(g.pick([1, 1, 2, -1]))
        start, end = (
            (0, size) if g.chance(0.2) else sorted(int(i) for i in g.random.choice(size + 1, 2, False))
        )
        if step == -1:
            start, end = size - 1, -size - 1
        length = len(range(*slice(start, None if end < 0 else end, step).indices(size)))
        end = 2**31 - 1 if end == size and g.chance(0.3) else end
        parts = [g.constant([number], INT64) for number in (start, end, written, step)]
        g.add("Slice", [x.name, *parts], out([length]))
    elif how == "Split" and size >= 2:
        one = int(g.random.integers(1, size))
        first, second = out([one]), out([size - one])
        second = Value(g.name(), second.shape, second.dtype, second.exact)
        sizes = [one, size - one]
        attributes = {"axis": written, **({"split": sizes} if g.opset < 13 else {})}
        inputs = [x.name] if g.opset < 13 else [x.name, g.constant(sizes, INT64)]
        g.nodes.append(helper.make_node("Split", inputs, [first.name, second.name], **attributes))
        g.pool += [first, second]
    else:
        index = g.random.integers(0, size, () if how == "one" else (int(g.random.integers(1, 4)),))
        g.add("Gather", [x.name, g.constant(index, INT64)], out(index.shape), axis=written)


def join(g: Graph) -> None:
    """Concat, Tile, Expand or Pad."""
    if (
        x := g.value(lambda v: bool(v.shape) and v.dtype in (FLOAT, INT64) and np.prod(v.shape) < 2000)
    ) is None:
        return
    axis, how = int(g.random.integers(len(x.shape))), g.pick(["Concat", "Concat", "Tile", "Expand", "Pad"])
    if how == "Concat":
        others = [v for v in g.pool if v.dtype == x.dtype and v.shape == x.shape][-2:]
        shape = tuple(s * len(others) if i == axis else s for i, s in enumerate(x.shape))
        g.add("Concat", [v.name for v in others], Value(g.name(), shape, x.dtype, x.exact), axis=axis)
    elif how == "Tile":
        counts = [int(g.pick([1, 1, 2])) for _ in x.shape]
        shape = tuple(size * count for size, count in zip(x.shape, counts, strict=True))
        g.add("Tile", [x.name, g.constant(counts, INT64)], Value(g.name(), shape, x.dtype, x.exact))
    elif how == "Expand":
        shape = tuple(int(g.pick([1, 3])) if size == 1 else size for size in x.shape)
        g.add("Expand", [x.name, g.constant(shape, INT64)], Value(g.name(), shape, x.dtype, x.exact))
    elif x.dtype == FLOAT:
        pads = [int(number) for number in g.random.integers(0, 2, 2 * len(x.shape))]
        half = len(x.shape)
        shape = tuple(s + pads[i] + pads[half + i] for i, s in enumerate(x.shape))
        g.add("Pad", [x.name, g.constant(pads, INT64)], Value(g.name(), shape, x.dtype, x.exact))


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


def compound(g: Graph) -> None:
    """The primitives of GELU, hard-swish, layer normalization, or root-mean-square normalization."""
    if (x := g.value(lambda v: v.dtype == FLOAT and len(v.shape) >= 1)) is None:
        return
    how, last = g.pick(["gelu", "hard", "layer", "rms"]), [-1]

    def number(scalar: float) -> str:
        return g.constant(np.float32(scalar))

    out = Value(g.name(), x.shape)
    if how == "gelu":
        inner = g.add("Erf", [g.add("Div", [x.name, number(2**0.5)])])
        g.add("Mul", [g.add("Mul", [x.name, g.add("Add", [inner, number(1)])]), number(0.5)], out)
    elif how == "hard":
        gate = g.add("Clip", [g.add("Add", [x.name, number(3)]), number(0), number(6)])
        g.add("Div", [g.add("Mul", [x.name, gate]), number(6)], out)
    else:
        centred = x.name
        if how == "layer":
            mean = Value(g.name(), (*x.shape[:-1], 1))
            g.axes("ReduceMean", x.name, last, mean, 18)
            centred = g.add("Sub", [x.name, mean.name])
        spread = Value(g.name(), (*x.shape[:-1], 1))
        g.axes("ReduceMean", g.add("Pow", [centred, number(2)]), last, spread, 18)
        root = g.add("Sqrt", [g.add("Add", [spread.name, number(1e-2)])])
        if how == "layer":
            g.add(
                "Add",
                [g.add("Mul", [g.add("Div", [centred, root]), g.weight(x.shape[-1])]), g.weight(x.shape[-1])],
                out,
            )
        else:
            g.add("Mul", [g.add("Mul", [x.name, g.add("Reciprocal", [root])]), g.weight(x.shape[-1])], out)


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


def branch(g: Graph) -> None:
    """If with branches that read values from outside; its condition constant or computed."""
    if (x := g.value(lambda v: v.dtype == FLOAT and bool(v.shape))) is None:
        return
    condition = g.constant(np.bool_(g.chance(0.5)))
    if g.chance(0.4) and (whole := g.value(lambda v: v.exact and v.dtype == FLOAT)):
        total = Value(g.name(), ())
        every = g.add("Reshape", [whole.name, g.constant([-1], INT64)])
        g.axes("ReduceMax", every, [0], total, 18, keepdims=0)
        condition = g.add("Greater", [total.name, g.constant(np.float32(0.5))])
    branches = []
    for which in ("then", "else"):
        inner, out = g.name(), g.name()
        nodes = [
            helper.make_node("Identity" if g.chance(0.5) else "Neg", [x.name], [inner]),
            helper.make_node(g.pick(["Relu", "Abs", "Tanh"]), [inner], [out]),
        ]
        info = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
        branches.append(helper.make_graph(nodes, which, [], [info]))
    g.add("If", [condition], Value(g.name(), x.shape), then_branch=branches[0], else_branch=branches[1])


def loop(g: Graph) -> None:
    """Loop over a carried value, with a captured one."""
    if (x := g.value(lambda v: v.dtype == FLOAT and bool(v.shape))) is None:
        return
    step, go, state, still, inner, out = (g.name() for _ in range(6))
    nodes = [
        helper.make_node("Identity", [go], [still]),
        helper.make_node("Mul", [state, g.constant(np.float32(0.5))], [inner]),
        helper.make_node("Add", [inner, x.name], [out]),
    ]
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        nodes,
        "body",
        [
            info(step, TensorProto.INT64, []),
            info(go, TensorProto.BOOL, []),
            info(state, TensorProto.FLOAT, x.shape),
        ],
        [info(still, TensorProto.BOOL, []), info(out, TensorProto.FLOAT, x.shape)],
    )
    trips = g.constant(np.int64(g.random.integers(0, 4)))
    g.add("Loop", [trips, g.constant(np.bool_(True)), x.name], Value(g.name(), x.shape), body=body)


STEPS = (
    *(unary, unary, clip, binary, binary, binary, cast, reshape, reshape, transpose, transpose, cut, cut),
    *(join, join, reduce, product, product, convolve, convolve, convolve, compound, choose, constants),
    *(quantize, branch, loop),
)


def grow(seed: int) -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    """Grows the graph of a seed; returns it with the inputs of a few calls."""
    random = np.random.default_rng(seed)
    g = Graph(random, int(random.choice([11, 13, 17, 18, 20, 21])))
    shapes = [(1, 4, 6, 6), (2, 3, 8), (2, 8), (2, 1, 4), (1, 5, 4), (2, 4, 5, 3)]
    inputs: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    for number in range(int(random.integers(1, 3))):
        dtype = INT64 if number and random.random() < 0.2 else FLOAT
        inputs[f"x{number}"] = (shapes[int(random.integers(len(shapes)))], dtype)
    g.pool += [Value(name, shape, dtype, True) for name, (shape, dtype) in inputs.items()]
    for _ in range(int(random.integers(1, 41))):
        g.pick(STEPS)(g)
        g.pool = [value for value in g.pool if np.prod(value.shape) <= 20000]
    given = set(inputs)
    read = {name for node in g.nodes for name in node.input}
    ends = [v for v in g.pool if v.name not in read and v.name not in given]
    some = [v for v in g.pool if v.name not in given and random.random() < 0.05]
    outputs = list({v.name: v for v in [*ends[-4:], *some]}.values())
    symbolic = random.random() < 0.4
    info = helper.make_tensor_value_info
    declared = [
        info(name, helper.np_dtype_to_tensor_dtype(dtype), [*(["n"] if symbolic else shape[:1]), *shape[1:]])
        for name, (shape, dtype) in inputs.items()
    ]
    graph = helper.make_graph(
        g.nodes,
        f"fuzz{seed}",
        declared,
        [info(v.name, helper.np_dtype_to_tensor_dtype(v.dtype), None) for v in outputs],
        [numpy_helper.from_array(array, name) for name, array in g.weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", g.opset)], ir_version=8)
    calls = []
    for batch in (None, 3) if symbolic else (None,):
        sizes = {n: shape if batch is None else (batch, *shape[1:]) for n, (shape, _) in inputs.items()}
        calls.append(
            {
                name: random.standard_normal(sizes[name]).astype(dtype)
                if dtype == FLOAT
                else random.integers(0, 5, sizes[name])
                for name, (_, dtype) in inputs.items()
            }
        )
    return model, calls


def outcome(seed: int, verify: Any = "off") -> str:
    """``equal``, ``not valid``, or how the graph of a seed differs after all passes."""
    model, calls = grow(seed)
    if not model.graph.output:
        return "not valid"
    expected = []
    for feeds in calls:
        try:
            expected.append(run(model, feeds))
        except RuntimeFailure:
            if not expected:
                return "not valid"
            break
    try:
        result = optimize(model, verify=verify)
        for feeds, before in zip(calls, expected, strict=False):
            after = run(result, feeds)
            if list(before) != list(after):
                return f"outputs {list(before)} became {list(after)}"
            for name, one in before.items():
                if reason := difference(np.asarray(one), np.asarray(after[name])):
                    return f"{name}: {reason}"
    except Exception as failure:  # whatever it raises is a finding
        return f"{type(failure).__name__}: {str(failure)[:300]}"
    return "equal"


def difference(one: np.ndarray, two: np.ndarray) -> str:
    """Why two outputs are not equal; "" where they are."""
    if one.shape != two.shape or one.dtype != two.dtype:
        return f"{one.dtype}{list(one.shape)} became {two.dtype}{list(two.shape)}"
    if one.dtype not in TOLERANCE:
        return "" if np.array_equal(one, two) else "other numbers"
    finite = np.isfinite(one)
    if not np.array_equal(one[~finite], two[~finite], equal_nan=True):
        return "NaN or Inf at other places"
    wide = np.abs(one[finite].astype(np.float64))
    gap = np.abs(two[finite].astype(np.float64) - one[finite]).max(initial=0)
    return "" if gap <= TOLERANCE[one.dtype] * max(wide.max(initial=0), 1e-6) else f"differs by {gap:.2g}"


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    """Runs one call in reference mode, with the inputs that the model still has."""
    parsed = ir.from_proto(model)
    with Executor(parsed) as executor:
        return dict(executor.run({v.name or "": feeds[v.name or ""] for v in parsed.graph.inputs}))


def main() -> None:
    """Runs the fuzzer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--verify", choices=["off", "fast", "full"], default="off")
    parser.add_argument("--keep", type=Path, help="write graphs that differ into this folder")
    arguments = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    start = time.process_time()
    for seed in range(arguments.first, arguments.first + arguments.count):
        found = outcome(seed, arguments.verify)
        counts[found if found in ("equal", "not valid") else "different"] += 1
        if found not in ("equal", "not valid"):
            print(seed, found, flush=True)
            if arguments.keep:
                onnx.save(grow(seed)[0], arguments.keep / f"{seed}.onnx")
    print(dict(counts), f"{time.process_time() - start:.0f} CPU s")
    if counts["different"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
