"""Steps of several nodes: what exporters write for one operator, and subgraphs."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from benchmarks.random_graphs.graph import FLOAT, INT64, Graph, Value


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
