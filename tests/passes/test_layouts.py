from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.graph import proof
from edgeopt.graph.execute import Executor
from edgeopt.passes import Change, Context
from edgeopt.passes.layouts import Layouts

N = helper.make_node
F = np.float32
FIRST = {"perm": [0, 3, 1, 2]}
LAST = {"perm": [0, 2, 3, 1]}


def model(
    nodes: list[Any], shape: list[Any], numbers: dict[str, Any], *outputs: str, opset: int = 21
) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs or ("y",)],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in numbers.items()],
    )
    return ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    )


def applied(before: ir.Model) -> tuple[list[str], Change]:
    after = before.clone()
    change = Layouts().apply(after, Context())
    assert not change.notes
    assert not proof.compare_models(before, after).reason
    assert [value.name for value in after.graph.outputs] == [value.name for value in before.graph.outputs]
    return [node.op_type for node in after.graph], change


def weights(*channels: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        f"w{place}": random.standard_normal((after, before, 3, 3)).astype(F)
        for place, (before, after) in enumerate(itertools.pairwise(channels))
    }


def test_convolutions_of_a_framework_with_channels_last() -> None:
    nodes = [
        N("Transpose", ["x"], ["a"], **FIRST),
        N("Conv", ["a", "w0"], ["b"]),
        N("Transpose", ["b"], ["c"], **LAST),
        N("Add", ["c", "bias"], ["d"]),
        N("Relu", ["d"], ["e"]),
        N("Transpose", ["e"], ["f"], **FIRST),
        N("Conv", ["f", "w1"], ["g"]),
        N("Transpose", ["g"], ["h"], **LAST),
        N("Clip", ["h", "zero", "six"], ["y"]),
    ]
    numbers = weights(3, 4, 5) | {"bias": np.arange(4, dtype=F), "zero": F(0), "six": F(6)}
    operators, change = applied(model(nodes, ["n", 9, 8, 3], numbers))
    assert operators == ["Transpose", "Conv", "Add", "Relu", "Conv", "Transpose", "Clip"] or operators == [
        *("Transpose", "Conv", "Add", "Relu", "Conv", "Clip", "Transpose")
    ]
    assert change.details["moved"] < change.details["moved_before"]


def test_branches_that_meet_in_a_sum_and_a_concatenation() -> None:
    nodes = [
        N("Transpose", ["x"], ["a"], **LAST),
        N("Sigmoid", ["a"], ["b"]),
        N("Transpose", ["x"], ["c"], **LAST),
        N("Tanh", ["c"], ["d"]),
        N("Add", ["b", "d"], ["e"]),
        N("Concat", ["e", "d"], ["f"], axis=-1),
        N("Transpose", ["f"], ["g"], **FIRST),
        N("Conv", ["g", "w0"], ["y"]),
    ]
    operators, _ = applied(model(nodes, ["n", 2, 6, 7], weights(4, 3)))
    assert "Transpose" not in operators


@pytest.mark.parametrize("opset", [13, 21])
def test_reductions_and_splits_find_their_axes(opset: int) -> None:
    reduced = {"axes": [1, 2]} if opset < 18 else {}
    nodes = [
        N("Transpose", ["x"], ["a"], **LAST),
        N("Split", ["a", "parts"], ["b", "c"], axis=3),
        N("Mul", ["b", "c"], ["d"]),
        N("ReduceMean", ["d"] if reduced else ["d", "axes"], ["e"], keepdims=1, **reduced),
        N("Mul", ["d", "e"], ["f"]),
        N("Transpose", ["f"], ["y"], **FIRST),
    ]
    numbers = {"parts": np.array([2, 2])} | ({} if reduced else {"axes": np.array([1, 2])})
    operators, _ = applied(model(nodes, [2, 4, 6, 7], numbers, opset=opset))
    assert operators == ["Split", "Mul", "ReduceMean", "Mul"]


def test_a_transpose_moves_to_where_there_is_less() -> None:
    nodes = [
        N("Transpose", ["x"], ["a"], **LAST),
        N("ReduceMax", ["a", "axes"], ["b"], keepdims=1),
        N("Relu", ["b"], ["y"]),
    ]
    operators, change = applied(model(nodes, [1, 8, 32, 32], {"axes": np.array([1, 2])}))
    assert operators.count("Transpose") <= 1
    assert change.details["moved"] < 300


def test_outputs_keep_their_order_of_axes() -> None:
    nodes = [
        N("Transpose", ["x"], ["y"], **LAST),
        N("Relu", ["y"], ["r"]),
        N("Transpose", ["r"], ["z"], **FIRST),
        N("Identity", ["z"], ["i"]),
        N("Transpose", ["i"], ["u"], **LAST),
        N("Neg", ["u"], ["v"]),
    ]
    before = model(nodes, [2, 3, 4, 5], {}, "y", "z", "v")
    operators, _ = applied(before)
    assert operators.count("Transpose") <= 2


def test_what_a_branch_captures_keeps_its_order() -> None:
    before = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[2, 3, 4] x, bool c) => (float[2, 3, 4] y)
        {
            a = Transpose <perm = [0, 2, 1]> (x)
            b = Relu(a)
            d = Transpose <perm = [0, 2, 1]> (b)
            y = If(c) <then_branch = t () => (float[2, 3, 4] g1) { g1 = Sub(d, x) },
                       else_branch = u () => (float[2, 3, 4] g2) {
                           h = Transpose <perm = [0, 2, 1]> (b)
                           g2 = Add(h, x) }>
        }
    """)
    after = before.clone()
    Layouts().apply(after, Context())
    assert not proof.compare_models(before, after).reason


def test_what_a_loop_both_starts_with_and_captures_keeps_its_order() -> None:
    """Seed 5442 of the fuzzer."""
    before = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[2, 3, 4] x, int64 n) => (float[2, 3, 4] y, float[2, 4, 3] z)
        <bool go = {1}>
        {
            a = Transpose <perm = [0, 2, 1]> (x)
            b = Relu(a)
            d = Transpose <perm = [0, 2, 1]> (b)
            y = Loop(n, go, d) <body = t (int64 i, bool c, float[2, 3, 4] s) => (bool k, float[2, 3, 4] r) {
                k = Identity(c)
                r = Add(s, d) }>
            z = Transpose <perm = [0, 2, 1]> (d)
        }
    """)
    after = before.clone()
    change = Layouts().apply(after, Context())
    assert not change.notes
    feeds = {"x": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "n": np.array(2)}
    with Executor(before) as one, Executor(after) as two:
        for left, right in zip(one.run(feeds).values(), two.run(feeds).values(), strict=True):
            assert np.array_equal(left, right)


def test_what_cannot_be_less_stays_as_it_is() -> None:
    nodes = [N("Transpose", ["x"], ["a"], **LAST), N("Flatten", ["a"], ["y"])]
    before = model(nodes, [1, 3, 4, 5], {})
    operators, change = applied(before)
    assert operators == ["Transpose", "Flatten"]
    assert change.summary == "none"


def test_a_graph_without_inputs_and_transposes() -> None:
    before = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 21]>
        g () => (float y) { y = Constant <value_float = 1.0> () }
    """)
    assert Layouts().apply(before, Context()).summary == "none"


def test_random_graphs_stay_equal() -> None:
    random = np.random.default_rng(0)
    fewer = 0
    for _ in range(30):
        nodes, pool = [], ["x"]
        shapes: dict[str, tuple[int, ...]] = {"x": (2, 3, 4, 5)}
        for step in range(int(random.integers(4, 16))):
            source, made = str(random.choice(pool)), f"v{step}"
            shape, kind = shapes[source], int(random.integers(6))
            alike = [name for name in pool if shapes[name] == shape]
            if kind <= 1:
                order = [int(axis) for axis in random.permutation(4)]
                nodes.append(N("Transpose", [source], [made], perm=order))
                shapes[made] = tuple(shape[axis] for axis in order)
            elif kind == 2:
                nodes.append(N("Add", [source, str(random.choice(alike))], [made]))
                shapes[made] = shape
            elif kind == 3:
                axis = int(random.integers(4))
                nodes.append(N("Concat", [source, str(random.choice(alike))], [made], axis=axis))
                shapes[made] = tuple(size * (1 + (place == axis)) for place, size in enumerate(shape))
            elif kind == 4:
                nodes.append(N("Softmax", [source], [made], axis=-1))
                shapes[made] = shape
            else:
                nodes.append(N("Sigmoid", [source], [made]))
                shapes[made] = shape
            if np.prod(shapes[made]) > 4000:
                nodes.pop()
                del shapes[made]
                continue
            pool.append(made)
        ends = list(dict.fromkeys([pool[-1], str(random.choice(pool))]))
        before = model(nodes, [2, 3, 4, 5], {}, *(name for name in ends if name != "x"))
        if not before.graph.outputs:
            continue
        operators, _ = applied(before)
        fewer += operators.count("Transpose") < sum(node.op_type == "Transpose" for node in before.graph)
    assert fewer >= 5


def test_a_reduction_of_unknown_rank_is_left_alone() -> None:
    """Seed 108 of the fuzzer."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 2, 3, 1]),
        helper.make_node("ReduceMean", ["b"], ["y"], axes=[-1]),
        helper.make_node("Relu", ["a"], ["z"]),
    ]
    info = helper.make_tensor_value_info
    given = [info("x", 1, [1, 2, 3, 4]), info("b", 1, None)]
    graph = helper.make_graph(nodes, "test", given, [info("y", 1, None), info("z", 1, None)])
    opsets = [helper.make_opsetid("", 17)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    Layouts().apply(model, Context(verify="off"))
    assert [node.op_type for node in model.graph] == ["Transpose", "ReduceMean", "Relu"]
