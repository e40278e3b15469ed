"""With 8 bits throughout, everything between products is quantized, and the residual stream by channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from networks import Net, residual_net, rows

from edgeopt import fidelity, passes
from edgeopt.graph.execute import Executor
from edgeopt.graph.quantization import QuantParams, Site, read
from edgeopt.passes.base import Context, Facets, Pass

DATA = rows((6, 32))


def block(scaled: bool = False) -> ir.Model:
    """A block of a post-norm transformer whose residual stream has three channels of outliers."""
    net = Net(["n", 6, 32])
    loud = np.ones(32, np.float32)
    loud[[3, 17, 20]] = [60, 40, 80]
    first = net.constant((net.random.standard_normal((32, 32)) * 0.2 * loud).astype(np.float32))
    start = net.add("Add", net.add("MatMul", net.x, first), net.constant(loud * 0.1))
    zeros = net.constant(np.zeros(32, np.float32))
    x = net.add("LayerNormalization", start, net.constant(1 / loud**0.5), zeros)
    operand = net.add("Mul", x, net.constant(1 / (1 + loud / 20))) if scaled else x
    query, key, value = (net.add("MatMul", operand, net.weight(32, 32, scale=0.2)) for _ in range(3))
    scores = net.add("MatMul", query, net.add("Transpose", key, perm=[0, 2, 1]))
    mask = np.triu(np.full((6, 6), np.finfo(np.float32).min, np.float32), 1)
    masked = net.add("Add", scores, net.constant(mask))
    mixed = net.add("MatMul", net.add("Softmax", masked, axis=-1), value)
    weight = net.constant((net.random.standard_normal((32, 32)) * 0.2 * loud).astype(np.float32))
    attended = net.add("Add", net.add("MatMul", mixed, weight), net.weight(32, scale=0.1))
    total = net.add("Add", attended, x)
    y = net.add("LayerNormalization", total, net.constant(1 / loud**0.5), zeros)
    return net.model(net.add("MatMul", y, net.weight(32, 8, scale=0.2)))


def apply(model: ir.Model, **options: Any) -> ir.Model:
    step = passes.make("static-int8", {"observer": "min-max", **options})
    assert isinstance(step, Pass)
    changed = model.clone()
    step.apply(changed, Context(Facets(calibration=DATA, validation=DATA)))
    return changed


def decibels(model: ir.Model, other: ir.Model) -> float:
    value = fidelity.compare(Executor(model).run, Executor(other).run, DATA.feeds(8)).value
    assert value is not None
    return value


def by_operator(model: ir.Model, quantized: ir.Model) -> dict[str, list[QuantParams | None]]:
    params = {where.value: chain[0] for where, chain in read(quantized).items() if where.readers is None}
    found: dict[str, list[QuantParams | None]] = {}
    for node in model.graph:
        found.setdefault(node.op_type, []).append(params.get(node.outputs[0].name or ""))
    return found


def test_all_that_flows_is_quantized_but_not_inside_a_softmax_or_before_a_bias() -> None:
    model = block()
    found = by_operator(model, apply(model, throughout="int8"))
    softmax = found["Softmax"][0]
    assert softmax is not None and softmax.scale == np.float32(1 / 256) and softmax.zero_point is None
    _, masked, biased, total = found["Add"]
    assert masked is None, "a mask must set no range"
    products = found["MatMul"]
    assert None not in products[1:6]
    assert products[0] is None and products[6] is None, "a product is quantized behind its bias"
    for params in (biased, total):
        assert params is not None and params.axis == 2 and params.scale is not None
        assert params.scale.shape == (32,)


@pytest.mark.parametrize("throughout", ["int8", "residual-int16"])
def test_channels_of_outliers_do_not_drown_the_others(throughout: str) -> None:
    model = block()
    quantized = apply(model, throughout=throughout)
    flattened = quantized.clone()
    for value in flattened.graph.initializers.values():  # what one scale for all would do
        tensor = value.const_value
        if tensor is not None and tensor.shape == (32,) and (value.name or "").endswith("_scale"):
            value.const_value = ir.tensor(np.full(32, tensor.numpy().max(), np.float32), name=value.name)
    assert decibels(model, quantized) > 20
    if throughout == "int8":
        assert decibels(model, quantized) > decibels(model, flattened) + 6


def test_residual_sums_have_sixteen_bits_where_that_is_asked_for() -> None:
    model = block()
    sums = by_operator(model, apply(model, throughout="residual-int16"))["Add"]
    assert sums[3] is not None and sums[3].dtype == ir.DataType.UINT16 and sums[3].axis is None


def test_a_norm_takes_the_scales_that_its_products_divide_by() -> None:
    model = block(scaled=True)
    found = by_operator(model, apply(model, throughout="int8"))
    norm, operand = found["LayerNormalization"][0], found["Mul"][0]
    assert norm is not None and operand is not None and norm.scale is not None and operand.scale is not None
    factors = norm.scale / operand.scale
    loud = np.ones(32)
    loud[[3, 17, 20]] = [60, 40, 80]
    np.testing.assert_allclose(factors, 1 + loud / 20, rtol=1e-5)
    assert norm.zero_point is None or set(norm.zero_point.tolist()) == {int(operand.zero_point or 0)}


def test_convolutional_networks_stay_as_they_are_placed() -> None:
    model, data = residual_net(), rows((3, 8, 8))
    step = passes.make("static-int8", {"throughout": "int8"})
    assert isinstance(step, Pass)
    quantized = model.clone()
    step.apply(quantized, Context(Facets(calibration=data)))
    value = fidelity.compare(Executor(model).run, Executor(quantized).run, data.feeds(8)).value
    assert value is not None and value > 25
    activations = [chain[0] for where, chain in read(quantized).items() if not where.value.startswith("c")]
    assert all(params.axis is None for params in activations)
    assert Site("x") in read(quantized)
