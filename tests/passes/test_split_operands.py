"""Small products that read their operand in two parts compute the same in float, and nearly so in 8 bits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from networks import Net, Rows, rows

from edgeopt import fidelity, passes
from edgeopt.graph.execute import Executor
from edgeopt.graph.names import name_nodes
from edgeopt.graph.quantization import Names, read
from edgeopt.passes import Change, Context, Facets, Pass
from edgeopt.passes._rules import quantization_rules
from edgeopt.passes.normalize_rows import normalize, row_groups
from edgeopt.passes.split_operands import split
from edgeopt.platform import load_platform
from edgeopt.targets.onnxruntime import Onnxruntime

PI = load_platform("raspberry-pi-4")


def apply(name: str, model: ir.Model, samples: Rows, **options: object) -> Change:
    step = passes.make(name, options)
    assert isinstance(step, Pass)
    served = Facets(PI.rules, samples, Rows(samples.rows[4::5]), model.clone())
    return step.apply(model, Context(served, step.reads))


def decibels(one: ir.Model, other: ir.Model, samples: Rows) -> float:
    value = fidelity.compare(Executor(one).run, Executor(other).run, samples.feeds()).value
    assert value is not None
    return value


def classifier(inner: int = 192) -> ir.Model:
    """Two wide layers whose weights are multiples of a power of two, and a small one behind a mean."""
    net = Net(["n", 12, 32])
    signs = np.sign(net.random.standard_normal((32, inner))).astype(np.float32) / 8
    wide = net.add("Tanh", net.add("MatMul", net.x, net.constant(signs)))
    signs = np.sign(net.random.standard_normal((inner, inner))).astype(np.float32) / 16
    wide = net.add("MatMul", wide, net.constant(signs))
    mean = net.add("ReduceMean", wide, net.constant(np.array([1], np.int64)), keepdims=0)
    return net.model(net.add("Gemm", mean, net.weight(2, inner), net.weight(2), transB=1))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_outputs_are_the_same_in_float(seed: int, first: bool) -> None:
    net = Net([3, 5, 8], seed)
    value = net.add("Mul", net.x, net.constant((10.0 ** np.arange(-2, 3)).astype(np.float32)[:, None]))
    left = net.add("MatMul", net.add("Softmax", value, axis=-1), net.weight(8, 6))
    right = net.add("Add", net.add("MatMul", net.add("Relu", left), net.weight(6, 4)), net.weight(4))
    flat = net.add("Reshape", value, net.constant(np.array([15, 8], np.int64)))
    gemm = net.add("Gemm", flat, net.weight(3, 8), net.weight(3), transB=1)
    model = net.model(left, right, gemm)
    name_nodes(model)
    changed = model.clone()
    rules = quantization_rules(PI.rules)
    if first:
        for group in row_groups(changed, rules, set()):
            normalize(changed, group, Names(changed))
    groups = row_groups(changed, rules, set())
    assert len(groups) == 3
    for group in groups:
        split(changed, group, Names(changed))
    feeds = {"x": net.random.standard_normal((3, 5, 8)).astype(np.float32)}
    feeds["x"][1] = 0
    expected = Executor(model).run(feeds)
    found = Executor(changed).run(feeds)
    assert list(expected) == list(found)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=4e-6, atol=2e-6 * float(np.abs(array).max()))


def test_a_classifier_reads_sixteen_bits_in_two_parts() -> None:
    model, samples = classifier(), rows((12, 32))
    changed = model.clone()
    change = apply("split-operands", changed, samples)
    assert [rewrite.site for rewrite in change.rewrites] == ["/gemm_4"]
    assert decibels(model, changed, samples) > 100
    apply("static-int8", changed, samples)
    params = {where.value: chain[0] for where, chain in read(changed).items()}
    assert params["/gemm_4_whole"].scale == 1  # whole numbers are not rounded again
    rest = params["/gemm_4_rest"].scale
    assert rest is not None and float(rest) < 1 / 250
    apply("gptq", changed, samples)
    plain = model.clone()
    apply("static-int8", plain, samples)
    apply("gptq", plain, samples)
    assert decibels(model, changed, samples) > decibels(model, plain, samples) + 0.3
    prepared, _ = Onnxruntime().prepare(changed, PI)
    assert decibels(changed, prepared, samples) > 60


def test_whole_numbers_keep_their_steps_where_ranges_of_every_call_gain() -> None:
    model, samples = classifier(), rows((12, 32))
    apply("split-operands", model, samples)
    apply("static-int8", model, samples, activations="symmetric")
    params = {where.value: chain[0] for where, chain in read(model).items()}
    assert params["/gemm_4_whole"].scale == 1


def test_a_product_that_is_no_small_part_of_the_model_is_left_alone() -> None:
    model, samples = classifier(inner=16), rows((12, 32))
    before = ir.to_proto(model).SerializeToString()
    assert apply("split-operands", model, samples).summary == "none"
    assert ir.to_proto(model).SerializeToString() == before


def test_kept_nodes_are_left_alone() -> None:
    model = classifier()
    assert not apply("split-operands", model, rows((12, 32)), keep_float=("/gemm_4",)).rewrites
