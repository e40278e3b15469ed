from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt import passes
from edgeopt.graph import proof
from edgeopt.passes import Change, Context

N = helper.make_node
random = np.random.default_rng(0)


def weights(channels: int, *shape: int, bias: bool = False) -> dict[str, np.ndarray]:
    numbers = {
        "w": random.normal(size=shape),
        "gamma": random.normal(size=channels),
        "beta": random.normal(size=channels),
        "mean": random.normal(size=channels),
        "var": random.uniform(0.1, 2, channels),
    }
    if bias:
        numbers["bias"] = random.normal(size=channels)
    return {key: value.astype(np.float32) for key, value in numbers.items()}


def model(
    nodes: list[Any], shape: list[Any], numbers: dict[str, np.ndarray], outputs: tuple[str, ...] = ("y",)
) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, key) for key, value in numbers.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def folded(before: ir.Model, **options: Any) -> tuple[list[str], Change]:
    after = before.clone()
    step = passes.make("fold-batch-norm", options)
    assert isinstance(step, passes.Pass)
    change = step.apply(after, Context(verify="full"))
    assert not proof.compare_models(before, after).reason
    return [node.op_type for node in after.graph], change


NORM = N("BatchNormalization", ["a", "gamma", "beta", "mean", "var"], ["y"], name="norm")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("operator", "attributes", "weight"),
    [
        ("Conv", {"pads": [1, 1, 1, 1]}, (6, 4, 3, 3)),
        ("Conv", {"group": 2}, (6, 2, 3, 3)),
        ("ConvTranspose", {"strides": [2, 2]}, (4, 6, 3, 3)),
        ("ConvTranspose", {"group": 2}, (4, 3, 3, 3)),
    ],
)
def test_into_the_convolution_before(
    operator: str, attributes: dict, weight: tuple[int, ...], bias: bool
) -> None:
    inputs = ["x", "w", "bias"] if bias else ["x", "w"]
    before = model(
        [N(operator, inputs, ["a"], **attributes), NORM],
        ["n", 4, "h", "w_"],
        weights(6, *weight, bias=bias),
    )
    operators, change = folded(before)
    assert operators == [operator]
    assert change.summary.startswith("1 folded")


@pytest.mark.parametrize("attributes", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}])
def test_into_the_gemm_before(attributes: dict) -> None:
    shape = (6, 4) if attributes.get("transB") else (4, 6)
    before = model(
        [N("Gemm", ["x", "w", "bias"], ["a"], **attributes), NORM], ["n", 4], weights(6, *shape, bias=True)
    )
    assert folded(before)[0] == ["Gemm"]


def test_a_product_of_matrices_becomes_a_gemm() -> None:
    assert folded(model([N("MatMul", ["x", "w"], ["a"]), NORM], ["n", 4], weights(6, 4, 6)))[0] == ["Gemm"]


def test_into_an_unpadded_convolution_behind() -> None:
    norm = N("BatchNormalization", ["x", "gamma", "beta", "mean", "var"], ["a"])
    for attributes, left in [({}, ["Conv"]), ({"pads": [1, 1, 1, 1]}, ["BatchNormalization", "Conv"])]:
        numbers = weights(4, 6, 2, 3, 3)
        before = model([norm, N("Conv", ["a", "w"], ["y"], group=2, **attributes)], ["n", 4, 8, 8], numbers)
        assert folded(before)[0] == left


def test_what_stays_can_be_written_as_mul_and_add() -> None:
    norm = N("BatchNormalization", ["x", "gamma", "beta", "mean", "var"], ["y"])
    before = model([norm], ["n", 4, 8, 8], weights(4, 1))
    assert folded(before)[0] == ["BatchNormalization"]
    assert folded(before, split=True)[0] == ["Mul", "Add"]


@pytest.mark.parametrize(
    ("extra", "outputs", "reason"),
    [
        ([N("Relu", ["a"], ["z"], name="other")], ("y", "z"), "'a' is also read by 'other'"),
        ([], ("y", "a"), "'a' is an output of the graph"),
        ([N("Conv", ["x", "w"], ["z"], name="other")], ("y", "z"), "the weight 'w' is also read by 'other'"),
    ],
)
def test_what_others_read_is_left_alone(extra: list[Any], outputs: tuple[str, ...], reason: str) -> None:
    before = model(
        [N("Conv", ["x", "w"], ["a"], name="conv"), NORM, *extra],
        ["n", 4, 8, 8],
        weights(6, 6, 4, 3, 3),
        outputs,
    )
    operators, change = folded(before)
    assert "BatchNormalization" in operators
    assert reason in [item.reason for item in change.skipped]


def test_a_variance_of_zero_is_folded_by_its_epsilon_and_a_negative_one_is_not() -> None:
    numbers = weights(6, 6, 4, 3, 3)
    numbers["var"][:] = 0
    nodes = [N("Conv", ["x", "w"], ["a"]), NORM]
    assert folded(model(nodes, ["n", 4, 8, 8], numbers))[0] == ["Conv"]
    numbers["var"][:] = -1
    assert folded(model(nodes, ["n", 4, 8, 8], numbers))[0] == ["Conv", "BatchNormalization"]
