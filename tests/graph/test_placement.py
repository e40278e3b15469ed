"""Where the rules of a runtime put integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from networks import Net, attention_net, residual_net

from edgeopt.graph.placement import place
from edgeopt.graph.quantization import Site
from edgeopt.platform import OperatorRule, QuantizationRules, TensorRule, load_runtime

_RULES = load_runtime("onnxruntime").at("1.32.0").quantization
assert _RULES is not None
RULES: QuantizationRules = _RULES


def test_a_product_reads_integers_while_others_read_the_float() -> None:
    placement = place(attention_net(), RULES)
    (inputs,) = [where for where in placement.activations if where.value == "x"]
    assert inputs.readers is not None
    assert {node.split("_")[0] for node, _ in inputs.readers} == {"/matmul"}
    assert len(placement.products) == 5


def test_what_follows_shares_the_parameters_of_its_source() -> None:
    net = Net(["n", 3, 8, 8])
    pooled = net.add("MaxPool", net.add("Relu", net.conv(net.x, 3, 4)), kernel_shape=[2, 2], strides=[2, 2])
    model = net.model(net.conv(pooled, 4, 4))
    placement = place(model, RULES)
    assert placement.activations[Site("v1")] == placement.activations[Site("v2")] == "v2"


def test_the_tail_after_the_last_product_stays_float() -> None:
    net = Net(["n", 3, 8, 8])
    model = net.model(net.add("Sigmoid", net.add("Add", net.conv(net.x, 3, 3), net.x)))
    placement = place(model, RULES)
    assert {where.value for where in placement.activations} == {"x", "v0"}


def test_nodes_kept_and_values_unfit_are_left_out() -> None:
    model = residual_net()
    first = next(iter(model.graph))
    assert first.name not in place(model, RULES, keep={first.name or ""}).products
    unfit = place(model, RULES, unfit={"x"})
    assert first.name not in unfit.products
    assert any(item.site == first.name for item in unfit.skipped)


def test_shared_scales_and_fixed_outputs_come_from_the_rules() -> None:
    fixed = TensorRule(dtype="int8", scale=1 / 256, zero_point=-128)
    rules = QuantizationRules(
        activation=TensorRule(dtype="int8"),
        weight=TensorRule(dtype="int8", symmetric=True),
        operators={
            "MatMul": OperatorRule(inputs=["activation", "weight"], outputs=["activation"]),
            "AveragePool": OperatorRule(inputs=["activation"], outputs=["activation"], same_scale=True),
            "Softmax": OperatorRule(inputs=["activation"], outputs=["activation"], output=fixed),
        },
    )
    net = Net(["n", 1, 8, 8])
    product = net.add("MatMul", net.x, net.weight(8, 8))
    pooled = net.add("AveragePool", product, kernel_shape=[2, 2])
    placement = place(net.model(net.add("Softmax", pooled)), rules)
    assert placement.activations[Site("v1")] == "v0"
    assert placement.rules[Site("v2")] == fixed


def test_a_constant_mask_is_no_operand() -> None:
    net = Net(["n", 3, 4, 4])
    mask = net.constant(np.full((1, 1, 4, 4), -np.inf, np.float32))
    joined = net.add("Add", net.conv(net.x, 3, 3), mask)
    model = net.model(net.conv(joined, 3, 3))
    assert not any(where.value == mask.name for where in place(model, RULES).constants)
    assert mask.dtype == ir.DataType.FLOAT


def test_what_is_joined_and_read_by_nobody_else_has_the_range_of_the_join() -> None:
    rules = QuantizationRules(
        activation=TensorRule(dtype="int8"),
        weight=TensorRule(dtype="int8", symmetric=True),
        fused_activations=["Relu"],
        operators={
            "Conv": OperatorRule(inputs=["activation", "weight"], outputs=["activation"]),
            "Concat": OperatorRule(inputs=["activation"], outputs=["activation"], same_scale=True),
            "Transpose": OperatorRule(follow=True),
        },
    )
    net = Net(["n", 3, 8, 8])
    first, alone, shared = (net.conv(net.x, 3, 4) for _ in range(3))
    moved = net.add("Transpose", net.add("Transpose", alone, perm=[0, 1, 3, 2]), perm=[0, 1, 3, 2])
    joined = net.add("Concat", first, moved, shared, axis=1)
    model = net.model(
        net.conv(net.add("Concat", net.conv(joined, 12, 4), net.conv(shared, 4, 4), axis=1), 8, 4)
    )
    ranges = place(model, rules).activations
    assert ranges[Site(joined.name or "")] == joined.name
    assert ranges[Site(first.name or "")] == joined.name
    assert ranges[Site(alone.name or "")] == ranges[Site(moved.name or "")] == joined.name
    assert ranges[Site(shared.name or "")] == shared.name
