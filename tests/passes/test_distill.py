"""Training a whole quantized model against the float model's outputs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from networks import Net, Rows

from edgeopt import fidelity, passes
from edgeopt.errors import MissingExtra, UserError
from edgeopt.graph.execute import Executor
from edgeopt.graph.quantization import read, spread
from edgeopt.passes import Context, Facets
from edgeopt.passes.distill import Distill
from edgeopt.platform import load_platform


class Singles(Rows):
    """Samples of a model that takes one a call."""

    def feeds(self, batch: int = 1) -> Iterator[dict[str, np.ndarray]]:
        return super().feeds(1)


def network(batch: int | str = "N", second: bool = False) -> ir.Model:
    """Three convolutions, of which two stand in a residual block, and a product; or a second output."""
    net = Net([batch, 3, 12, 12])
    first = net.add("Relu", net.conv(net.x, 3, 8))
    inner = net.add("Relu", net.conv(first, 8, 8))
    joined = net.add("Relu", net.add("Add", net.conv(inner, 8, 8), first))
    pooled = net.add("Flatten", net.add("GlobalAveragePool", joined))
    return net.model(net.add("MatMul", pooled, net.weight(8, 10)), *([joined] if second else []))


def rows(count: int, seed: int = 0) -> Rows:
    random = np.random.default_rng(seed)
    return Rows([{"x": random.standard_normal((1, 3, 12, 12)).astype(np.float32)} for _ in range(count)])


def quantized(original: ir.Model, facets: Facets, coarse: float = 2.0) -> ir.Model:
    """Quantizes; scales of activations are too large by a factor, so that training has work."""
    model = original.clone()
    passes.make("static-int8", {"observer": "min-max"}).apply(model, Context(facets))
    constants = set(model.graph.initializers)
    for site, chain in read(model).items():
        if site.value not in constants:
            old = chain[0].scale
            for node in model.graph:
                if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                    scale = node.inputs[1]
                    if scale.const_value.size == 1 and scale.const_value.numpy() == old:
                        scale.const_value = ir.tensor(np.float32(old * coarse), name=scale.name)
    return model


def facets_of(original: ir.Model | None, kind: type[Rows] = Rows, count: int = 40) -> Facets:
    return Facets(calibration=kind(rows(count).rows), validation=kind(rows(16, 1).rows), teacher=original)


def signal(expected: ir.Model, actual: ir.Model, samples: Rows) -> float:
    with Executor(expected) as one, Executor(actual) as two:
        return fidelity.compare(one.run, two.run, samples.feeds()).balanced


@pytest.mark.parametrize("batch", ["N", 1])
def test_learned_scales_make_unseen_samples_more_faithful(torch: Any, batch: int | str) -> None:
    original = network(batch)
    facets = facets_of(original, Singles if batch == 1 else Rows)
    model = quantized(original, facets)
    before = signal(original, model, rows(32, 2))
    step = Distill(iterations=80, biases=0, weights=0, scales=0.02)
    change = step.apply(model, Context(facets, reads=step.reads))
    assert signal(original, model, rows(32, 2)) > before + 1
    assert change.details["fidelity_after"] >= change.details["fidelity"] + 1
    assert [rewrite.rule for rewrite in change.rewrites] == ["distill"]


def test_several_outputs_and_the_model_itself_as_teacher(torch: Any) -> None:
    original = network(second=True)
    facets = facets_of(None)
    model = quantized(original, facets)
    before = signal(original, model, rows(16, 2))
    Distill(iterations=60, scales=0.02).apply(model, Context(facets))
    assert signal(original, model, rows(16, 2)) > before + 1


def test_weights_lie_on_their_grids_and_zero_points_stay(torch: Any) -> None:
    original = network()
    facets = facets_of(original)
    model = quantized(original, facets)
    before = read(model)
    change = Distill(iterations=40, scales=0.02, weights=0.05).apply(model, Context(facets))
    assert change.rewrites
    after = read(model)
    assert before.keys() == after.keys()
    moved = 0
    for site, chain in after.items():
        assert np.array_equal(chain[0].zero_point, before[site][0].zero_point)
        if site.value in model.graph.initializers:
            assert chain[0] == before[site][0]
            array = model.graph.initializers[site.value].const_value.numpy()
            moved += not np.array_equal(array, original.graph.initializers[site.value].const_value.numpy())
            grid = array / spread(chain[0], array.shape)[0]
            np.testing.assert_allclose(grid, np.round(grid), atol=1e-3)
        else:
            ratio = chain[0].scale / before[site][0].scale
            assert 0.499 < ratio < 2.001
    assert moved


def test_equal_scales_stay_equal_and_fixed_ones_stay(torch: Any) -> None:
    net = Net(["N", 3, 12, 12])
    one = net.add("MaxPool", net.conv(net.x, 3, 8), kernel_shape=[2, 2], strides=[2, 2])
    flat = net.add("Flatten", net.add("GlobalAveragePool", one))
    original = net.model(net.add("Softmax", net.add("MatMul", flat, net.weight(8, 10))))
    rules = load_platform("raspberry-pi-4", "tflite").rules
    facets = facets_of(original)
    facets.rules = rules
    model = quantized(original, facets, coarse=1.0)
    before = {site: chain[0] for site, chain in read(model).items() if chain[0].scale is not None}
    Distill(iterations=40, scales=0.05, biases=0, weights=0).apply(model, Context(facets))
    after = {site: chain[0] for site, chain in read(model).items()}
    fixed = rules.quantization.operators["Softmax"].output.scale
    assert fixed
    seen = 0
    for site, params in before.items():
        if params.scale.ndim == 0 and np.float32(params.scale) == np.float32(fixed):
            assert after[site] == params
            seen += 1
        for other, its in before.items():
            if np.array_equal(params.scale, its.scale):
                assert np.array_equal(after[site].scale, after[other].scale)
    assert seen


def test_the_result_is_the_same_each_time(torch: Any) -> None:
    original = network()
    found = []
    for _ in range(2):
        facets = facets_of(original, count=16)
        model = quantized(original, facets)
        Distill(iterations=20).apply(model, Context(facets))
        found.append({name: value.const_value.numpy() for name, value in model.graph.initializers.items()})
    for name, array in found[0].items():
        np.testing.assert_array_equal(array, found[1][name])


def test_what_gains_too_little_is_not_kept(torch: Any) -> None:
    original = network()
    facets = facets_of(original, count=16)
    model = quantized(original, facets, coarse=1.0)
    before = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    change = Distill(iterations=20, weights=50.0, biases=50.0, scales=5.0).apply(model, Context(facets))
    assert not change.rewrites
    assert "left as it is" in change.summary
    assert change.details["fidelity_after"] == change.details["fidelity"]
    for name, value in model.graph.initializers.items():
        np.testing.assert_array_equal(value.const_value.numpy(), before[name])


def test_the_number_of_iterations_follows_from_the_seconds(torch: Any) -> None:
    original = network()
    counts = []
    for seconds in (0.2, 1000.0):
        facets = facets_of(original)
        model = quantized(original, facets)
        counts.append(Distill(seconds=seconds, batch=2).apply(model, Context(facets)).details["iterations"])
    assert counts == sorted(set(counts))
    assert counts[1] == 8 * 40 // 2  # eight rounds over the samples
    few = Distill(seconds=0.001).apply(model, Context(facets))
    assert "too few to learn" in few.summary and not few.rewrites


def test_few_samples_that_are_validation_too_are_parted(torch: Any) -> None:
    original = network()
    samples = rows(16)
    facets = Facets(calibration=samples, validation=samples, teacher=original)
    change = Distill(iterations=20).apply(quantized(original, facets), Context(facets))
    assert change.details["samples"] == 12


def test_recurrent_networks_and_calls_of_different_lengths(torch: Any, gru: Any) -> None:
    original, samples = gru
    facets = Facets(calibration=samples(24, 0), validation=samples(8, 1), teacher=original)
    model = quantized(original, facets)
    change = Distill(iterations=40, scales=0.02).apply(model, Context(facets))
    assert change.rewrites
    assert change.details["fidelity_after"] > change.details["fidelity"]


@pytest.fixture
def gru() -> Any:
    """A GRU whose sequence has any length, and its samples."""
    net = Net(["T", 1, 6])
    shapes = ((1, 24, 6), (1, 24, 8), (1, 48))
    weights = [net.weight(*shape) for shape in shapes]
    hidden = net.add("GRU", net.x, *weights, hidden_size=8)
    flat = net.add("Squeeze", hidden, net.constant(np.array([1], np.int64)))
    model = net.model(net.add("MatMul", flat, net.weight(8, 5)))

    def samples(count: int, seed: int) -> Rows:
        random = np.random.default_rng(seed)
        drawn = [random.standard_normal((4 + index % 3, 1, 6)) for index in range(count)]
        return Singles([{"x": array.astype(np.float32)} for array in drawn])

    return model, samples


def test_without_data_or_quantization_nothing_happens(torch: Any) -> None:
    assert "no calibration data" in Distill().apply(network(), Context()).summary
    facets = Facets(calibration=rows(8), validation=rows(8, 1))
    change = Distill().apply(network(), Context(facets))
    assert not change.rewrites and "no quantized" in change.summary


def test_options_that_make_no_sense_are_refused() -> None:
    for options in ({"seconds": 0}, {"scales": -1}, {"scales": 0, "biases": 0, "weights": 0}, {"batch": 0}):
        with pytest.raises(UserError, match="distill needs"):
            Distill.from_options(options)


def test_without_torch_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    original = network()
    facets = facets_of(original, count=8)
    model = quantized(original, facets)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match="torch"):
        Distill().apply(model, Context(facets))
