"""Moving what channels always have into the biases behind them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from networks import Net, rows

from edgeopt import fidelity, passes
from edgeopt.graph.execute import Executor
from edgeopt.passes import Context, Facets


def offset_net(
    *,
    pads: int = 0,
    between: tuple[str, ...] = ("Relu",),
    group: int = 1,
    bias: bool = True,
    high: float = 6.0,
) -> ir.Model:
    """Two convolutions; every other channel between them never falls to zero."""
    net = Net(("n", 3, 8, 8))
    always = np.where(np.arange(8) % 2, high, 0.0).astype(np.float32)
    value = net.add("Conv", net.x, net.weight(8, 3, 1, 1, scale=0.3), net.constant(always))
    for op in between:
        attributes = {"kernel_shape": [2, 2], "strides": [2, 2]} if op == "MaxPool" else {}
        value = net.add(op, value, **attributes)
    inputs = [value, net.weight(8, 8 // group, 3, 3)]
    if bias:
        inputs.append(net.constant(np.arange(8, dtype=np.float32)))
    return net.model(net.add("Conv", *inputs, pads=[pads] * 4, group=group))


def facets(count: int = 40) -> Facets:
    return Facets(calibration=rows((3, 8, 8), count), validation=rows((3, 8, 8), 20, 2))


def decibels(one: ir.Model, two: ir.Model, seed: int = 0) -> float:
    with Executor(one) as expected, Executor(two) as actual:
        return fidelity.compare(expected.run, actual.run, rows((3, 8, 8), 40, seed).feeds(8)).balanced


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"between": ("Relu", "MaxPool")},
        {"between": ("LeakyRelu",)},
        {"group": 4},
        {"group": 8},
        {"bias": False},
    ],
)
def test_the_model_computes_the_same_and_int8_gains(options: dict[str, object]) -> None:
    original = offset_net(**options)  # type: ignore[arg-type]
    model = original.clone()
    change = passes.make("absorb-biases").apply(model, Context(facets()))
    assert len(change.rewrites) == 1
    assert change.details["fidelity_after"] > change.details["fidelity"] + 0.1
    assert decibels(original, model) > 100
    quantized = []
    for one in (original.clone(), model.clone()):
        passes.make("static-int8").apply(one, Context(facets()))
        quantized.append(decibels(original, one, 3))
    assert quantized[1] > quantized[0] + 1


def averaged_net() -> ir.Model:
    net = Net(("n", 3, 8, 8))
    value = net.add("Conv", net.x, net.weight(8, 3, 1, 1), net.constant(np.full(8, 9, np.float32)))
    value = net.add("AveragePool", net.add("Relu", value), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    return net.model(net.add("Conv", value, net.weight(8, 8, 1, 1), net.constant(np.zeros(8, np.float32))))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (offset_net(pads=1), "pads with zeros"),
        (offset_net(between=()), "no ReLU"),
        (averaged_net(), "AveragePool"),
        (offset_net(high=0.2), "far enough above zero"),
    ],
)
def test_what_would_change_the_model_or_bring_nothing_is_left(model: ir.Model, reason: str) -> None:
    before = ir.serde.serialize_model(model).SerializeToString()
    change = passes.make("absorb-biases").apply(model, Context(facets()))
    assert not change.rewrites
    assert reason in " ".join(skipped.reason for skipped in change.skipped)
    assert ir.serde.serialize_model(model).SerializeToString() == before


def test_without_data_nothing_is_known_and_nothing_done() -> None:
    assert not passes.make("absorb-biases").apply(offset_net(), Context()).rewrites


def test_a_step_may_be_forbidden_by_bisection() -> None:
    assert not passes.make("absorb-biases").apply(offset_net(), Context(facets(), limit=0)).rewrites
