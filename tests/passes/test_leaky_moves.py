"""Max pools before leaky ReLUs, and leaky ReLUs in two halves: exact in float, finer in int8."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from networks import Net, Rows, rows

from edgeopt import fidelity, passes
from edgeopt.graph.change import NoMatch
from edgeopt.graph.execute import Executor
from edgeopt.graph.quantization import Names, read
from edgeopt.passes import Change, Context, Facets, Pass
from edgeopt.passes.split_leaky_relu import Side, find_side, split
from edgeopt.platform import load_platform


def apply(
    name: str, model: ir.Model, samples: Rows, runtime: str = "onnxruntime", **options: object
) -> Change:
    step = passes.make(name, options)
    assert isinstance(step, Pass)
    rules = load_platform("jetson-orin-nano" if runtime == "tensorrt" else "raspberry-pi-4", runtime).rules
    facets = Facets(rules=rules, calibration=samples, validation=Rows(samples.rows[4::5]))
    return step.apply(model, Context(facets, step.reads))


def decibels(one: ir.Model, other: ir.Model, samples: Rows) -> float:
    value = fidelity.compare(Executor(one).run, Executor(other).run, samples.feeds()).value
    assert value is not None
    return value


def leaky_net(slope: float = 0.1, channels: int = 8, seed: int = 0) -> ir.Model:
    """A small convolution, leaky and pooled, whose noise a larger one reads."""
    net = Net(["n", channels, 8, 8], seed)
    first = net.add("LeakyRelu", net.conv(net.x, channels, 8), alpha=slope)
    pooled = net.add("MaxPool", first, kernel_shape=[2, 2], strides=[2, 2])
    return net.model(net.conv(net.add("Relu", net.conv(pooled, 8, 64)), 64, 64))


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def outputs(model: ir.Model, samples: Rows) -> list[np.ndarray]:
    with Executor(model) as executor:
        return [array for feeds in samples.feeds() for array in executor.run(feeds).values()]


@pytest.mark.parametrize("attributes", [{}, {"pads": [1, 1, 1, 1]}, {"ceil_mode": 1, "strides": [3, 3]}])
@pytest.mark.parametrize("slopes", [None, np.array([[[0.1]], [[0.0]], [[2.0]]], np.float32)])
def test_pools_move_without_changing_a_bit(attributes: dict[str, object], slopes: np.ndarray | None) -> None:
    net = Net(["n", 3, 8, 8])
    made = net.conv(net.x, 3, 3)
    leaky = net.add("LeakyRelu", made) if slopes is None else net.add("PRelu", made, net.constant(slopes))
    pooled = net.add("MaxPool", leaky, kernel_shape=[2, 2], **attributes)
    model, samples = net.model(net.conv(pooled, 3, 4)), rows((3, 8, 8), 10)
    before = outputs(model, samples)
    runtime = "onnxruntime" if slopes is None else "tflite"
    assert len(apply("move-pools", model, samples, runtime).rewrites) == 1
    assert operators(model)[1:3] == ["MaxPool", "LeakyRelu" if slopes is None else "PRelu"]
    for one, other in zip(before, outputs(model, samples), strict=True):
        np.testing.assert_array_equal(one, other)


def test_pools_stay_where_the_activation_falls_or_the_runtime_computes_it_in_float() -> None:
    samples = rows((8, 8, 8), 10)
    falling = apply("move-pools", leaky_net(-0.1), samples)
    assert not falling.rewrites
    assert falling.skipped[0].reason == "a slope is negative"
    assert not apply("move-pools", leaky_net(), samples, "tensorrt").rewrites
    net = Net(["n", 3, 8, 8])
    relu = net.add("MaxPool", net.add("Relu", net.conv(net.x, 3, 3)), kernel_shape=[2, 2])
    assert not apply("move-pools", net.model(net.conv(relu, 3, 3)), samples).rewrites


def test_what_a_pool_alone_reads_has_the_range_of_the_maxima() -> None:
    model, samples = leaky_net(), rows((8, 8, 8))
    apply("move-pools", model, samples)
    plain = model.clone()
    apply("static-int8", model, samples, observer="min-max")
    scales = {where.value: chain[0].scale for where, chain in read(model).items()}
    conv, pool = plain.graph[0].outputs[0].name or "", plain.graph[1].outputs[0].name or ""
    with Executor(plain, [conv, pool]) as executor:
        seen = [executor.run(feeds, [conv, pool]) for feeds in samples.feeds()]
    span = max(float(item[pool].max()) for item in seen) - min(float(item[pool].min()) for item in seen)
    assert scales[conv] == scales[pool]
    assert float(scales[conv]) == pytest.approx(span / 255, rel=1e-4)  # type: ignore[arg-type]
    assert min(float(item[conv].min()) for item in seen) < min(float(item[pool].min()) for item in seen)


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("slope", [0.01, 0.1, 0.9])
def test_both_halves_make_the_leaky_relu(pooled: bool, slope: float) -> None:
    model, samples = leaky_net(slope), rows((8, 8, 8), 20)
    if pooled:
        apply("move-pools", model, samples)
    halved = model.clone()
    leaky = next(node for node in halved.graph if node.op_type == "LeakyRelu")
    side = find_side(leaky, set())
    assert isinstance(side, Side)
    split(halved, side, Names(halved))
    assert "LeakyRelu" not in operators(halved)
    assert operators(halved).count("Conv") == operators(model).count("Conv") + 1
    assert operators(halved).count("MaxPool") == 1 + pooled
    assert decibels(model, halved, samples) > 120
    unread = [name for name, value in halved.graph.initializers.items() if not value.uses()]
    assert not unread


def test_int8_is_finer_with_both_halves_and_rounds_positive_numbers_once() -> None:
    model, samples = leaky_net(), rows((8, 8, 8))
    whole = model.clone()
    change = apply("split-leaky-relu", model, samples)
    assert len(change.rewrites) == 1
    judged = list(change.details["activations"].values())
    assert judged[1] > judged[0] + 0.3
    float_model = whole.clone()
    for item in (model, whole):
        apply("static-int8", item, samples, observer="mse")
    assert decibels(float_model, model, samples) > decibels(float_model, whole, samples)
    params = {where.value: chain[0] for where, chain in read(model).items()}
    relu, clip, total = (
        next(n.outputs[0].name for n in model.graph if n.op_type == op) for op in ("Relu", "Clip", "Add")
    )
    assert params[relu or ""].scale == params[total or ""].scale
    assert params[relu or ""].zero_point is None
    assert params[clip or ""].zero_point == 255


def test_a_split_that_gains_too_little_or_costs_too_much_is_not_made() -> None:
    model, samples = leaky_net(), rows((8, 8, 8))
    assert not apply("split-leaky-relu", model, samples, dearest=0.0).rewrites
    assert not apply("split-leaky-relu", model, samples, gain=20.0).rewrites
    assert not apply("split-leaky-relu", model, samples, "tflite").rewrites
    assert "LeakyRelu" in operators(model)
    narrow = apply("split-leaky-relu", leaky_net(channels=3), rows((3, 8, 8)))
    assert "few channels" in narrow.skipped[0].reason
    kept = apply("split-leaky-relu", leaky_net(), samples, keep_float=("/leakyrelu_*",))
    assert kept.skipped[0].reason == "it stays in float"


def test_a_leaky_relu_without_a_convolution_of_its_own_has_no_sides() -> None:
    net = Net(["n", 8, 8, 8])
    made = net.conv(net.x, 8, 8)
    leaky = net.add("LeakyRelu", made)
    model = net.model(net.add("Add", leaky, made))
    node = next(item for item in model.graph if item.op_type == "LeakyRelu")
    found = find_side(node, set())
    assert isinstance(found, NoMatch)
    assert "read by others" in found.reason
