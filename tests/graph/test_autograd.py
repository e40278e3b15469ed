"""Running models under torch: equal to the reference, with right gradients, from any cut to any cut."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from benchmarks.autograd_parity import check, claimed_cases
from edgeopt.errors import MissingExtra, ModelError
from edgeopt.graph import autograd
from edgeopt.graph.execute import Executor
from edgeopt.graph.quantization import QuantParams, Site, write
from edgeopt.graph.shapes import infer_shapes

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def constant(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.val(name, tensor.dtype, array.shape, const_value=tensor)


def model_of(
    nodes: Sequence[ir.Node], inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], *constants: ir.Value
) -> ir.Model:
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=constants, opset_imports={"": 21}, name="net")
    model = ir.Model(graph, ir_version=10)
    infer_shapes(model)
    return model


def single(op: str, shapes: Sequence[Sequence[int]], outputs: int = 1, **attributes: Any) -> ir.Model:
    """A model of one operator; every input but the first is an initializer."""
    values = [ir.val("x", ir.DataType.FLOAT, shapes[0])]
    values += [constant(f"p{index}", normal(*shape)) for index, shape in enumerate(shapes[1:])]
    node = ir.node(op, values, attributes, num_outputs=outputs, name="node")
    for index, output in enumerate(node.outputs):
        output.name = f"y{index}"
    return model_of([node], values[:1], node.outputs, *values[1:])


def layers() -> ir.Model:
    """Conv, Relu, Flatten, MatMul."""
    x = ir.val("x", ir.DataType.FLOAT, ["N", 3, 8, 8])
    w, b, v = constant("w", normal(4, 3, 3, 3)), constant("b", normal(4)), constant("v", normal(64, 5))
    attributes = {"pads": [1, 1, 1, 1], "strides": [2, 2]}
    nodes = [ir.node("Conv", [x, w, b], attributes, name="conv")]
    for op, name, more in (("Relu", "relu", []), ("Flatten", "flatten", []), ("MatMul", "matmul", [v])):
        nodes.append(ir.node(op, [nodes[-1].outputs[0], *more], name=name))
    for node, name in zip(nodes, "crfy", strict=True):
        node.outputs[0].name = name
    return model_of(nodes, [x], nodes[-1].outputs, w, b, v)


def quantized() -> ir.Model:
    model = layers()
    unsigned, signed = ir.DataType.UINT8, ir.DataType.INT8
    scale = np.abs(model.graph.initializers["w"].const_value.numpy()).max((1, 2, 3)) / 127
    write(
        model,
        {
            Site("x"): [QuantParams(unsigned, np.float32(0.02), np.uint8(128))],
            Site("r"): [QuantParams(unsigned, np.float32(0.05))],
            Site("w"): [QuantParams(signed, scale.astype(np.float32), None, 0)],
            Site("v"): [QuantParams(signed, np.float32(0.02))],
        },
    )
    return model


def test_a_sample_of_onnx_node_tests_is_equal(torch: Any) -> None:
    wrong = {}
    equal = 0
    for name, model, inputs, expected in claimed_cases(step=7):
        why = check(model, inputs, expected)
        equal += not why
        if why and not why.startswith("refused"):
            wrong[name] = why
    assert not wrong
    assert equal > 150


@pytest.mark.parametrize("make", [layers, quantized])
def test_forward_is_that_of_the_reference(torch: Any, make: Any) -> None:
    model = make()
    x = normal(3, 3, 8, 8)
    with Executor(model) as executor:
        expected = executor.run({"x": x})["y"]
    got = autograd.run(model, {"x": x})["y"]
    np.testing.assert_allclose(autograd.to_numpy(got), expected, rtol=1e-4, atol=1e-4)


def test_a_segment_runs_between_any_cuts(torch: Any) -> None:
    model = layers()
    x = normal(2, 3, 8, 8)
    whole = autograd.run(model, {"x": x}, to_values=["c", "y"])
    part = autograd.run(model, {"c": whole["c"]}, from_values=["c"], to_values=["r", "y"])
    assert torch.equal(part["y"], whole["y"])
    assert torch.equal(part["r"], whole["c"].clamp(min=0))


def test_parameters_replace_initializers_and_get_gradients(torch: Any) -> None:
    model = layers()
    before = model.graph.initializers["w"].const_value.numpy().copy()
    weight = torch.tensor(before * 2, requires_grad=True)
    segment = autograd.Segment(model, to_values=["c"], parameters=["w"])
    x = normal(2, 3, 8, 8)
    once = autograd.run(model, {"x": x}, to_values=["c"])["c"]
    bias = torch.tensor(model.graph.initializers["b"].const_value.numpy()).reshape(1, -1, 1, 1)
    twice = segment({"x": x}, {"w": weight})["c"]
    assert torch.allclose(twice - bias, 2 * (once - bias), atol=1e-5)
    twice.sum().backward()
    assert weight.grad is not None and weight.grad.abs().sum() > 0
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), before)


def test_quantizers_pass_gradients_straight_through(torch: Any) -> None:
    model = quantized()
    weight = torch.tensor(model.graph.initializers["v"].const_value.numpy(), requires_grad=True)
    x = normal(2, 3, 8, 8)
    autograd.run(model, {"x": x}, parameters={"v": weight})["y"].sum().backward()
    read = autograd.run(model, {"x": x}, to_values=["f"])["f"].sum(0)
    inside = (weight.detach() / 0.02).round().clamp(-128, 127) == (weight.detach() / 0.02).round()
    wanted = read.reshape(-1, 1) * inside
    assert torch.allclose(weight.grad, wanted, rtol=1e-4, atol=1e-3)
    assert not inside.all()


def test_scales_get_the_gradients_of_learned_step_sizes(torch: Any) -> None:
    x = ir.val("x", ir.DataType.FLOAT, [6])
    y = ir.node("Relu", [x], name="relu")
    y.outputs[0].name = "y"
    model = model_of([y], [x], y.outputs)
    write(model, {Site("x"): [QuantParams(ir.DataType.INT8, np.float32(0.1))]})
    scale = torch.tensor(0.1, requires_grad=True)
    numbers = np.array([0.1234, 0.57, 3.0, 20.0, -0.3, 0.0], np.float32)
    autograd.run(model, {"x": numbers}, parameters={"x_scale": scale})["y"].sum().backward()
    ratio = numbers / 0.1
    wanted = np.where(ratio > 127, 127, np.where(numbers > 0, np.round(ratio) - ratio, 0)).sum()
    assert float(scale.grad) == pytest.approx(float(wanted), abs=1e-4)


@pytest.mark.parametrize("axis", [None, 1])
def test_a_pair_of_quantizers_run_as_one_equals_the_two(torch: Any, axis: int | None) -> None:
    x = ir.val("x", ir.DataType.FLOAT, [64, 3])
    y = ir.node("Relu", [x], name="relu")
    y.outputs[0].name = "y"
    model = model_of([y], [x], y.outputs)
    size = () if axis is None else (3,)
    scale, zero = np.full(size, 0.02, np.float32), np.full(size, 100, np.uint8)
    write(model, {Site("x"): [QuantParams(ir.DataType.UINT8, scale, zero, axis)]})
    integers = next(node for node in model.graph if node.op_type == "QuantizeLinear").outputs[0].name
    numbers = normal(64, 3) * 3
    found = []
    for wanted in (["y"], ["y", integers]):  # integers that are wanted are computed
        learned = torch.tensor(scale, requires_grad=True)
        source = torch.tensor(numbers, requires_grad=True)
        made = autograd.run(model, {"x": source}, to_values=wanted, parameters={"x_scale": learned})["y"]
        (made * torch.arange(192.0).reshape(64, 3)).sum().backward()
        found.append((made.detach(), source.grad, learned.grad))
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, rtol=1e-4)


def test_soft_rounding_begins_at_the_float_weight(torch: Any) -> None:
    from edgeopt.graph.autograd.quantizers import rounding_logits, soft_round

    weight, scale, zero = torch.randn(4, 3), torch.tensor(0.1), torch.tensor(0.0)
    logits = rounding_logits(weight, scale).requires_grad_()
    result = soft_round(weight, scale, zero, -128, 127, logits)
    assert torch.allclose(result, weight, atol=1e-5)
    result.sum().backward()
    assert logits.grad.abs().min() > 0
    up = soft_round(weight, scale, zero, -128, 127, torch.full_like(weight, 20.0))
    assert torch.allclose(up, torch.floor(weight / scale) * scale + scale)


GRADIENTS: list[tuple[str, list[list[int]], dict[str, Any]]] = [
    ("Conv", [[1, 2, 4, 4], [2, 1, 3, 3], [2]], {"group": 2, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("ConvTranspose", [[1, 2, 3, 3], [2, 2, 2, 2]], {"strides": [2, 2], "pads": [1, 0, 0, 1]}),
    ("Gemm", [[2, 3], [4, 3], [4]], {"transB": 1, "alpha": 0.5}),
    ("MatMul", [[2, 2, 3], [3, 2]], {}),
    ("AveragePool", [[1, 1, 4, 4]], {"kernel_shape": [2, 2], "pads": [1, 1, 0, 0]}),
    ("LayerNormalization", [[2, 3, 4], [4], [4]], {}),
    ("InstanceNormalization", [[2, 2, 3], [2], [2]], {}),
    ("GroupNormalization", [[1, 4, 3], [4], [4]], {"num_groups": 2}),
    ("Softmax", [[2, 3]], {"axis": 0}),
    ("Gelu", [[5]], {"approximate": "tanh"}),
    ("ReduceL2", [[2, 3]], {"keepdims": 0}),
    ("GRU", [[2, 1, 2], [1, 6, 2], [1, 6, 2], [1, 12]], {"hidden_size": 2, "linear_before_reset": 1}),
    ("LSTM", [[2, 1, 2], [2, 8, 2], [2, 8, 2], [2, 16]], {"hidden_size": 2, "direction": "bidirectional"}),
    ("DepthToSpace", [[1, 4, 2, 2]], {"blocksize": 2}),
]


@pytest.mark.parametrize(("op", "shapes", "attributes"), GRADIENTS, ids=[case[0] for case in GRADIENTS])
def test_gradients_are_those_of_finite_differences(
    torch: Any, op: str, shapes: list[list[int]], attributes: dict[str, Any]
) -> None:
    model = single(op, shapes, 2 if op == "GRU" else 3 if op == "LSTM" else 1, **attributes)
    names = [f"p{index}" for index in range(len(shapes) - 1)]
    segment = autograd.Segment(model, parameters=names, dtype="float64", device="cpu")
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True) for shape in shapes
    ]

    def function(x: Any, *parameters: Any) -> Any:
        return tuple(segment({"x": x}, dict(zip(names, parameters, strict=True))).values())

    assert torch.autograd.gradcheck(function, tensors)


def test_a_condition_chooses_the_branch(torch: Any) -> None:
    x = ir.val("x", ir.DataType.FLOAT, [2])
    branches = []
    for op in ("Neg", "Identity"):
        node = ir.node(op, [x], name=op)
        node.outputs[0].name = f"{op}_out"
        branches.append(ir.Graph([], node.outputs, nodes=[node], name=op))
    condition = constant("condition", np.array(True))
    choose = ir.Node(
        "",
        "If",
        [condition],
        [ir.AttrGraph("then_branch", branches[0]), ir.AttrGraph("else_branch", branches[1])],
        name="choose",
    )
    choose.outputs[0].name = "y"
    model = model_of([choose], [x], choose.outputs, condition)
    assert autograd.run(model, {"x": np.float32([1, 2])})["y"].tolist() == [-1, -2]


def test_what_cannot_run_is_refused_in_a_sentence(torch: Any) -> None:
    model = layers()
    with pytest.raises(ModelError, match="no value 'nothing'"):
        autograd.Segment(model, to_values=["nothing"])
    with pytest.raises(ModelError, match="needs the input 'x'"):
        autograd.Segment(model, from_values=["r"], to_values=["c"])
    with pytest.raises(ModelError, match="needs a tensor for 'x'"):
        autograd.Segment(model)({})
    unknown = single("NonMaxSuppression", [[1, 2, 4], [1, 1, 2]])
    with pytest.raises(ModelError, match="NonMaxSuppression"):
        autograd.Segment(unknown)


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match="needs the package 'torch'"):
        autograd.run(layers(), {"x": normal(1, 3, 8, 8)})


def test_zoo_models_agree_with_the_reference(torch: Any, zoo: Any) -> None:
    from edgeopt.graph.opset import raise_opset
    from edgeopt.load import load

    for name, shape in (("kws_dscnn_mlperf_tiny", None), ("resnet20_cifar10", None)):
        paths = list(zoo.rglob(f"{name}.onnx"))
        if not paths:
            pytest.skip(f"{name} is not in the zoo")
        model, _ = raise_opset(load(str(paths[0])))
        value = model.graph.inputs[0]
        sizes = shape or [size if isinstance(size, int) else 2 for size in value.shape or ()]
        feeds = {value.name or "": normal(*sizes)}
        with Executor(model) as executor:
            expected = next(iter(executor.run(feeds).values()))
        got = autograd.to_numpy(next(iter(autograd.run(model, feeds).values())))
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
