from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeopt.graph import proof, seeds
from edgeopt.graph.names import name_nodes
from edgeopt.graph.rewriting import Replacement, Result, Rule, constant, initializer, node, rewrite, rule
from edgeopt.optimization import optimized
from edgeopt.passes import Context

N = helper.make_node
F = np.float32


@pytest.fixture(autouse=True)
def reproducers_beside_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def model(
    nodes: list[Any],
    inputs: dict[str, list[Any]],
    numbers: dict[str, Any],
    dtypes: dict[str, int] | None = None,
) -> ir.Model:
    dtypes = dtypes or {}
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(k, dtypes.get(k, TensorProto.FLOAT), v) for k, v in inputs.items()],
        [helper.make_tensor_value_info("y", dtypes.get("y", TensorProto.FLOAT), None)],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in numbers.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


# ---- wrong rules, each of the kind that a person writes by mistake


@rule("Relu")
def relu_is_abs(relu: ir.Node) -> Result:
    return node("Abs", [relu.inputs[0]])


@rule("Reshape")
def forget_the_batch(reshape: ir.Node) -> Result:
    if reshape.inputs[1] is None or reshape.inputs[1].const_value is not None:
        return None
    return node("Reshape", [reshape.inputs[0], initializer("shape", np.array([1, -1], np.int64))])


@rule("Conv -> Add")
def transpose_the_bias(conv: ir.Node, add: ir.Node) -> Result:
    numbers = constant(add.inputs[1])
    if numbers is None:
        return None
    return node("Conv", [conv.inputs[0], conv.inputs[1], initializer("b", numbers.reshape(-1)[::-1])])


@rule("Softmax")
def softmax_of_another_axis(softmax: ir.Node) -> Result:
    axis = softmax.attributes.get_int("axis", -1)
    return node("Softmax", [softmax.inputs[0]], {"axis": 0}) if axis else None


@rule("Shape")
def shape_as_it_was_once(shape: ir.Node) -> Result:
    return initializer(shape.outputs[0].name or "", np.array([3, 4], np.int64))


@rule("Sqrt")
def sqrt_of_abs(root: ir.Node) -> Result:
    if (producer := root.inputs[0]) is None or producer.producer() is not None:
        return None
    return node("Sqrt", [node("Abs", [root.inputs[0]]).outputs[0]])


@rule("Gather")
def gather_the_first(gather: ir.Node) -> Result:
    data = gather.inputs[0]
    return node("Gather", [data, initializer("i", np.zeros((1, 2), np.int64))])


@rule("Where", name="always")
def condition_is_true(where: ir.Node) -> Result:
    return where.inputs[1]


CONV = {
    "w": np.random.default_rng(0).normal(size=(4, 2, 3, 3)).astype(F),
    "b": np.arange(4, dtype=F).reshape(4, 1, 1),
}


@rule("Clip")
def forget_the_upper_limit(clip: ir.Node) -> Result:
    return node("Clip", clip.inputs[:2]) if len(clip.inputs) > 2 else None


WRONG: dict[str, tuple[Rule, Callable[[list[Any]], ir.Model]]] = {
    "limit": (
        forget_the_upper_limit,
        lambda s: model(
            [N("Clip", ["x", "low", "high"], ["y"])], {"x": [*s, 4]}, {"low": F(0), "high": F(99)}
        ),
    ),
    "activation": (relu_is_abs, lambda s: model([N("Relu", ["x"], ["y"])], {"x": [*s, 4]}, {})),
    "reshape": (
        forget_the_batch,
        lambda s: model(
            [
                N("Shape", ["x"], ["all"]),
                N("Gather", ["all", "zero"], ["n"]),
                N("Concat", ["n", "rest"], ["shape"], axis=0),
                N("Reshape", ["x", "shape"], ["y"]),
            ],
            {"x": [*s, 4]},
            {"zero": np.array([0]), "rest": np.array([-1])},
        ),
    ),
    "bias": (
        transpose_the_bias,
        lambda s: model(
            [N("Conv", ["x", "w"], ["a"]), N("Add", ["a", "b"], ["y"])], {"x": [s[0], 2, 8, "w_"]}, CONV
        ),
    ),
    "axis": (softmax_of_another_axis, lambda s: model([N("Softmax", ["x"], ["y"])], {"x": [*s, 4]}, {})),
    "shape": (
        shape_as_it_was_once,
        lambda s: model(
            [N("Shape", ["x"], ["a"]), N("Cast", ["a"], ["y"], to=TensorProto.FLOAT)], {"x": [s[0], 5]}, {}
        ),
    ),
    "domain": (sqrt_of_abs, lambda s: model([N("Sqrt", ["x"], ["y"])], {"x": [*s, 4]}, {})),
    "index": (
        gather_the_first,
        lambda s: model(
            [N("Gather", ["x", "i"], ["y"])], {"x": [7, 4], "i": [s[0], 2]}, {}, {"i": TensorProto.INT64}
        ),
    ),
    "condition": (
        condition_is_true,
        lambda s: model(
            [N("Greater", ["x", "z"], ["c"]), N("Where", ["c", "x", "z"], ["a"]), N("Neg", ["a"], ["y"])],
            {"x": [*s, 4]},
            {"z": F(0)},
        ),
    ),
}


@pytest.mark.parametrize("shape", [[3], ["batch"], [None], ["batch", "time"]], ids=str)
@pytest.mark.parametrize("kind", list(WRONG))
def test_every_planted_wrong_rule_is_caught(kind: str, shape: list[Any]) -> None:
    wrong, build = WRONG[kind]
    before = build(shape)
    name_nodes(before)
    after = before.clone()
    change = rewrite(after, [wrong], Context())
    assert not change.rewrites
    assert ir.to_proto(after).graph.node == ir.to_proto(before).graph.node
    assert "was left out, its proof failed" in change.notes[0]


def test_a_reproducer_shows_the_failure() -> None:
    after = model([N("Relu", ["x"], ["y"])], {"x": ["batch", 4]}, {})
    change = rewrite(after, [relu_is_abs], Context())
    folder = Path(change.notes[0].split("reproducer in ")[1])
    inputs = dict(np.load(folder / "inputs.npz"))
    outputs = []
    for side in ("before.onnx", "after.onnx"):
        session = onnxruntime.InferenceSession(folder / side, providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {item.name: inputs[item.name] for item in session.get_inputs()})[0])
    assert not np.allclose(*outputs)


def test_an_operator_that_cannot_run_leaves_its_rewrite_unproved() -> None:
    after = model([N("Relu", ["x"], ["a"]), N("Relu", ["a"], ["y"])], {"x": ["batch", 4]}, {})
    for item in after.graph:
        item.outputs[0].shape = None
        item.outputs[0].type = None
    after.graph.inputs[0].shape = None

    @rule("Relu -> Relu")
    def once(first: ir.Node, _: ir.Node) -> Result:
        return node("Relu", [first.inputs[0]])

    change = rewrite(after, [once], Context())
    assert not change.rewrites
    assert "was left out, unproved" in change.notes[0]


def test_only_the_region_is_run() -> None:
    """A part of the model that onnxruntime does not know is no hindrance elsewhere."""
    nodes = [N("Neg", ["x"], ["a"]), N("Neg", ["a"], ["b"]), N("Relu", ["b"], ["y"])]
    after = model(nodes, {"x": ["n", 4]}, {})
    unknown = ir.node("Unknown", [after.graph.outputs[0]], domain="nobody")
    unknown.outputs[0].name = "z"
    unknown.outputs[0].type, unknown.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["n", 4])
    after.graph.append(unknown)
    after.graph.outputs[0] = unknown.outputs[0]
    after.opset_imports["nobody"] = 1

    @rule("Neg -> Neg")
    def cancel(first: ir.Node, _: ir.Node) -> Result:
        return first.inputs[0]

    change = rewrite(after, [cancel], Context())
    assert [item.error for item in change.rewrites] == [0.0]


def test_constants_in_constant_nodes_are_used_and_not_drawn() -> None:
    numbers = helper.make_tensor("numbers", TensorProto.FLOAT, [4], [1, 2, 3, 4])
    nodes = [
        N("Constant", [], ["c"], value=numbers),
        N("Mul", ["x", "c"], ["a"]),
        N("Div", ["a", "c"], ["y"]),
    ]
    after = model(nodes, {"x": ["n", 4]}, {})

    @rule("Mul -> Div")
    def cancel(first: ir.Node, second: ir.Node) -> Result:
        one, two = constant(first.inputs[1]), constant(second.inputs[1])
        assert one is not None
        assert two is not None
        return node("Mul", [first.inputs[0], initializer("quotient", one / two)])

    change = rewrite(after, [cancel], Context())
    assert [item.rule for item in change.rewrites] == ["Mul -> Div"]
    assert not change.notes


def test_several_outputs_are_compared() -> None:
    nodes = [N("Split", ["x"], ["a", "b"], num_outputs=2, axis=1), N("Sub", ["a", "b"], ["y"])]
    before = model(nodes, {"x": ["n", 4]}, {})

    @rule("Split", name="swap")
    def swap(split: ir.Node) -> Result:
        new = ir.node("Split", [split.inputs[0]], {"num_outputs": 2, "axis": 1}, num_outputs=2)
        return Replacement(dict(zip(split.outputs, reversed(new.outputs), strict=True)))

    assert not rewrite(before, [swap], Context()).rewrites


@pytest.mark.parametrize(
    ("before", "after", "equal"),
    [
        (F([1, 2]), F([1, 2.00001]), True),
        (F([1, 2]), F([1, 2.0001]), False),
        (F([1e-9, 2]), F([0, 2]), True),
        (F([np.nan, 1]), F([np.nan, 1]), True),
        (F([np.nan, 1]), F([0, 1]), False),
        (F([np.inf, 1]), F([-np.inf, 1]), False),
        (F([1, 2]), F([np.nan, 2]), False),
        (F([0, 0]), F([0, 0]), True),
        (F([[1]]), F([1]), False),
        (np.array([1, 2]), np.array([1, 3]), False),
        (F([1]), np.float64([1]), False),
        (np.array([True]), np.array([True]), True),
    ],
)
def test_what_equal_means(before: np.ndarray, after: np.ndarray, equal: bool) -> None:
    assert (proof.compare(before, after).reason == "") is equal


def test_equal_names_of_sizes_are_bound_equally_and_others_to_different_sizes() -> None:
    x = ir.Value(name="x", shape=ir.Shape(["n", "t"]), type=ir.TensorType(ir.DataType.FLOAT))
    z = ir.Value(name="z", shape=ir.Shape(["t", None]), type=ir.TensorType(ir.DataType.FLOAT))
    many, one = seeds.bindings([x, z])
    assert sorted(many) == ["n", "t", "z[1]"]
    assert len(set(many.values())) == 3
    assert set(one.values()) == {1}
    first, second = seeds.array(x, many, 0), seeds.array(z, many, 0)
    assert first is not None and second is not None
    assert first.shape[1] == second.shape[0]


def test_indices_stay_inside_what_they_index() -> None:
    gathered = model(
        [N("Gather", ["w", "i"], ["a"]), N("Relu", ["a"], ["y"])],
        {"i": ["n", 20]},
        {"w": np.zeros((5, 2), F)},
        {"i": TensorProto.INT64},
    )
    drawn = seeds.array(gathered.graph.inputs[0], {"n": 50}, 0)
    assert drawn is not None
    assert set(np.unique(drawn)) == set(range(5))


# ---- random graphs through the exact passes

UNARY = ["Relu", "Neg", "Sigmoid", "Identity", "Abs"]
STEP = st.one_of(
    st.tuples(st.just("unary"), st.sampled_from(UNARY), st.integers(0, 9)),
    st.tuples(st.just("binary"), st.sampled_from(["Add", "Mul", "Sub", "Max"]), st.integers(0, 99)),
    st.tuples(st.just("scale"), st.sampled_from(["Add", "Mul", "Div"]), st.sampled_from([0.5, 1.0, 2.0])),
    st.tuples(st.just("conv"), st.integers(0, 1), st.integers(0, 9)),
    st.tuples(st.just("norm"), st.just(0), st.integers(0, 9)),
    st.tuples(st.just("transpose"), st.permutations([2, 3]), st.just(0)),
    st.tuples(st.just("pad"), st.integers(0, 1), st.just(0)),
    st.tuples(st.just("reshape"), st.just(0), st.just(0)),
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(STEP, min_size=2, max_size=10))
def test_random_graphs_stay_equal(steps: list[tuple[str, Any, Any]]) -> None:
    random = np.random.default_rng(0)
    nodes, numbers = [], {}
    live = ["x"]
    for place, (kind, what, pick) in enumerate(steps):
        name, last = f"v{place}", live[-1]
        if kind == "unary":
            nodes.append(N(what, [live[-1 - pick % min(2, len(live))]], [name]))
        elif kind == "binary":
            nodes.append(N(what, [last, last if pick % 2 else "x"][: 1 + 1], [name]))
        elif kind == "scale":
            numbers[f"c{place}"] = F(pick) if what == "Div" else np.full((1, 4, 1, 1), pick, F)
            nodes.append(N(what, [last, f"c{place}"], [name]))
        elif kind == "conv":
            numbers[f"w{place}"] = (random.normal(size=(4, 4, 3, 3)) / 6).astype(F)
            nodes.append(N("Conv", [last, f"w{place}"], [name], pads=[1, 1, 1, 1]))
        elif kind == "norm":
            names = [f"{key}{place}" for key in ("gamma", "beta", "mean", "var")]
            numbers |= {key: random.uniform(0.5, 1.5, 4).astype(F) for key in names}
            nodes.append(N("BatchNormalization", [last, *names], [name]))
        elif kind == "transpose":
            nodes.append(N("Transpose", [last], [name], perm=[0, 1, *what]))
        elif kind == "pad":
            numbers[f"p{place}"] = np.array([0, 0, what, what, 0, 0, -what, -what], np.int64)
            nodes.append(N("Pad", [last, f"p{place}"], [name]))
        else:
            nodes += [N("Shape", [last], [f"s{place}"]), N("Reshape", [last, f"s{place}"], [name])]
        live.append(name)
    nodes.append(N("Relu", [live[-1]], ["y"]))
    before = model(nodes, {"x": ["n", 4, 6, 6]}, numbers)
    after, changes = optimized(before.clone())
    assert not [note for _, change in changes for note in change.notes if "left out" in note]
    assert not proof.compare_models(before, after, seed=7).reason
