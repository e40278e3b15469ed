"""Steps of several nodes: what exporters write for one operator, and subgraphs."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.random_graphs.graph import FLOAT, INT64, Graph, Value


def compound(g: Graph) -> None:
    """The primitives of an activation or of a normalization over the last axis."""
    if (x := g.value(lambda v: v.dtype == FLOAT and len(v.shape) >= 1)) is None:
        return
    how, last = g.pick(["gelu", "hard", "layer", "rms", "silu", "mish", "tanh"]), [-1]

    def number(scalar: float) -> str:
        return g.constant(np.float32(scalar))

    out = Value(g.name(), x.shape)
    if how == "gelu":
        inner = g.add("Erf", [g.add("Div", [x.name, number(2**0.5)])])
        g.add("Mul", [g.add("Mul", [x.name, g.add("Add", [inner, number(1)])]), number(0.5)], out)
    elif how == "silu":
        g.add("Mul", [x.name, g.add("Sigmoid", [x.name])], out)
    elif how == "mish":
        g.add("Mul", [x.name, g.add("Tanh", [g.add("Softplus", [x.name])])], out)
    elif how == "tanh":
        cube = g.add("Mul", [g.add("Pow", [x.name, number(3)]), number(0.044715)])
        inner = g.add("Tanh", [g.add("Mul", [g.add("Add", [x.name, cube]), number((2 / np.pi) ** 0.5)])])
        g.add("Mul", [g.add("Mul", [x.name, number(0.5)]), g.add("Add", [inner, number(1)])], out)
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


def attend(g: Graph) -> None:
    """Scaled dot-product attention over heads, with and without a mask."""
    if (x := g.value(lambda v: v.dtype == FLOAT and len(v.shape) == 3 and v.shape[-1] % 4 == 0)) is None:
        return
    _, length, width = x.shape
    heads, own = 2, width // 2

    def split(turned: bool) -> str:
        rows = g.add("MatMul", [x.name, g.weight(width, width)])
        if g.chance(0.5):
            rows = g.add("Add", [rows, g.weight(width)])
        apart = g.add("Reshape", [rows, g.constant([0, 0, heads, own], INT64)])
        return g.add("Transpose", [apart], perm=[0, 2, 3, 1] if turned else [0, 2, 1, 3])

    query, keys, values = split(False), split(True), split(False)
    scale = g.constant(np.float32(own**-0.5))
    if g.chance(0.5):
        query = g.add("Mul", [query, scale])
        scores = g.add("MatMul", [query, keys])
    else:
        scores = g.add("Mul", [g.add("MatMul", [query, keys]), scale])
    if g.chance(0.5):
        mask = np.triu(np.full((length, length), -1e4, np.float32), 1)
        scores = g.add("Add", [scores, g.constant(mask)])
    shares = g.add("Softmax", [scores], axis=-1)
    mixed = g.add("Transpose", [g.add("MatMul", [shares, values])], perm=[0, 2, 1, 3])
    joined = Value(g.name(), x.shape)
    g.add("Reshape", [mixed, g.constant([0, 0, width], INT64)], joined)


def turn(g: Graph) -> None:
    """Rotary embedding: halves of the last axis, one negated and exchanged."""
    if (x := g.value(lambda v: v.dtype == FLOAT and len(v.shape) >= 2 and v.shape[-1] % 2 == 0)) is None:
        return
    length, width = x.shape[-2:]
    half = width // 2
    angles = np.outer(np.arange(length), 10.0 ** -np.arange(half)).astype(np.float32)
    angles = np.concatenate([angles, angles], axis=-1)
    first = g.add("Slice", [x.name, *(g.constant([n], INT64) for n in (0, half, len(x.shape) - 1))])
    second = g.add("Slice", [x.name, *(g.constant([n], INT64) for n in (half, width, len(x.shape) - 1))])
    turned = g.add("Concat", [g.add("Neg", [second]), first], axis=-1)
    straight = g.add("Mul", [x.name, g.constant(np.cos(angles))])
    across = g.add("Mul", [turned, g.constant(np.sin(angles))])
    g.add("Add", [straight, across], Value(g.name(), x.shape))


def normalize(g: Graph) -> None:
    """Instance or group normalization, as reshapes around InstanceNormalization or from primitives."""
    if (x := g.value(lambda v: v.dtype == FLOAT and len(v.shape) == 4)) is None:
        return
    batch, channels, height, width = x.shape
    groups = channels if channels % 2 or g.chance(0.5) else channels // 2
    apart = g.add("Reshape", [x.name, g.constant([0, groups, -1], INT64)])
    ones, zeros = (g.constant(np.full(groups, number, np.float32)) for number in (1, 0))
    even = g.add("InstanceNormalization", [apart, ones, zeros], epsilon=0.1)  # less would amplify rounding
    back = g.add("Reshape", [even, g.constant([batch, channels, height, width], INT64)])
    scaled = g.add("Mul", [back, g.weight(channels, 1, 1)])
    g.add("Add", [scaled, g.weight(channels, 1, 1)], Value(g.name(), x.shape))


def call(g: Graph) -> None:
    """A function of the model."""
    if x := g.floats():
        g.calls = True
        out = Value(g.name(), x.shape)
        g.nodes.append(
            helper.make_node("Gate", [x.name, g.constant(np.float32(0.5))], [out.name], domain="own")
        )
        g.pool.append(out)


def gate(opset: int) -> onnx.FunctionProto:
    """The function that ``call`` calls."""
    nodes = [
        helper.make_node("Sigmoid", ["a"], ["b"]),
        helper.make_node("Identity", ["b"], ["c"]),
        helper.make_node("Mul", ["c", "factor"], ["d"]),
        helper.make_node("Mul", ["a", "d"], ["e"]),
    ]
    return helper.make_function(
        "own", "Gate", ["a", "factor"], ["e"], nodes, [helper.make_opsetid("", opset)]
    )


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
    branches = [_body(g, which, x) for which in ("then", "else")]
    g.add("If", [condition], Value(g.name(), x.shape), then_branch=branches[0], else_branch=branches[1])


def _body(g: Graph, name: str, x: Value, depth: int = 0) -> onnx.GraphProto:
    """A graph without inputs that computes something of the shape of a value from outside."""
    inner, out = g.name(), g.name()
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    how = g.pick(["plain", "plain", "shape", "constant", "weight", "nested"])
    if how == "shape":
        shape = g.name()
        nodes += [
            helper.make_node("Shape", [x.name], [shape]),
            helper.make_node("Reshape", [x.name, shape], [inner]),
        ]
    elif how == "constant":
        two, four = g.name(), g.name()
        number = numpy_helper.from_array(np.float32(2))
        nodes += [
            helper.make_node("Constant", [], [two], value=number),
            helper.make_node("Mul", [two, two], [four]),
            helper.make_node("Mul", [x.name, four], [inner]),
        ]
    elif how == "weight":
        own = f"w{g.name()}"
        weights.append(numpy_helper.from_array(np.full(x.shape[-1:], g.pick([1, 0.5]), np.float32), own))
        nodes.append(helper.make_node("Mul", [x.name, own], [inner]))
    elif how == "nested" and depth < 2:
        parts = [_body(g, f"{name}.{which}", x, depth + 1) for which in ("then", "else")]
        test = g.constant(np.bool_(g.chance(0.5)))
        nodes.append(helper.make_node("If", [test], [inner], then_branch=parts[0], else_branch=parts[1]))
    else:
        nodes.append(helper.make_node("Identity" if g.chance(0.5) else "Neg", [x.name], [inner]))
    nodes.append(helper.make_node(g.pick(["Relu", "Abs", "Tanh"]), [inner], [out]))
    info = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
    return helper.make_graph(nodes, name, [], [info], weights)


def loop(g: Graph) -> None:
    """Loop over a carried value, with a captured one, and sometimes with what every step leaves."""
    if (x := g.value(lambda v: v.dtype == FLOAT and bool(v.shape))) is None:
        return
    step, go, state, still, inner, out, left = (g.name() for _ in range(7))
    nodes = [
        helper.make_node("Identity", [go], [still]),
        helper.make_node("Mul", [state, g.constant(np.float32(0.5))], [inner]),
        helper.make_node("Add", [inner, x.name], [out]),
        helper.make_node("Identity", [out], [left]),
    ]
    scans = g.chance(0.4) and len(x.shape) < 5
    open_sizes = [None] * len(x.shape)  # a size would be a promise that calls of another size break
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        nodes,
        "body",
        [
            info(step, TensorProto.INT64, []),
            info(go, TensorProto.BOOL, []),
            info(state, TensorProto.FLOAT, open_sizes),
        ],
        [
            info(still, TensorProto.BOOL, []),
            info(out, TensorProto.FLOAT, open_sizes),
            *([info(left, TensorProto.FLOAT, open_sizes)] if scans else []),
        ],
    )
    count = int(g.random.integers(0, 4))
    trips, carried = g.constant(np.int64(count)), Value(g.name(), x.shape)
    outputs = [carried, *([Value(g.name(), (count, *x.shape))] if scans else [])]
    inputs = [trips, g.constant(np.bool_(True)), x.name]
    g.nodes.append(helper.make_node("Loop", inputs, [value.name for value in outputs], body=body))
    g.pool += [value for value in outputs if np.prod(value.shape)]


def scan(g: Graph) -> None:
    """Scan over the first axis, with a captured value."""
    if (x := g.value(lambda v: v.dtype == FLOAT and len(v.shape) >= 2)) is None:
        return
    state, row, new, out = (g.name() for _ in range(4))
    rest = x.shape[1:]
    open_sizes = [None] * len(rest)
    nodes = [
        helper.make_node("Add", [state, row], [new]),
        helper.make_node("Mul", [new, g.constant(np.float32(0.5))], [out]),
    ]
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        nodes,
        "body",
        [info(state, TensorProto.FLOAT, open_sizes), info(row, TensorProto.FLOAT, open_sizes)],
        [info(new, TensorProto.FLOAT, open_sizes), info(out, TensorProto.FLOAT, open_sizes)],
    )
    start = g.constant(np.zeros(rest, np.float32))
    total, rows = Value(g.name(), rest), Value(g.name(), x.shape)
    scan_node = helper.make_node(
        "Scan", [start, x.name], [total.name, rows.name], body=body, num_scan_inputs=1
    )
    g.nodes.append(scan_node)
    g.pool += [total, rows]
