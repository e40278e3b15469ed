"""Rows with ranges of their own change no output in float, and save what one range for all would cost."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from networks import Net, Rows, residual_net, rows

from edgeopt import fidelity, passes
from edgeopt.graph.execute import Executor
from edgeopt.graph.names import name_nodes
from edgeopt.graph.quantization import Names, read, strip
from edgeopt.passes import Change, Context, Facets, Pass, normalize_rows
from edgeopt.passes._products import read_product
from edgeopt.passes._rules import quantization_rules
from edgeopt.passes.normalize_rows import find_groups, normalize
from edgeopt.platform import load_platform
from edgeopt.targets.onnxruntime import Onnxruntime


def apply(
    name: str, model: ir.Model, samples: Rows, device: str = "raspberry-pi-4", **options: object
) -> Change:
    step = passes.make(name, options)
    assert isinstance(step, Pass)
    target = "tflite" if device == "coral-dev-board" else None
    rules = load_platform(device, target).rules
    served = Facets(rules=rules, calibration=samples, validation=Rows(samples.rows[4::5]))
    return step.apply(model, Context(served, step.reads))


def outputs(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with Executor(model) as executor:
        return executor.run(feeds)


def decibels(one: ir.Model, other: ir.Model, samples: Rows) -> float:
    value = fidelity.compare(Executor(one).run, Executor(other).run, samples.feeds()).value
    assert value is not None
    return value


def attention() -> ir.Model:
    """Two of 24 rows of a softmax are sharp, the others flat."""
    net = Net(["n", 24, 16])
    loud = net.constant(np.where(np.arange(24) < 2, 8.0, 0.5).astype(np.float32)[:, None])
    weights = net.add("Softmax", net.add("Mul", net.x, loud), axis=-1)
    centred = net.random.standard_normal((16, 8)).astype(np.float32)
    return net.model(net.add("MatMul", weights, net.constant(centred - centred.mean(0))))


def tokens(seed: int = 0) -> ir.Model:
    """A Gemm on rows whose lengths differ by far."""
    net = Net(["n", 32], seed)
    hidden = net.add("Tanh", net.x)
    length = net.add("Exp", net.add("Mul", net.x, net.constant(np.float32(1.5))))
    first = net.add("ReduceMean", length, net.constant(np.array([-1], np.int64)), keepdims=1)
    value = net.add("Mul", hidden, first)
    return net.model(net.add("Gemm", value, net.weight(32, 8), net.weight(8)))


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize("seed", range(4))
def test_outputs_are_the_same_in_float(opset: int, seed: int) -> None:
    net = Net([3, 5, 8], seed)
    value = net.add("Mul", net.x, net.constant((10.0 ** np.arange(-2, 3)).astype(np.float32)[:, None]))
    left = net.add("MatMul", net.add("Softmax", value, axis=-1), net.weight(8, 6))
    right = net.add("MatMul", net.add("Relu", left), net.weight(6, 4))
    flat = net.add("Reshape", value, net.constant(np.array([15, 8], np.int64)))
    gemm = net.add("Gemm", flat, net.weight(3, 8), net.weight(3), transB=1)
    model = net.model(left, right, gemm)
    model.graph.opset_imports[""] = opset
    name_nodes(model)
    changed = model.clone()
    rules = quantization_rules(load_platform("raspberry-pi-4").rules)
    groups = find_groups(changed, rules, set())
    assert len(groups) == 3
    names = Names(changed)
    for group in groups:
        normalize(changed, group, names)
    feeds = {"x": net.random.standard_normal((3, 5, 8)).astype(np.float32)}
    feeds["x"][1] = 0
    feeds["x"][2, 3] *= 1e6
    expected, found = outputs(model, feeds), outputs(changed, feeds)
    assert list(expected) == list(found)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=2e-6, atol=1e-6 * float(np.abs(array).max()))
    assert not find_groups(changed, rules, set())  # a second time there is nothing left to do


def test_flat_rows_of_attention_gain_what_sharp_ones_cost_them() -> None:
    model, samples = attention(), rows((24, 16))
    plain, changed = model.clone(), model.clone()
    change = apply("normalize-rows", changed, samples)
    assert [rewrite.site for rewrite in change.rewrites] == ["/matmul_2"]
    judged = change.details["fidelity"]
    assert judged["normalized"] > judged["none"] + 1
    assert decibels(model, changed, samples) > 100
    for candidate in (plain, changed):
        apply("static-int8", candidate, samples)
    assert decibels(model, changed, samples) > decibels(model, plain, samples) + 1
    scales = [chain[0].scale for where, chain in read(changed).items() if "normalized" in where.value]
    np.testing.assert_allclose(scales, 1 / 255, rtol=1e-6)


def test_a_classifier_gets_its_bias_behind_the_multiplication() -> None:
    model, samples = tokens(), rows((32,))
    changed = model.clone()
    assert apply("normalize-rows", changed, samples).rewrites
    assert decibels(model, changed, samples) > 100
    apply("static-int8", changed, samples)
    assert decibels(model, changed, samples) > 30
    prepared, _ = Onnxruntime().prepare(changed, load_platform("raspberry-pi-4"))
    assert {node.op_type for node in prepared.graph} >= {"ReduceMax", "Gemm", "Add"}
    assert decibels(changed, prepared, samples) > 60
    twin = changed.clone()
    strip(twin)
    assert decibels(model, twin, samples) > 100


def test_sites_that_make_little_of_the_noise_are_left_alone() -> None:
    model, samples = attention(), rows((24, 16))
    before = ir.to_proto(model).SerializeToString()
    change = apply("normalize-rows", model, samples, share=0.99)
    assert not change.rewrites and all("too little" in item.reason for item in change.skipped)
    assert ir.to_proto(model).SerializeToString() == before


def test_nothing_is_done_where_a_runtime_computes_in_integers_throughout() -> None:
    model, samples = attention(), rows((24, 16))
    before = ir.to_proto(model).SerializeToString()
    assert not apply("normalize-rows", model, samples, "coral-dev-board").rewrites
    assert ir.to_proto(model).SerializeToString() == before


def test_kept_nodes_and_convolutions_are_left_alone() -> None:
    model, samples = attention(), rows((24, 16))
    assert not apply("normalize-rows", model, samples, keep_float=("/matmul_2",)).rewrites
    assert not apply("normalize-rows", residual_net(), rows((3, 8, 8))).rewrites


def test_a_value_of_one_row_is_left_to_ranges_of_every_call() -> None:
    net = Net([1, 32])
    value = net.add("Mul", net.add("Tanh", net.x), net.add("ReduceMax", net.add("Exp", net.x), keepdims=1))
    model = net.model(net.add("Gemm", value, net.weight(32, 8), net.weight(8)))
    assert apply("normalize-rows", model, rows((32,))).summary == "none"


def test_only_so_many_rewrites_as_are_allowed() -> None:
    model, samples = attention(), rows((24, 16))
    step = passes.make("normalize-rows")
    assert isinstance(step, Pass)
    served = Facets(load_platform("raspberry-pi-4").rules, samples, Rows(samples.rows[4::5]))
    assert not step.apply(model, Context(served, step.reads, limit=0)).rewrites


def test_of_a_model_too_large_to_look_at_site_by_site_the_makers_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Net(["n", 24, 16])
    loud = net.constant(np.where(np.arange(24) < 2, 8.0, 0.5).astype(np.float32)[:, None])
    made = []
    for _ in range(2):
        weights = net.add("Softmax", net.add("Mul", net.x, loud), axis=-1)
        centred = net.random.standard_normal((16, 16)).astype(np.float32)
        made.append(net.add("MatMul", weights, net.constant(centred - centred.mean(0))))
    model, samples = net.model(*made), rows((24, 16))
    monkeypatch.setattr(normalize_rows, "affordable", lambda *_: 1)
    change = apply("normalize-rows", model.clone(), samples)
    assert len(change.rewrites) == 2 and len(set(change.details["shares"].values())) == 1
    monkeypatch.setattr(normalize_rows, "affordable", lambda *_: 0)
    assert "too long" in apply("normalize-rows", model, samples).summary


def test_solving_for_weights_counts_rows_with_their_factors() -> None:
    model, samples = tokens(), rows((32,))
    changed = model.clone()
    apply("normalize-rows", changed, samples)
    apply("static-int8", changed, samples)
    before = decibels(model, changed, samples)
    step = passes.make("gptq")
    assert isinstance(step, Pass)
    served = Facets(calibration=samples, validation=Rows(samples.rows[4::5]), teacher=model)
    change = step.apply(changed, Context(served, step.reads))
    assert [rewrite.site for rewrite in change.rewrites] == ["/gemm_5"]
    assert decibels(model, changed, samples) > before
    product = next(found for node in model.graph if (found := read_product(node)) is not None)
    assert product.operator == "Gemm" and product.scaled is None
    strip(changed)
    product = next(found for node in changed.graph if (found := read_product(node)) is not None)
    assert product.scaled is not None and product.bias == model.graph.node("/gemm_5").inputs[2].name
