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
F = np.float32


def model(nodes: list[Any], shape: list[Any], numbers: dict[str, np.ndarray]) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(F), key) for key, value in numbers.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def applied(name: str, before: ir.Model) -> tuple[list[str], Change]:
    after = before.clone()
    step = passes.make(name)
    assert isinstance(step, passes.Pass)
    change = step.apply(after, Context())
    assert not change.notes
    assert not proof.compare_models(before, after).reason
    return [node.op_type for node in after.graph], change


def numbers(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.standard_normal(shape) for name, shape in shapes.items()}


CONVOLUTIONS = [
    N("Conv", ["x", "a", "ab"], ["h"], pads=[1, 1, 1, 1], strides=[2, 2]),
    N("Conv", ["h", "b"], ["y"]),
]


def test_a_convolution_and_one_of_one_element() -> None:
    given = numbers(a=(16, 3, 3, 3), ab=(16,), b=(4, 16, 1, 1))
    assert applied("merge-linear", model(CONVOLUTIONS, ["n", 3, 9, 9], given))[0] == ["Conv"]


def test_two_that_are_cheaper_than_one_stay() -> None:
    given = numbers(a=(4, 16, 3, 3), ab=(4,), b=(32, 4, 1, 1))
    operators, change = applied("merge-linear", model(CONVOLUTIONS, ["n", 16, 9, 9], given))
    assert operators == ["Conv", "Conv"]
    assert [item.reason for item in change.skipped] == [
        "one takes 4608 multiply-accumulates an element, the two take 704"
    ]


def test_a_value_between_that_is_read_keeps_both() -> None:
    given = numbers(a=(16, 3, 3, 3), ab=(16,), b=(16, 16, 1, 1))
    nodes = [*CONVOLUTIONS[:1], N("Conv", ["h", "b"], ["c"]), N("Add", ["c", "h"], ["y"])]
    assert applied("merge-linear", model(nodes, ["n", 3, 9, 9], given))[0] == ["Conv", "Conv", "Add"]


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_products_of_products(alpha: float) -> None:
    given = numbers(a=(8, 32), ab=(32,), b=(6, 32))
    gemms = [
        N("Gemm", ["x", "a", "ab"], ["h"], alpha=alpha),
        N("Gemm", ["h", "b"], ["y"], transB=1, alpha=alpha),
    ]
    assert applied("merge-linear", model(gemms, ["n", 8], given))[0] == ["Gemm"]
    given = numbers(a=(8, 32), b=(32, 6))
    products = [N("MatMul", ["x", "a"], ["h"]), N("MatMul", ["h", "b"], ["y"])]
    assert applied("merge-linear", model(products, ["n", 5, 8], given))[0] == ["MatMul"]


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_normalization_of_rows_goes_into_the_product(transposed: int) -> None:
    given = numbers(g=(8,), b=(8,), m=(8,), w=(5, 8) if transposed else (8, 5), c=(5,))
    given["v"] = np.abs(numbers(v=(8,))["v"]) + 0.5
    norm = N("BatchNormalization", ["x", "g", "b", "m", "v"], ["h"])
    nodes = [norm, N("Gemm", ["h", "w", "c"], ["y"], transB=transposed, alpha=0.5, beta=2.0)]
    assert applied("fold-batch-norm", model(nodes, ["n", 8], given))[0] == ["Gemm"]
    if not transposed:
        nodes = [norm, N("MatMul", ["h", "w"], ["y"])]
        assert applied("fold-batch-norm", model(nodes, ["n", 8], given))[0] == ["Gemm"]
