"""Smoothing changes no output in float and saves what one wild channel would cost."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from networks import Net, Rows, residual_net, rows

from edgeopt import fidelity, passes
from edgeopt.graph.execute import Executor
from edgeopt.passes import Change, Context, Facets, Pass
from edgeopt.platform import load_platform


def apply(name: str, model: ir.Model, samples: Rows, **options: object) -> Change:
    step = passes.make(name, options)
    assert isinstance(step, Pass)
    rules = load_platform("generic-armv8").rules
    served = Facets(rules=rules, calibration=samples, validation=Rows(samples.rows[4::5]))
    return step.apply(model, Context(served, step.reads))


def decibels(one: ir.Model, other: ir.Model, samples: Rows) -> float:
    value = fidelity.compare(Executor(one).run, Executor(other).run, samples.feeds()).value
    assert value is not None
    return value


def wild_net(*, residual: bool) -> ir.Model:
    """Two norms with channels of very different ranges, each read by a linear layer with a bias."""
    net = Net(["n", 6, 32])
    value = net.x
    for _ in range(2):
        gamma = np.ones(32, np.float32)
        gamma[::8] = 40
        beta = np.where(np.arange(32) % 8, 0, 60).astype(np.float32)
        norm = net.add("LayerNormalization", value, net.constant(gamma), net.constant(beta), axis=-1)
        weight = (net.random.standard_normal((32, 32)) / gamma[:, None] / 6).astype(np.float32)
        value = net.add("Add", net.add("MatMul", norm, net.constant(weight)), net.weight(32))
        if residual:
            value = net.add("Add", value, norm)
    return net.model(value)


def test_norms_take_over_scales_and_shifts_for_nothing() -> None:
    model, samples = wild_net(residual=False), rows((6, 32))
    smoothed = model.clone()
    change = apply("smooth-activations", smoothed, samples)
    assert len(change.rewrites) == 2
    assert len(list(smoothed.graph)) == len(list(model.graph))
    assert decibels(model, smoothed, samples) > 90
    judged = change.details["fidelity"]
    assert judged["smoothed"] > judged["none"] + 6


def test_one_multiplication_is_inserted_where_others_read_the_norm() -> None:
    model, samples = wild_net(residual=True), rows((6, 32))
    smoothed = model.clone()
    assert apply("smooth-activations", smoothed, samples).rewrites
    assert decibels(model, smoothed, samples) > 90
    assert sum(node.op_type == "Mul" for node in smoothed.graph) == 2
    kept = model.clone()
    change = apply("smooth-activations", kept, samples, insert=False)
    assert not change.rewrites
    assert all("inserted" in skipped.reason for skipped in change.skipped)
    assert len(list(kept.graph)) == len(list(model.graph))


def test_a_network_of_convolutions_is_left_alone() -> None:
    model, samples = residual_net(), rows((3, 8, 8))
    before = ir.to_proto(model).SerializeToString()
    assert not apply("smooth-activations", model, samples).rewrites
    assert ir.to_proto(model).SerializeToString() == before
