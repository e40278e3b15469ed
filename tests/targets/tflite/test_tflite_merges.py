"""Neighbours that TFLite says as one operator, and moves that it needs not make."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tflite_models import convert, error, model, node

from edgeopt.targets.tflite.lower import lower

pytest.importorskip("ai_edge_litert", reason="needs the extra: pip install 'edgeopt[tflite]'")

RANDOM = np.random.default_rng(11)


def weight(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def codes(original, folder) -> list[str]:
    """The operators of the file, in order."""
    _, prepared = convert(original, folder)
    return [operation.code for operation in lower(prepared).program.operations]


def test_the_gate_of_a_squeeze_and_excitation_needs_one_product(tmp_path):
    given = model(
        [
            node("Conv", "x,w,b", "raw"),
            node("HardSigmoid", "raw", "gate", alpha=1 / 6, beta=0.5),
            node("Mul", "gate,x", "product"),
            node("Conv", "product,v", "y"),
        ],
        {"x": [1, 4, 5, 5]},
        ["y"],
        {"w": 3 * weight(4, 4, 1, 1), "b": weight(4), "v": weight(6, 4, 1, 1)},
    )
    assert error(given, tmp_path) < 1e-5
    assert codes(given, tmp_path) == ["CONV_2D", "MUL", "CONV_2D"]


def test_a_gate_that_is_also_an_output_keeps_its_scale(tmp_path):
    given = model(
        [
            node("Conv", "x,w", "raw"),
            node("HardSigmoid", "raw", "gate", alpha=1 / 6, beta=0.5),
            node("Mul", "gate,x", "product"),
            node("Conv", "product,v", "y"),
        ],
        {"x": [1, 4, 5, 5]},
        ["y", "gate"],
        {"w": 3 * weight(4, 4, 1, 1), "v": weight(6, 4, 1, 1)},
    )
    assert error(given, tmp_path) < 1e-5


def test_a_mean_drops_the_axes_that_a_flatten_would(tmp_path):
    given = model(
        [
            node("Conv", "x,w", "c"),
            node("GlobalAveragePool", "c", "g"),
            node("Flatten", "g", "f"),
            node("Gemm", "f,m", "y"),
        ],
        {"x": [1, 3, 8, 8]},
        ["y"],
        {"w": weight(6, 3, 3, 3), "m": weight(6, 4)},
    )
    assert error(given, tmp_path) < 1e-5
    assert codes(given, tmp_path) == ["CONV_2D", "MEAN", "FULLY_CONNECTED"]


def pooled(size: int, activation: str = "Relu", **pooling) -> ir.Model:
    return model(
        [
            node("Conv", "x,w", "c", strides=[2, 2], pads=[1, 1, 1, 1]),
            node(activation, "c", "r"),
            node("MaxPool", "r", "y", **pooling),
        ],
        {"x": [1, 3, size, size]},
        ["y"],
        {"w": weight(6, 3, 3, 3)},
    )


HALVED = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}


def test_a_convolution_makes_one_row_more_rather_than_have_it_padded(tmp_path):
    assert error(pooled(64, **HALVED), tmp_path) < 1e-5
    assert codes(pooled(64, **HALVED), tmp_path) == ["PAD", "CONV_2D", "MAX_POOL_2D", "SLICE"]


def test_a_pooling_that_is_same_as_it_is_needs_no_row_more(tmp_path):
    assert error(pooled(65, **HALVED), tmp_path) < 1e-5
    assert codes(pooled(65, **HALVED), tmp_path) == ["CONV_2D", "MAX_POOL_2D"]


@pytest.mark.parametrize("size", range(54, 60))
@pytest.mark.parametrize(
    "pooling",
    [
        HALVED,
        HALVED | {"ceil_mode": 1},
        HALVED | {"pads": [1, 0, 0, 1]},
        HALVED | {"kernel_shape": [5, 4], "strides": [3, 1], "pads": [2, 1, 2, 1]},
        HALVED | {"kernel_shape": [2, 3], "strides": [1, 3], "pads": [1, 1, 0, 0]},
    ],
)
def test_poolings_behind_convolutions_of_all_sizes(tmp_path, size, pooling):
    assert error(pooled(size, **pooling), tmp_path) < 1e-5


@pytest.mark.parametrize("activation", ["Relu", "Neg"])
def test_a_pooling_is_padded_with_zeros_only_behind_what_is_never_negative(tmp_path, activation):
    given = model(
        [
            node("Conv", "x,w", "c"),
            node(activation, "c", "r"),
            node("MaxPool", "r", "y", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        ],
        {"x": [1, 3, 10, 10]},
        ["y"],
        {"w": weight(6, 3, 3, 3)},
    )
    assert error(given, tmp_path) < 1e-5
    assert ("PADV2" in codes(given, tmp_path)) == (activation == "Neg")


@pytest.mark.parametrize("first", [2, 3])
def test_equal_slices_that_are_all_of_a_value_are_one_split(tmp_path, first):
    given = model(
        [
            node("Conv", "x,w", "c"),
            node("Slice", "c,cut,end,one", "second"),
            node("Slice", "c,zero,cut,one", "first"),
            node("Conv", "second,v", "s"),
            node("Concat", "first,s", "y", axis=1),
        ],
        {"x": [1, 3, 6, 6]},
        ["y"],
        {
            "w": weight(6, 3, 3, 3),
            "v": weight(4, 6 - first, 1, 1),
            "zero": np.array([0]),
            "one": np.array([1]),
            "cut": np.array([first]),
            "end": np.array([2**40]),
        },
    )
    assert error(given, tmp_path) < 1e-5
    found = [code for code in codes(given, tmp_path) if "CONV" not in code]
    assert found == ([*["SLICE"] * 2, "CONCATENATION"] if first == 2 else ["SPLIT", "CONCATENATION"])


def test_overlapping_slices_stay(tmp_path):
    given = model(
        [
            node("Slice", "x,zero,four,one", "a"),
            node("Slice", "x,two,six,one", "b"),
            node("Add", "a,b", "y"),
        ],
        {"x": [1, 6, 6, 6]},
        ["y"],
        {name: np.array([n]) for name, n in (("zero", 0), ("one", 1), ("two", 2), ("four", 4), ("six", 6))},
    )
    assert error(given, tmp_path) < 1e-5
    assert codes(given, tmp_path) == ["SLICE", "SLICE", "ADD"]


def test_a_channel_shuffle_whose_order_counts_is_one_transpose(tmp_path):
    def unit(source: str, target: str) -> list:
        return [
            node("Slice", f"{source},zero,four,one", f"{target}_a"),
            node("Slice", f"{source},four,eight,one", f"{target}_b"),
            node("Conv", f"{target}_b,w", f"{target}_c"),
            node("Concat", f"{target}_a,{target}_c", f"{target}_d", axis=1),
            node("Reshape", f"{target}_d,split", f"{target}_e"),
            node("Transpose", f"{target}_e", f"{target}_f", perm=[0, 2, 1, 3, 4]),
            node("Reshape", f"{target}_f,joined", f"{target}_g"),
            node("Mul", f"{target}_g,each", target),
        ]

    given = model(
        [
            node("Conv", "x,v", "c"),
            *unit("c", "u1"),
            *unit("u1", "u2"),
            node("Conv", "u2,v", "y"),
        ],
        {"x": [1, 8, 6, 6]},
        ["y"],
        {
            "v": weight(8, 8, 1, 1),
            "w": weight(4, 4, 1, 1),
            "each": weight(1, 8, 1, 1),
            "split": np.array([1, 2, 4, 6, 6]),
            "joined": np.array([1, 8, 6, 6]),
            **{name: np.array([n]) for name, n in (("zero", 0), ("one", 1), ("four", 4), ("eight", 8))},
        },
    )
    assert error(given, tmp_path) < 1e-5
    assert codes(given, tmp_path).count("TRANSPOSE") == 2
