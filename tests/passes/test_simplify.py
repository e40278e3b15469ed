from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt import passes
from edgeopt.graph import proof
from edgeopt.graph.names import original_names
from edgeopt.optimization import optimize
from edgeopt.passes import Change, Context


def made(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[Any]],
    outputs: Sequence[str],
    weights: dict[str, Any] | None = None,
    opset: int = 17,
    dtypes: dict[str, int] | None = None,
) -> ir.Model:
    dtypes = dtypes or {}
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(k, dtypes.get(k, TensorProto.FLOAT), v) for k, v in inputs.items()],
        [helper.make_tensor_value_info(k, dtypes.get(k, TensorProto.FLOAT), None) for k in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (weights or {}).items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def simplified(model: ir.Model, **options: Any) -> tuple[ir.Model, Change]:
    after = model.clone()
    step = passes.make("simplify")
    assert isinstance(step, passes.Pass)
    change = step.apply(after, Context(**options))
    difference = proof.compare_models(model, after)
    assert not difference.reason
    onnx.checker.check_model(ir.to_proto(after))
    return after, change


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


N = helper.make_node
INT = np.int64


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([N("Identity", ["x"], ["a"])], {}),
        ([N("Dropout", ["x"], ["a"])], {}),
        ([N("Cast", ["x"], ["a"], to=TensorProto.FLOAT)], {}),
        ([N("Cast", ["x"], ["b"], to=TensorProto.DOUBLE), N("Cast", ["b"], ["a"], to=TensorProto.FLOAT)], {}),
        ([N("Transpose", ["x"], ["a"], perm=[0, 1, 2])], {}),
        (
            [
                N("Transpose", ["x"], ["b"], perm=[2, 0, 1]),
                N("Transpose", ["b"], ["a"], perm=[1, 2, 0]),
            ],
            {},
        ),
        ([N("Reshape", ["x", "s"], ["a"])], {"s": INT([0, 3, 4])}),
        ([N("Slice", ["x", "s", "e"], ["a"])], {"s": INT([0]), "e": INT([2**40])}),
        ([N("Pad", ["x", "s"], ["a"])], {"s": INT([0] * 6)}),
        ([N("Tile", ["x", "s"], ["a"])], {"s": INT([1, 1, 1])}),
        ([N("Concat", ["x"], ["a"], axis=1)], {}),
        ([N("Add", ["x", "z"], ["a"])], {"z": np.zeros((3, 4), np.float32)}),
        ([N("Mul", ["o", "x"], ["a"])], {"o": np.ones((), np.float32)}),
        ([N("Div", ["x", "o"], ["a"])], {"o": np.ones((1,), np.float32)}),
        ([N("Neg", ["x"], ["b"]), N("Neg", ["b"], ["a"])], {}),
        ([N("Expand", ["x", "s"], ["a"])], {"s": INT([1, 3, 1])}),
        ([N("Unsqueeze", ["x", "s"], ["b"]), N("Squeeze", ["b", "s"], ["a"])], {"s": INT([1])}),
        (
            [N("Shape", ["x"], ["s"]), N("Reshape", ["x", "s"], ["a"])],
            {},
        ),
        ([N("Where", ["c", "x", "z"], ["a"])], {"c": np.array([True]), "z": np.zeros((), np.float32)}),
    ],
    ids=lambda item: "-".join(node.op_type for node in item) if isinstance(item, list) else "",
)
def test_what_does_nothing_goes(nodes: list[onnx.NodeProto], weights: dict[str, Any]) -> None:
    model = made([*nodes, N("Relu", ["a"], ["y"])], {"x": ["batch", 3, 4]}, ["y"], weights)
    after, _ = simplified(model)
    assert operators(after) == ["Relu"]
    assert not after.graph.initializers


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([N("Cast", ["x"], ["b"], to=TensorProto.INT32), N("Cast", ["b"], ["a"], to=TensorProto.FLOAT)], {}),
        (
            [N("Slice", ["x", "s", "e", "t", "p"], ["a"])],
            {"s": INT([-1]), "e": INT([-99]), "t": INT([1]), "p": INT([-1])},
        ),
        ([N("Add", ["x", "z"], ["a"])], {"z": np.zeros((5, 1, 3, 4), np.float32)}),
        ([N("Pow", ["o", "x"], ["a"])], {"o": np.ones((), np.float32)}),
        ([N("Expand", ["x", "s"], ["a"])], {"s": INT([2, 1, 1, 1])}),
    ],
)
def test_what_does_something_stays(nodes: list[onnx.NodeProto], weights: dict[str, Any]) -> None:
    model = made([*nodes, N("Relu", ["a"], ["y"])], {"x": ["batch", 3, 4]}, ["y"], weights)
    after, _ = simplified(model)
    assert operators(after) == [*(node.op_type for node in nodes), "Relu"]


def test_a_reshape_by_the_batch_becomes_constant() -> None:
    nodes = [
        N("Shape", ["x"], ["shape"]),
        N("Gather", ["shape", "zero"], ["batch"]),
        N("Unsqueeze", ["batch", "axis"], ["b"]),
        N("Concat", ["b", "rest"], ["target"], axis=0),
        N("Reshape", ["x", "target"], ["y"]),
    ]
    weights = {"zero": INT(0), "axis": INT([0]), "rest": INT([2, 6])}
    after, _ = simplified(made(nodes, {"x": ["n", 3, 4]}, ["y"], weights))
    assert operators(after) == ["Reshape"]
    (shape,) = after.graph.initializers.values()
    assert shape.const_value is not None
    assert shape.const_value.numpy().tolist() == [-1, 2, 6]


def test_a_reshape_by_two_unknown_sizes_copies_them() -> None:
    nodes = [
        N("Shape", ["x"], ["shape"]),
        N("Slice", ["shape", "zero", "two"], ["sizes"]),
        N("Concat", ["sizes", "rest"], ["target"], axis=0),
        N("Reshape", ["x", "target"], ["y"]),
    ]
    weights = {"zero": INT([0]), "two": INT([2]), "rest": INT([2, 2])}
    after, _ = simplified(made(nodes, {"x": ["n", "t", 4]}, ["y"], weights))
    assert operators(after) == ["Reshape"]


def test_sizes_that_cannot_be_written_stay_computed() -> None:
    nodes = [
        N("Shape", ["x"], ["shape"]),
        N("Gather", ["shape", "order"], ["target"]),
        N("Reshape", ["x", "target"], ["y"]),
    ]
    after, change = simplified(made(nodes, {"x": ["n", "t"]}, ["y"], {"order": INT([1, 0])}))
    assert operators(after) == ["Shape", "Gather", "Reshape"]
    assert "more than one size is not known before the graph runs" in [item.reason for item in change.skipped]


def test_constants_are_folded_unless_the_file_would_grow() -> None:
    small = [N("Mul", ["a", "b"], ["c"]), N("Add", ["x", "c"], ["y"])]
    weights = {"a": np.ones(4, np.float32), "b": np.full(4, 2, np.float32)}
    after, change = simplified(made(small, {"x": ["n", 4]}, ["y"], weights))
    assert operators(after) == ["Add"]
    assert [item.rule for item in change.rewrites] == ["constant folding"]

    large = [N("Expand", ["a", "s"], ["c"]), N("MatMul", ["x", "c"], ["y"])]
    weights = {"a": np.full(1, 2, np.float32), "s": INT([1000, 1000])}
    before = made(large, {"x": [1000, 1000]}, ["y"], weights)
    after, change = simplified(before)
    assert operators(after) == ["Expand", "MatMul"]
    assert [item.reason for item in change.skipped] == ["its result is larger than what it is made from"]


def test_random_numbers_are_not_folded() -> None:
    nodes = [N("RandomNormal", [], ["r"], shape=[4], seed=1.0), N("Mul", ["x", "r"], ["y"])]
    before = made(nodes, {"x": ["n", 4]}, ["y"])
    step = passes.make("simplify")
    assert isinstance(step, passes.Pass)
    step.apply(before, Context(verify="off"))
    assert operators(before) == ["RandomNormal", "Mul"]


def test_quantization_of_weights_is_not_folded() -> None:
    nodes = [
        N("QuantizeLinear", ["w", "s", "z"], ["q"]),
        N("DequantizeLinear", ["q", "s", "z"], ["d"]),
        N("MatMul", ["x", "d"], ["y"]),
    ]
    weights = {"w": np.ones((4, 4), np.float32), "s": np.float32(0.1), "z": np.int8(0)}
    after, _ = simplified(made(nodes, {"x": ["n", 4]}, ["y"], weights))
    assert operators(after) == ["QuantizeLinear", "DequantizeLinear", "MatMul"]


def test_equal_nodes_and_equal_weights_are_merged() -> None:
    nodes = [
        N("MatMul", ["x", "v"], ["a"], name="one"),
        N("MatMul", ["x", "w"], ["b"], name="two"),
        N("Add", ["a", "b"], ["y"]),
    ]
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    after, _ = simplified(made(nodes, {"x": ["n", 4]}, ["y"], {"v": weight, "w": weight.copy()}))
    assert operators(after) == ["MatMul", "Add"]
    assert list(after.graph.initializers) == ["v"]
    assert original_names(after.graph[0]) == ("one", "two")


def test_equal_nodes_are_not_merged_into_one_that_is_gone() -> None:
    """Seed 318 of the fuzzer: of three equal nodes the first two are read by nobody."""
    nodes = [
        N("QuantizeLinear", ["x", "s", "z"], ["q"]),
        *(N("DequantizeLinear", ["q", "s", "z"], [name]) for name in ("unread", "unread too", "a")),
        N("Relu", ["a"], ["y"]),
    ]
    weights = {"s": np.float32(0.1), "z": np.int8(0)}
    after, _ = simplified(made(nodes, {"x": ["n", 4]}, ["y"], weights), verify="off")
    assert operators(after) == ["QuantizeLinear", "DequantizeLinear", "Relu"]


def test_equal_nodes_that_cannot_be_run_stay_and_are_reported() -> None:
    model = made(
        [N("Relu", ["x"], ["a"]), N("Relu", ["x"], ["b"]), N("Add", ["a", "b"], ["y"])],
        {"x": ["n", 4]},
        ["y"],
    )
    model.graph.inputs[0].shape = None
    for node in model.graph:
        node.outputs[0].shape, node.outputs[0].type = None, None
    step = passes.make("simplify")
    assert isinstance(step, passes.Pass)
    change = step.apply(model, Context())
    assert operators(model) == ["Relu", "Relu", "Add"]
    assert not change.rewrites
    assert "'equal nodes'" in change.notes[0]
    assert "unproved" in change.notes[0]


def test_operators_of_unknown_domains_are_not_merged() -> None:
    nodes = [N("Dice", ["x"], [name], domain="nobody") for name in "ab"]
    graph = helper.make_graph(
        [*nodes, N("Add", ["a", "b"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nobody", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    step = passes.make("simplify")
    assert isinstance(step, passes.Pass)
    step.apply(model, Context(verify="off"))
    assert operators(model) == ["Dice", "Dice", "Add"]


def test_what_nothing_reads_goes() -> None:
    nodes = [N("Relu", ["x"], ["y"]), N("MatMul", ["x", "w"], ["unread"])]
    after, _ = simplified(made(nodes, {"x": ["n", 4]}, ["y"], {"w": np.ones((4, 4), np.float32)}))
    assert operators(after) == ["Relu"]
    assert not after.graph.initializers


def branch(name: str, operator: str) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["n", 4])
    return helper.make_graph(
        [N("Identity", ["x"], [f"{name}_a"]), N(operator, [f"{name}_a"], [f"{name}_y"])], name, [], [output]
    )


@pytest.mark.parametrize(("condition", "kept"), [(True, "Relu"), (False, "Neg")])
def test_a_constant_condition_leaves_its_branch(condition: bool, kept: str) -> None:
    choice = N("If", ["c"], ["z"], then_branch=branch("yes", "Relu"), else_branch=branch("no", "Neg"))
    after, _ = simplified(
        made([choice, N("Abs", ["z"], ["y"])], {"x": ["n", 4]}, ["y"], {"c": np.array(condition)})
    )
    assert operators(after) == [kept, "Abs"]


def test_branches_are_simplified() -> None:
    choice = N("If", ["c"], ["y"], then_branch=branch("yes", "Relu"), else_branch=branch("no", "Neg"))
    model = made([choice], {"x": ["n", 4], "c": []}, ["y"], dtypes={"c": TensorProto.BOOL})
    after, _ = simplified(model)
    assert [node.op_type for node in after.graph.all_nodes()] == ["If", "Neg", "Relu"]


def test_functions_are_inlined_and_simplified() -> None:
    body = helper.make_function(
        "own",
        "Twice",
        ["a"],
        ["b"],
        [N("Identity", ["a"], ["i"]), N("Add", ["i", "i"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    model = made([N("Relu", ["x"], ["a"])], {"x": ["n", 4]}, ["a"])
    proto = ir.to_proto(model)
    proto.graph.node.append(N("Twice", ["a"], ["y"], domain="own"))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4]))
    proto.functions.append(body)
    proto.opset_import.append(helper.make_opsetid("own", 1))
    after, change = simplified(ir.from_proto(proto))
    assert operators(after) == ["Relu", "Add"]
    assert change.notes == ["1 functions were inlined"]


def test_simplifying_twice_changes_nothing(zoo: Any) -> None:
    model = ir.load(zoo / "models" / "cct_vit_cifar10.onnx")
    once, change = simplified(model)
    assert change.summary == "411 -> 147 nodes"
    _, again = simplified(once)
    assert not again.rewrites


def test_the_signature_stays() -> None:
    nodes = [N("Identity", ["x"], ["y"]), N("Identity", ["y"], ["z"])]
    after, _ = simplified(made(nodes, {"x": ["n", 4]}, ["y", "z"]))
    assert [value.name for value in after.graph.inputs] == ["x"]
    assert [value.name for value in after.graph.outputs] == ["y", "z"]


def test_a_limit_makes_a_prefix_of_the_rewrites() -> None:
    nodes = [
        N("Identity", ["x"], ["a"]),
        N("Neg", ["a"], ["b"]),
        N("Neg", ["b"], ["c"]),
        N("Relu", ["c"], ["y"]),
    ]
    model = made(nodes, {"x": ["n", 4]}, ["y"])
    every: list[str] = []
    for limit in range(4):
        _, change = simplified(model, limit=limit)
        rules = [item.rule for item in change.rewrites]
        assert len(rules) == min(limit, 2)
        assert rules[: len(every)] == every
        every = rules


@pytest.mark.parametrize("batch", [2, "n"])
def test_a_state_that_starts_at_zero_is_dropped(batch: Any) -> None:
    random = np.random.default_rng(0)
    weights = {
        "w": random.normal(size=(1, 12, 3)).astype(np.float32),
        "r": random.normal(size=(1, 12, 4)).astype(np.float32),
        "b": random.normal(size=(1, 24)).astype(np.float32),
        "one": INT([1]),
        "four": INT([4]),
        "place": INT([1]),
    }
    nodes = [
        N("Shape", ["x"], ["shape"]),
        N("Gather", ["shape", "place"], ["batch"]),
        N("Concat", ["one", "batch", "four"], ["size"], axis=0),
        N("ConstantOfShape", ["size"], ["h"]),
        N("GRU", ["x", "w", "r", "b", "", "h"], ["", "y"], hidden_size=4),
    ]
    after, _ = simplified(made(nodes, {"x": [5, batch, 3]}, ["y"], weights))
    assert operators(after) == ["GRU"]
    assert len([value for value in after.graph[0].inputs if value is not None]) == 4


def test_what_a_range_reads_as_a_vector_stays_hidden() -> None:
    """ONNX's own body of AffineGrid: onnxruntime refuses a Range of constants that are no scalars."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (int64[2] x) => (int64[n] y)
        <int64[1] four = {4}, int64 two = {2}, int64 zero = {0}, int64 one = {1}>
        {
            count = Size(x)
            yes = Equal(count, two)
            end = If(yes) <then_branch = t () => (int64[a] p) { p = Identity(four) },
                           else_branch = u () => (int64[b] q) { q = Identity(x) }>
            y = Range(zero, end, one)
        }
    """)
    for verify in ("off", "fast"):
        result = optimize(model, verify=verify)
        session = onnxruntime.InferenceSession(result.SerializeToString())
        assert session.run(None, {"x": np.zeros(2, np.int64)})[0].tolist() == [0, 1, 2, 3]


def test_a_branch_taken_brings_what_only_its_own_branches_read() -> None:
    """Even where no proof would have noticed that it is missing."""
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[4] x, bool c) => (float[4] y)
        <bool yes = {1}>
        {
            y = If(yes) <
                then_branch = t () => (float[4] p) {
                    a = Neg(x)
                    b = Exp(a)
                    p = If(c) <then_branch = v () => (float[4] q) { q = Sqrt(b) },
                               else_branch = w () => (float[4] r) { r = Add(b, x) }>
                },
                else_branch = u () => (float[4] s) { s = Identity(x) }
            >
        }
    """)
    before = model.clone()
    step = passes.make("simplify")
    assert isinstance(step, passes.Pass)
    change = step.apply(model, Context(verify="off"))
    assert any(item.rule == "constant condition" for item in change.rewrites)
    assert not proof.compare_models(before, model.clone()).reason
