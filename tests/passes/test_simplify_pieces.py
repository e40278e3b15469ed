"""Slices, concats, axes and arithmetic that become one node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt import optimize, passes
from edgeopt.graph import proof
from edgeopt.passes import Change, Context

N = helper.make_node
INT = np.int64
RANDOM = np.random.default_rng(0)


def made(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[Any],
    weights: dict[str, Any] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def after(model: ir.Model, name: str) -> tuple[list[str], Change]:
    """The operators that a pass leaves, proved locally and as a whole."""
    result = model.clone()
    step = passes.make(name)
    assert isinstance(step, passes.Pass)
    change = step.apply(result, Context())
    assert not proof.compare_models(model, result).reason
    onnx.checker.check_model(ir.to_proto(result))
    return [node.op_type for node in result.graph], change


def weight(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("nodes", "shape", "weights", "left"),
    [
        (
            [N("Slice", ["x", "s", "e", "a"], ["b"]), N("Slice", ["b", "s", "e", "c", "t"], ["y"])],
            [4, 5, 6],
            {"s": INT([1]), "e": INT([2**40]), "a": INT([1]), "c": INT([-1]), "t": INT([2])},
            ["Slice"],
        ),
        (
            [N("Slice", ["x", "s", "e", "a"], ["b"]), N("Squeeze", ["b", "a"], ["y"])],
            [4, 5, 6],
            {"s": INT([-1]), "e": INT([2**40]), "a": INT([1])},
            ["Gather"],
        ),
        (
            [N("Gather", ["x", "i"], ["b"], axis=1), N("Unsqueeze", ["b", "a"], ["y"])],
            [4, 5, 6],
            {"i": INT(2), "a": INT([1])},
            ["Gather"],
        ),
        (
            [
                N("Neg", ["x"], ["n"]),
                N("Concat", ["x", "n"], ["b"], axis=1),
                N("Concat", ["n", "b", "x"], ["y"], axis=-2),
            ],
            [4, 5, 6],
            {},
            ["Neg", "Concat"],
        ),
        (
            [N("Expand", ["w", "s"], ["b"]), N("Add", ["x", "b"], ["y"])],
            [40, 50, 60],
            {"w": weight(60), "s": INT([40, 50, 60])},
            ["Add"],
        ),
        (
            [N("Reshape", ["x", "s"], ["b"]), N("Transpose", ["b"], ["y"], perm=[1, 0, 2])],
            [4, 5, 6],
            {"s": INT([20, 1, 6])},
            ["Reshape"],
        ),
        (
            [N("Transpose", ["x"], ["b"], perm=[0, 2, 1, 3]), N("Reshape", ["b", "s"], ["y"])],
            ["n", 2, 1, 6],
            {"s": INT([0, 12])},
            ["Reshape"],
        ),
        (
            [N("ReduceMean", ["x"], ["b"], axes=[1, 2]), N("Reshape", ["b", "s"], ["y"])],
            [4, 5, 6, 7],
            {"s": INT([4, 7])},
            ["ReduceMean"],
        ),
        (
            [N("ReduceMax", ["x"], ["b"], axes=[-1], keepdims=0), N("Unsqueeze", ["b", "s"], ["y"])],
            [4, 5],
            {"s": INT([1])},
            ["ReduceMax"],
        ),
        ([N("ReduceMean", ["x"], ["b"], axes=[1]), N("Relu", ["b"], ["y"])], [4, 1], {}, ["Relu"]),
    ],
)
def test_pieces_become_one(
    nodes: list[onnx.NodeProto], shape: list[Any], weights: dict[str, Any], left: list[str]
) -> None:
    operators, _ = after(made(nodes, shape, weights), "simplify")
    assert operators == left


def test_cuts_of_one_axis_stay_and_say_why() -> None:
    nodes = [N("Slice", ["x", "s", "e", "a"], ["b"]), N("Slice", ["b", "s", "e", "a"], ["y"])]
    weights = {"s": INT([1]), "e": INT([4]), "a": INT([0])}
    operators, change = after(made(nodes, [6], weights), "simplify")
    assert operators == ["Slice", "Slice"]
    assert "both cut the same axis" in [item.reason for item in change.skipped]


def test_results_a_little_larger_are_folded_until_a_hundredth_of_the_weights() -> None:
    nodes = [
        N("Range", ["zero", "size", "one"], ["r"]),
        N("MatMul", ["x", "w"], ["h"]),
        N("MatMul", ["h", "r"], ["y"]),
    ]
    weights = {"zero": np.float32(0), "one": np.float32(1), "size": np.float32(500), "w": weight(8, 500)}
    assert after(made(nodes, [3, 8], weights), "simplify")[0] == ["MatMul", "MatMul"]
    nodes[2] = N("MatMul", ["h", "r"], ["y"])
    weights |= {"size": np.float32(5000), "w": weight(8, 5000)}
    assert "Range" in after(made(nodes, [3, 8], weights), "simplify")[0]


def test_recurrent_steps_become_gemm() -> None:
    nodes = [
        N("Relu", ["x"], ["h"]),
        N("MatMul", ["x", "w"], ["a"]),
        N("MatMul", ["h", "v"], ["b"]),
        N("Add", ["a", "b"], ["c"]),
        N("Add", ["c", "d"], ["y"]),
    ]
    weights = {"w": weight(4, 6), "v": weight(4, 6), "d": weight(6)}
    assert after(made(nodes, [1, 4], weights), "fuse-gemm")[0] == ["Relu", "Gemm", "Gemm"]


def test_a_product_between_reshapes_becomes_gemm() -> None:
    nodes = [
        N("Reshape", ["x", "s"], ["a"]),
        N("MatMul", ["a", "w"], ["b"]),
        N("Add", ["b", "c"], ["d"]),
        N("Reshape", ["d", "t"], ["y"]),
    ]
    weights = {"s": INT([2, 3, 4]), "w": weight(4, 6), "c": weight(6), "t": INT([2, 3, 2, 3])}
    assert after(made(nodes, [2, 12], weights), "fuse-gemm")[0] == ["Reshape", "Gemm", "Reshape"]


@pytest.mark.parametrize(
    ("nodes", "weights", "left"),
    [
        (
            [N("Mul", ["x", "a"], ["b"]), N("Div", ["b", "c"], ["y"])],
            {"a": weight(6), "c": np.float32(3)},
            ["Mul"],
        ),
        (
            [N("Add", ["x", "a"], ["b"]), N("Sub", ["b", "c"], ["y"])],
            {"a": weight(6), "c": weight(5, 6)},
            ["Add"],
        ),
        (
            [N("Exp", ["x"], ["e"]), N("Reciprocal", ["e"], ["r"]), N("Mul", ["x", "r"], ["y"])],
            {},
            ["Exp", "Div"],
        ),
        (
            [N("Mul", ["x", "a"], ["b"]), N("Mul", ["b", "c"], ["y"])],
            {"a": weight(5, 1), "c": weight(6)},
            ["Mul", "Mul"],
        ),
        (
            [N("Mul", ["x", "a"], ["b"]), N("Mul", ["b", "c"], ["y"])],
            {"a": np.float32(1e-30), "c": np.float32(1e-30)},
            ["Mul", "Mul"],
        ),
    ],
)
def test_constants_that_follow_each_other(
    nodes: list[onnx.NodeProto], weights: dict[str, Any], left: list[str]
) -> None:
    assert after(made(nodes, [4, 5, 6], weights), "fuse-arithmetic")[0] == left


def attention() -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    nodes, weights = [], {"s": INT([2, 5, 2, 4]), "scale": np.float32(2)}
    for name in "qkv":
        weights |= {f"w{name}": weight(8, 8), f"b{name}": weight(8)}
        nodes += [
            N("MatMul", ["x", f"w{name}"], [f"p{name}"]),
            N("Add", [f"p{name}", f"b{name}"], [f"a{name}"]),
            N("Reshape", [f"a{name}", "s"], [f"r{name}"]),
            N("Transpose", [f"r{name}"], [name], perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]),
        ]
    nodes += [
        N("MatMul", ["q", "k"], ["scores"]),
        N("Div", ["scores", "scale"], ["scaled"]),
        N("Softmax", ["scaled"], ["soft"], axis=-1),
        N("MatMul", ["soft", "v"], ["y"]),
    ]
    return nodes, weights


def test_the_scale_of_attention_goes_into_the_queries() -> None:
    nodes, weights = attention()
    operators, change = after(made(nodes, [2, 5, 8], weights), "fuse-arithmetic")
    assert "Div" not in operators
    assert [item.rule for item in change.rewrites] == ["factor into a weight further up"]


def test_a_factor_stays_where_the_weight_has_another_reader() -> None:
    nodes = [
        N("MatMul", ["x", "w"], ["a"]),
        N("Transpose", ["a"], ["b"]),
        N("Mul", ["b", "c"], ["y"]),
        N("MatMul", ["x", "w"], ["z"]),
    ]
    model = made(nodes, [3, 4], {"w": weight(4, 6), "c": np.float32(3)}, outputs=["y", "z"])
    assert "Mul" in after(model, "fuse-arithmetic")[0]


@pytest.mark.parametrize("opset", [11, 17])
def test_products_of_one_value_become_one(opset: int) -> None:
    nodes, weights = attention()
    operators, _ = after(made(nodes, [2, 5, 8], weights, opset=opset), "merge-products")
    assert operators[:3] == ["MatMul", "Add", "Split"]
    assert operators.count("MatMul") == 3


def test_gemms_of_one_value_become_one_where_that_leaves_fewer_nodes() -> None:
    nodes = [N("Gemm", ["x", f"w{i}", f"b{i}"][: 3 - i % 2], [f"a{i}"], transB=1) for i in range(3)]
    nodes += [N("Concat", ["a0", "a1", "a2"], ["y"], axis=1)]
    weights = {
        name: weight(i + 1, *tail) for i in range(3) for name, tail in ((f"w{i}", (4,)), (f"b{i}", ()))
    }
    assert after(made(nodes, [3, 4], weights), "merge-products")[0] == ["Gemm", "Split", "Concat"]
    two = [*nodes[:2], N("Concat", ["a0", "a1"], ["y"], axis=1)]
    assert after(made(two, [3, 4], weights), "merge-products")[0] == ["Gemm", "Gemm", "Concat"]


def test_optimize_merges_products_and_compile_does_not() -> None:
    nodes, weights = attention()
    result = optimize(made(nodes, [2, 5, 8], weights))
    assert [node.op_type for node in result.graph.node].count("Split") == 1


def test_slices_that_share_their_first_cut() -> None:
    nodes = [
        N("Slice", ["x", "zero", "e", "one", "two"], ["a"]),
        N("Slice", ["a", "zero", "e", "two", "two"], ["b"]),
        N("Slice", ["a", "one", "e", "two", "two"], ["c"]),
        N("Add", ["b", "c"], ["y"]),
    ]
    weights = {"zero": INT([0]), "one": INT([1]), "two": INT([2]), "e": INT([8])}
    assert after(made(nodes, [2, 8, 8], weights), "simplify")[0] == ["Slice", "Slice", "Add"]


def shuffle(
    shape: list[int], order: list[int], back: list[int]
) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    nodes = [
        N("Reshape", ["x", "s"], ["a"]),
        N("Transpose", ["a"], ["b"], perm=order),
        N("Reshape", ["b", "t"], ["y"]),
    ]
    return nodes, {"s": INT(shape), "t": INT(back)}


@pytest.mark.parametrize(
    ("given", "shape", "order", "back", "left"),
    [
        ([1, 6, 4, 5], [1, 2, 3, 4, 5], [0, 2, 1, 3, 4], [1, 6, 4, 5], ["Gather"]),
        ([1, 12, 4, 5], [1, 3, 2, 2, 4, 5], [0, 1, 4, 2, 5, 3], [1, 3, 8, 10], ["DepthToSpace"]),
        ([1, 12, 4, 5], [1, 2, 2, 3, 4, 5], [0, 3, 4, 1, 5, 2], [1, 3, 8, 10], ["DepthToSpace"]),
        (
            [1, 4, 4, 6],
            [1, 2, 2, 2, 2, 6],
            [0, 1, 3, 2, 4, 5],
            [4, 4, 6],
            ["Reshape", "Transpose", "Reshape"],
        ),
    ],
)
def test_moves_become_one_operator(
    given: list[int], shape: list[int], order: list[int], back: list[int], left: list[str]
) -> None:
    nodes, weights = shuffle(shape, order, back)
    assert after(made(nodes, given, weights), "merge-moves")[0] == left


def test_halves_of_a_shuffle_are_slices() -> None:
    nodes = [
        N("Reshape", ["x", "s"], ["a"]),
        N("Transpose", ["a"], ["b"], perm=[1, 0, 2]),
        N("Reshape", ["b", "t"], ["c"]),
        N("Gather", ["c", "zero"], ["d"], axis=0),
        N("Gather", ["c", "one"], ["e"], axis=0),
        N("Sub", ["d", "e"], ["y"]),
    ]
    weights = {"s": INT([3, 2, 20]), "t": INT([2, 1, 3, 4, 5]), "zero": INT(0), "one": INT(1)}
    assert after(made(nodes, [1, 6, 4, 5], weights), "merge-moves")[0] == ["Slice", "Slice", "Sub"]


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize(
    "pool", [N("GlobalAveragePool", ["x"], ["a"]), N("AveragePool", ["x"], ["a"], kernel_shape=[4, 5])]
)
def test_a_flattened_pool_is_a_mean(pool: onnx.NodeProto, opset: int) -> None:
    nodes = [pool, N("Flatten", ["a"], ["y"])]
    assert after(made(nodes, ["n", 6, 4, 5], opset=opset), "reduce-pools")[0] == ["ReduceMean"]


def test_a_pool_of_windows_stays() -> None:
    nodes = [N("AveragePool", ["x"], ["a"], kernel_shape=[4, 4]), N("Flatten", ["a"], ["y"])]
    assert after(made(nodes, [2, 6, 4, 5]), "reduce-pools")[0] == ["AveragePool", "Flatten"]


def test_both_operands_scaled_need_one_factor() -> None:
    nodes = [
        N("Mul", ["x", "a"], ["b"]),
        N("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        N("Relu", ["t"], ["r"]),
        N("Mul", ["r", "a"], ["c"]),
        N("MatMul", ["b", "c"], ["y"]),
    ]
    assert after(made(nodes, [2, 3, 4], {"a": np.float32(0.5)}), "fuse-arithmetic")[0].count("Mul") == 1
