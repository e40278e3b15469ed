from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt import passes
from edgeopt.graph import proof
from edgeopt.passes import Change, Context, Facets
from edgeopt.platform import RuntimeVersion

N = helper.make_node
F = np.float32
INT = np.int64


def model(nodes: list[Any], shape: list[Any], numbers: dict[str, Any], opset: int = 21) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in numbers.items()],
    )
    return ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    )


def fused(name: str, before: ir.Model, context: Context | None = None) -> tuple[list[str], Change]:
    after = before.clone()
    step = passes.make(name)
    assert isinstance(step, passes.Pass)
    change = step.apply(after, context or Context())
    assert not proof.compare_models(before, after).reason
    return [node.op_type for node in after.graph], change


GELU = {
    "(x * sum) * half": [N("Mul", ["x", "s"], ["p"]), N("Mul", ["p", "half"], ["y"])],
    "x * (half * sum)": [N("Mul", ["half", "s"], ["p"]), N("Mul", ["x", "p"], ["y"])],
    "(x * half) * sum": [N("Mul", ["x", "half"], ["p"]), N("Mul", ["p", "s"], ["y"])],
    "sum * x / 2": [N("Mul", ["s", "x"], ["p"]), N("Div", ["p", "two"], ["y"])],
}
GELU_NUMBERS = {"half": F(0.5), "two": F(2), "one": F(1), "root": F(np.sqrt(2))}


@pytest.mark.parametrize("close", list(GELU.values()), ids=list(GELU))
def test_gelu(close: list[Any]) -> None:
    nodes = [N("Div", ["x", "root"], ["d"]), N("Erf", ["d"], ["e"]), N("Add", ["e", "one"], ["s"]), *close]
    assert fused("fuse-gelu", model(nodes, ["n", 8], GELU_NUMBERS))[0] == ["Gelu"]
    operators, change = fused("fuse-gelu", model(nodes, ["n", 8], GELU_NUMBERS, opset=17))
    assert "Gelu" not in operators
    assert [item.reason for item in change.skipped] == ["Gelu needs opset 20, the model has 17"]


def test_gelu_with_tanh() -> None:
    numbers = GELU_NUMBERS | {"three": F(3), "c": F(0.044715), "k": F(np.sqrt(2 / np.pi))}
    nodes = [
        N("Pow", ["x", "three"], ["cube"]),
        N("Mul", ["cube", "c"], ["m"]),
        N("Add", ["x", "m"], ["t"]),
        N("Mul", ["t", "k"], ["u"]),
        N("Tanh", ["u"], ["e"]),
        N("Add", ["e", "one"], ["s"]),
        *GELU["x * (half * sum)"],
    ]
    assert fused("fuse-gelu", model(nodes, ["n", 8], numbers))[0] == ["Gelu"]


def test_what_is_almost_gelu_stays() -> None:
    nodes = [
        N("Div", ["x", "root"], ["d"]),
        N("Erf", ["d"], ["e"]),
        N("Add", ["e", "one"], ["s"]),
        *GELU["x * (half * sum)"],
    ]
    assert "Erf" in fused("fuse-gelu", model(nodes, ["n", 8], GELU_NUMBERS | {"half": F(0.6)}))[0]
    assert "Erf" in fused("fuse-gelu", model(nodes, ["n", 8], GELU_NUMBERS | {"root": F(1.5)}))[0]


def test_a_fusion_needs_the_runtime_to_list_it() -> None:
    nodes = [N("HardSigmoid", ["x"], ["g"], alpha=1 / 6, beta=0.5), N("Mul", ["x", "g"], ["y"])]
    before = model(nodes, ["n", 8], {})
    for fusions, expected in [([], ["HardSigmoid", "Mul"]), (["hard-swish"], ["HardSwish"])]:
        rules = RuntimeVersion(versions=">=1", operators={"": ["*"]}, memory="1 MiB", fusions=fusions)  # type: ignore[arg-type]
        assert fused("fuse-hard-swish", before, Context(facets=Facets(rules=rules)))[0] == expected
    assert fused("fuse-hard-swish", before)[0] == ["HardSwish"]


HARD = {"three": F(3), "zero": F(0), "six": F(6), "sixth": F(1 / 6)}


@pytest.mark.parametrize(
    ("close", "expected"),
    [
        ([N("Mul", ["x", "c"], ["p"]), N("Div", ["p", "six"], ["y"])], ["HardSwish"]),
        ([N("Div", ["c", "six"], ["p"]), N("Mul", ["x", "p"], ["y"])], ["HardSwish"]),
        ([N("Mul", ["c", "sixth"], ["y"])], ["HardSigmoid"]),
    ],
)
def test_hard_swish(close: list[Any], expected: list[str]) -> None:
    nodes = [N("Add", ["x", "three"], ["a"]), N("Clip", ["a", "zero", "six"], ["c"]), *close]
    assert fused("fuse-hard-swish", model(nodes, ["n", 8], HARD, opset=14))[0] == expected


def test_mish() -> None:
    nodes = [N("Softplus", ["x"], ["p"]), N("Tanh", ["p"], ["t"]), N("Mul", ["x", "t"], ["y"])]
    assert fused("fuse-hard-swish", model(nodes, ["n", 8], {}))[0] == ["Mish"]


@pytest.mark.parametrize("square", ["Pow", "Mul"])
@pytest.mark.parametrize("affine", [0, 1, 2])
def test_layer_normalization(square: str, affine: int) -> None:
    random = np.random.default_rng(0)
    numbers = {"two": F(2), "eps": F(1e-5), "axes": INT([-1])}
    numbers |= {"g": random.normal(size=8).astype(F), "b": random.normal(size=8).astype(F)}
    names = ["q", "r", "y"] if affine == 2 else ["q", "y"] if affine else ["y"]
    nodes = [
        N("ReduceMean", ["x", "axes"], ["mean"]),
        N("Sub", ["x", "mean"], ["d"]),
        N("Pow", ["d", "two"], ["s"]) if square == "Pow" else N("Mul", ["d", "d"], ["s"]),
        N("ReduceMean", ["s", "axes"], ["var"]),
        N("Add", ["var", "eps"], ["v"]),
        N("Sqrt", ["v"], ["root"]),
        N("Div", ["d", "root"], names[:1]),
    ]
    if affine:
        nodes.append(N("Mul", ["q", "g"], names[1:2]))
    if affine == 2:
        nodes.append(N("Add", ["r", "b"], ["y"]))
    assert fused("fuse-layer-norm", model(nodes, ["n", 5, 8], numbers))[0] == ["LayerNormalization"]


def test_scales_and_shifts_go_into_the_convolution() -> None:
    random = np.random.default_rng(0)
    numbers = {
        "w": random.normal(size=(6, 4, 3, 3)).astype(F),
        "f": random.normal(size=(1, 6, 1, 1)).astype(F),
        "g": random.normal(size=(6, 1, 1)).astype(F),
        "h": F(3),
    }
    nodes = [
        N("Conv", ["x", "w"], ["a"]),
        N("Mul", ["f", "a"], ["b"]),
        N("Add", ["b", "g"], ["c"]),
        N("Div", ["c", "h"], ["y"]),
    ]
    assert fused("fuse-scale", model(nodes, ["n", 4, 8, 8], numbers))[0] == ["Conv"]
    numbers["f"] = random.normal(size=(1, 1, 1, 6)).astype(F)
    operators, change = fused("fuse-scale", model(nodes, ["n", 4, 8, 8], numbers))
    assert operators == ["Conv", "Mul", "Add", "Div"]
    assert "the constant of shape [1, 1, 1, 6] is not one number a channel" in [
        s.reason for s in change.skipped
    ]


@pytest.mark.parametrize(
    ("pads", "value", "expected"),
    [
        ([0, 0, 1, 2, 0, 0, 3, 4], 0, ["Conv"]),
        ([0, 0, 1, 1, 0, 0, 1, 1], 1, ["Pad", "Conv"]),
        ([0, 0, -1, 0, 0, 0, 0, 0], 0, ["Pad", "Conv"]),
    ],
)
def test_padding_goes_into_the_convolution(pads: list[int], value: float, expected: list[str]) -> None:
    numbers = {"w": np.ones((2, 4, 3, 3), F), "p": INT(pads), "v": F(value)}
    nodes = [N("Pad", ["x", "p", "v"], ["a"]), N("Conv", ["a", "w"], ["y"], pads=[1, 0, 0, 1])]
    assert fused("fuse-pad", model(nodes, ["n", 4, 8, 8], numbers))[0] == expected


def test_padding_goes_into_an_average_pool() -> None:
    nodes = [N("Pad", ["x", "p"], ["a"]), N("AveragePool", ["a"], ["y"], kernel_shape=[3, 3])]
    assert fused("fuse-pad", model(nodes, ["n", 4, 8, 8], {"p": INT([0, 0, 1, 1] * 2)}))[0] == ["AveragePool"]
    operators, _ = fused("fuse-pad", model(nodes, ["n", 4, 8, 8], {"p": INT([0, 0, 3, 3] * 2)}))
    assert operators == ["Pad", "AveragePool"]


@pytest.mark.parametrize("biased", [False, True])
def test_a_convolution_of_one_position_with_channels_last_is_a_product(biased: bool) -> None:
    numbers = {"w": np.ones((3, 4, 1), F) * np.arange(3, dtype=F)[:, None, None], "b": np.arange(3, dtype=F)}
    reads = ["t", "w", "b"] if biased else ["t", "w"]
    nodes = [
        N("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        N("Conv", reads, ["c"], kernel_shape=[1]),
        N("Transpose", ["c"], ["y"], perm=[0, 2, 1]),
    ]
    expected = ["MatMul", "Add"] if biased else ["MatMul"]
    assert fused("fuse-gemm", model(nodes, ["n", 1, 4], numbers))[0] == expected
    assert "Conv" in fused("fuse-gemm", model(nodes, ["n", 5, 4], numbers))[0]


def test_matrices_and_a_row_become_a_gemm() -> None:
    nodes = [N("MatMul", ["x", "w"], ["a"]), N("Add", ["b", "a"], ["y"])]
    numbers = {"w": np.ones((4, 6), F), "b": np.ones((1, 6), F)}
    assert fused("fuse-gemm", model(nodes, ["n", 4], numbers))[0] == ["Gemm"]
    operators, change = fused("fuse-gemm", model(nodes, ["n", 5, 4], numbers))
    assert operators == ["MatMul", "Add"]
    assert [item.reason for item in change.skipped] == [
        "Gemm multiplies matrices, not tensors of rank 3 and 2"
    ]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([N("Relu", ["x"], ["a"]), N("Clip", ["a", "", "six"], ["y"])], ["Clip"]),
        ([N("Clip", ["x", "zero", "six"], ["a"]), N("Relu", ["a"], ["y"])], ["Clip"]),
        ([N("Relu", ["x"], ["a"]), N("Relu", ["a"], ["y"])], ["Relu"]),
        ([N("Sigmoid", ["x"], ["a"]), N("Clip", ["a", "zero", "six"], ["y"])], ["Sigmoid"]),
        ([N("Clip", ["x", "six", ""], ["a"]), N("Clip", ["a", "", "three"], ["y"])], ["Clip", "Clip"]),
    ],
)
def test_limits_are_merged(nodes: list[Any], expected: list[str]) -> None:
    operators, _ = fused("fuse-clip", model(nodes, ["n", 8], HARD))
    assert sorted(operators) == sorted(expected)
