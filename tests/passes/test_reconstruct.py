"""Training a quantized model block by block."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from networks import Net, Rows

from edgeopt import fidelity, passes
from edgeopt.errors import UserError
from edgeopt.graph.execute import Executor
from edgeopt.graph.quantization import read, spread
from edgeopt.passes import Context, Facets
from edgeopt.passes._blocks import find_blocks
from edgeopt.passes.bias_correction import BiasCorrection
from edgeopt.passes.reconstruct import Reconstruct


class Singles(Rows):
    """Samples of a model that takes one a call."""

    def feeds(self, batch: int = 1) -> Iterator[dict[str, np.ndarray]]:
        return super().feeds(1)


def residual_network(batch: int | str = "N") -> ir.Model:
    """Three convolutions, of which two stand in a residual block, and a product."""
    net = Net([batch, 3, 12, 12])
    first = net.add("Relu", net.conv(net.x, 3, 8))
    inner = net.add("Relu", net.conv(first, 8, 8))
    joined = net.add("Relu", net.add("Add", net.conv(inner, 8, 8), first))
    pooled = net.add("Flatten", net.add("GlobalAveragePool", joined))
    return net.model(net.add("MatMul", pooled, net.weight(8, 10)))


def rows(count: int, seed: int = 0) -> Rows:
    random = np.random.default_rng(seed)
    return Rows([{"x": random.standard_normal((1, 3, 12, 12)).astype(np.float32)} for _ in range(count)])


def quantized(model: ir.Model, facets: Facets) -> ir.Model:
    """Quantizes with 4-bit-like coarse ranges: steps eight times too large, so that training has work."""
    passes.make("static-int8", {"observer": "min-max"}).apply(model, Context(facets))
    for site, chain in read(model).items():
        if site.value in model.graph.initializers:
            scale = next(
                node.inputs[1]
                for node in model.graph
                if node.op_type == "QuantizeLinear" and node.inputs[0].name == site.value
            )
            tensor = chain[0].scale * 8
            scale.const_value = ir.tensor(np.asarray(tensor, np.float32), name=scale.name)
    return model


def signal(expected: ir.Model, actual: ir.Model, samples: Rows) -> float:
    with Executor(expected) as one, Executor(actual) as two:
        value = fidelity.compare(one.run, two.run, samples.feeds()).value
    assert value is not None
    return value


def test_blocks_run_from_bottleneck_to_bottleneck() -> None:
    model = residual_network()
    blocks = find_blocks(model.graph)
    assert [[node.op_type for node in block.layers] for block in blocks] == [
        ["Conv"],
        ["Conv", "Conv"],
        ["MatMul"],
    ]
    assert [node for block in blocks for node in block.nodes] == list(model.graph)
    for block, following in pairwise(blocks):
        assert set(following.inputs) <= set(block.outputs)


def test_a_wide_block_is_cut_behind_each_product() -> None:
    blocks = find_blocks(residual_network().graph, most=1)
    assert [len(block.layers) for block in blocks] == [1, 1, 1, 1]


@pytest.mark.parametrize("batch", ["N", 1])
def test_training_makes_unseen_samples_more_faithful(torch: Any, batch: int | str) -> None:
    original = residual_network(batch)
    kind = Singles if batch == 1 else Rows
    facets = Facets(calibration=kind(rows(48).rows), validation=kind(rows(16, 1).rows), teacher=original)
    model = quantized(original.clone(), facets)
    before = signal(original, model, rows(32, 2))
    change = Reconstruct(iterations=80).apply(model, Context(facets, reads=Reconstruct().reads))
    after = signal(original, model, rows(32, 2))
    assert after > before + 1
    assert change.details["fidelity_after"] > change.details["fidelity"]
    assert change.rewrites
    assert change.details["batch"] == 8


def test_training_starts_from_the_closed_form_where_asked(torch: Any) -> None:
    original = residual_network()
    facets = Facets(calibration=rows(48), validation=rows(16, 1), teacher=original)
    solved = quantized(original.clone(), facets)
    passes.make("gptq").apply(solved, Context(facets))
    trained = quantized(original.clone(), facets)
    change = Reconstruct(iterations=40, start="gptq").apply(trained, Context(facets))
    assert change.details["fidelity_after"] > change.details["fidelity"]
    assert signal(original, trained, rows(16, 1)) >= signal(original, solved, rows(16, 1)) - 0.01


def test_weights_lie_on_their_grids_and_zero_points_stay(torch: Any) -> None:
    original = residual_network()
    facets = Facets(calibration=rows(24), validation=rows(8, 1), teacher=original)
    model = quantized(original.clone(), facets)
    before = read(model)
    Reconstruct(iterations=30).apply(model, Context(facets))
    after = read(model)
    assert before.keys() == after.keys()
    moved = 0
    for site, chain in after.items():
        assert np.array_equal(chain[0].zero_point, before[site][0].zero_point)
        if site.value in model.graph.initializers:
            assert chain[0] == before[site][0]
            array = model.graph.initializers[site.value].const_value.numpy()
            old = original.graph.initializers[site.value].const_value.numpy()
            if not np.array_equal(array, old):
                moved += 1
                grid = array / spread(chain[0], array.shape)[0]
                np.testing.assert_allclose(grid, np.round(grid), atol=1e-3)
    assert moved


def test_adaptive_rounding_keeps_each_weight_at_a_neighbour_on_its_grid_and_gains(torch: Any) -> None:
    original = residual_network()
    facets = Facets(calibration=rows(48), validation=rows(16, 1), teacher=original)
    model = quantized(original.clone(), facets)
    before = signal(original, model, rows(32, 2))
    choosing = Reconstruct(iterations=150, rounding="adaptive", biases=0, scales=0)
    change = choosing.apply(model, Context(facets))
    assert signal(original, model, rows(32, 2)) > before + 1
    assert change.rewrites
    other = 0
    for site, chain in read(model).items():
        if site.value in model.graph.initializers:
            old = original.graph.initializers[site.value].const_value.numpy()
            new = model.graph.initializers[site.value].const_value.numpy()
            if np.array_equal(old, new):
                continue  # a block that did not gain
            step = spread(chain[0], new.shape)[0]
            np.testing.assert_allclose(new / step, np.round(new / step), atol=1e-3)
            assert np.all(np.abs(new - old) <= step * 1.001)
            other += np.count_nonzero(np.round(new / step) != np.round(old / step))
    assert other > 20


def test_weights_that_are_rounded_already_leave_nothing_to_choose() -> None:
    with pytest.raises(UserError, match="rounded already"):
        Reconstruct(start="gptq", rounding="adaptive")


def test_the_result_is_the_same_each_time(torch: Any) -> None:
    original = residual_network()
    facets = Facets(calibration=rows(16), validation=rows(8, 1), teacher=original)
    found = []
    for _ in range(2):
        model = quantized(original.clone(), facets)
        Reconstruct(iterations=20).apply(model, Context(facets))
        found.append({name: value.const_value.numpy() for name, value in model.graph.initializers.items()})
    for name, array in found[0].items():
        np.testing.assert_array_equal(array, found[1][name])


def test_what_would_hurt_is_not_kept(torch: Any) -> None:
    original = residual_network()
    facets = Facets(calibration=rows(16), validation=rows(8, 1), teacher=original)
    model = quantized(original.clone(), facets)
    wild = Reconstruct(iterations=20, rates=(50.0,), biases=50.0, scales=5.0)
    before = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    change = wild.apply(model, Context(facets))
    assert not change.rewrites and change.skipped
    for name, value in model.graph.initializers.items():
        np.testing.assert_array_equal(value.const_value.numpy(), before[name])


def test_without_data_or_quantization_nothing_happens(torch: Any) -> None:
    assert "no calibration data" in Reconstruct().apply(residual_network(), Context()).summary
    facets = Facets(calibration=rows(8), validation=rows(8, 1))
    change = Reconstruct().apply(residual_network(), Context(facets))
    assert not change.rewrites and "no quantized" in change.summary
    with pytest.raises(UserError, match="no option"):
        Reconstruct.from_options({"epochs": 3})


def test_a_model_whose_float_form_moved_is_left_as_it_is(torch: Any) -> None:
    original = residual_network()
    facets = Facets(calibration=rows(24), validation=rows(8, 1), teacher=original)
    model = quantized(original.clone(), facets)
    Reconstruct(iterations=20).apply(model, Context(facets))
    for step in (Reconstruct(iterations=20), BiasCorrection()):
        change = step.apply(model, Context(facets))
        assert not change.rewrites
        assert "from the original" in change.summary
