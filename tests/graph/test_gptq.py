"""Weights rounded by second moments lose less at the outputs than weights rounded one by one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.graph.execute import Executor
from edgeopt.graph.gptq import (
    Moments,
    accumulate,
    as_matrices,
    from_matrices,
    product,
    round_rows,
    rows_of,
    search_scales,
    spread_rows,
)


def convolution(group: int, strides: list[int], dilations: list[int], pads: list[int]) -> ir.Model:
    random = np.random.default_rng(0)
    x = ir.val("x", ir.DataType.FLOAT, ["n", 4, 9, 8])
    array = random.standard_normal((8, 4 // group, 3, 2)).astype(np.float32)
    weight = ir.val("w", ir.DataType.FLOAT, array.shape, const_value=ir.tensor(array, name="w"))
    node = ir.node(
        "Conv",
        [x, weight],
        {"group": group, "strides": strides, "dilations": dilations, "pads": pads},
        name="conv",
    )
    node.outputs[0].name = "y"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 21})
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize(
    ("strides", "dilations", "pads"), [([1, 1], [1, 1], [0, 0, 0, 0]), ([2, 1], [1, 2], [1, 0, 2, 1])]
)
def test_rows_times_matrices_are_the_convolution(
    group: int, strides: list[int], dilations: list[int], pads: list[int]
) -> None:
    model = convolution(group, strides, dilations, pads)
    item = product(model.graph[0])
    assert item is not None and item.weight.const_value is not None
    x = np.random.default_rng(1).standard_normal((2, 4, 9, 8)).astype(np.float32)
    with Executor(model) as executor:
        expected = executor.run({"x": x})["y"]
    weight = item.weight.const_value.numpy()
    matrices = as_matrices(item, weight)
    outputs = np.einsum("cgk,gkn->cgn", rows_of(item, x), matrices)
    count, _, height, width = expected.shape
    np.testing.assert_allclose(
        outputs.reshape(count, height, width, -1).transpose(0, 3, 1, 2), expected, atol=1e-4
    )
    np.testing.assert_array_equal(from_matrices(item, matrices, weight.shape), weight)


def test_moments_stream() -> None:
    model = convolution(2, [1, 1], [1, 1], [0, 0, 0, 0])
    item = product(model.graph[0])
    assert item is not None
    random = np.random.default_rng(2)
    calls = [{"x": random.standard_normal((2, 4, 9, 8)).astype(np.float32)} for _ in range(3)]
    moments = accumulate(model, [item], calls)["conv"]
    rows = np.concatenate([rows_of(item, call["x"]) for call in calls]).astype(np.float64)
    assert moments.count == len(rows)
    np.testing.assert_allclose(moments.second, np.einsum("cgk,cgj->gkj", rows, rows), rtol=1e-4, atol=1e-3)
    centered = rows - rows.mean(0)
    np.testing.assert_allclose(
        moments.centered(), np.einsum("cgk,cgj->gkj", centered, centered), rtol=1e-3, atol=1e-2
    )


@pytest.mark.parametrize("block", [0, 16])
def test_errors_are_made_good_by_later_rows(block: int) -> None:
    random = np.random.default_rng(3)
    rows = random.standard_normal((600, 2, 6)) @ random.standard_normal((6, 150))  # correlated
    rows += 0.3 * random.standard_normal(rows.shape)
    weight = random.standard_normal((2, 150, 20)).astype(np.float32)
    moments = Moments(np.zeros((2, 150, 150)), np.zeros((2, 150)))
    moments.see(rows)
    importance = np.einsum("gkk->gk", moments.second)
    scale = spread_rows(search_scales(weight, importance, block, -8, 7), block, 150)
    zero = np.zeros_like(scale)

    def error(integers: np.ndarray) -> float:
        return float(np.square(np.einsum("cgk,gkn->cgn", rows, integers * scale - weight)).sum())

    plain = np.clip(np.rint(weight / scale), -8, 7)
    learned = round_rows(weight, moments.second, scale, zero, -8, 7)
    assert learned.min() >= -8 and learned.max() <= 7
    np.testing.assert_array_equal(learned, np.rint(learned))
    assert error(learned) < 0.3 * error(plain)


def test_dead_inputs_do_no_harm() -> None:
    weight = np.random.default_rng(4).standard_normal((1, 8, 3)).astype(np.float32)
    scale = search_scales(weight, np.zeros((1, 8)), 0, -8, 7)
    integers = round_rows(weight, np.zeros((1, 8, 8)), scale, np.zeros_like(scale), -8, 7)
    np.testing.assert_array_equal(integers, np.clip(np.rint(weight / scale), -8, 7))


def test_zeros_have_a_usable_scale() -> None:
    assert (search_scales(np.zeros((1, 4, 2), np.float32), np.ones((1, 4)), 2, -8, 7) == 1).all()
