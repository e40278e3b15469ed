"""Searching ranges by what they do at the outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from networks import Net, residual_net, rows

from edgeopt import passes
from edgeopt.errors import UserError
from edgeopt.graph.quantization import Parameters, QuantParams, Site, read, strip, write
from edgeopt.passes import Context, Facets
from edgeopt.passes._judge import Judge
from edgeopt.passes.search_ranges import LARGEST, SMALLEST, SearchRanges
from edgeopt.platform import load_platform

SHAPE = (3, 8, 8)


def served(device: str = "raspberry-pi-4", runtime: str = "onnxruntime") -> Facets:
    return Facets(
        rules=load_platform(device, runtime).rules,
        calibration=rows(SHAPE, 48),
        validation=rows(SHAPE, 48, 2),
        teacher=residual_net(),
    )


def widened(facets: Facets, factor: float) -> tuple[ir.Model, Site]:
    """A network in int8 where ranges of activations are so many times as wide as they ought to be."""
    model = residual_net()
    passes.make("static-int8", {"observer": "min-max"}).apply(model, Context(facets))
    params = dict(read(model))
    strip(model)
    for site, chain in params.items():
        if site.value not in model.graph.initializers:
            (link,) = chain
            assert link.scale is not None
            params[site] = [QuantParams(link.dtype, link.scale * np.float32(factor), link.zero_point)]
    write(model, params)
    return model, Site("x")


def scale(params: Parameters, where: Site) -> float:
    (link,) = params[where]
    assert link.scale is not None
    return float(link.scale)


def test_ranges_that_are_too_wide_are_put_right() -> None:
    facets = served()
    model, _ = widened(facets, 1.8)
    before = read(model)
    assert facets.validation is not None
    judge = Judge.of(residual_net(), facets.validation.feeds(8))
    damaged = judge.decibels(model)
    change = SearchRanges().apply(model, Context(facets, SearchRanges().reads))
    assert len(change.rewrites) >= 3
    weights = {name: chain for name, chain in before.items() if name.value in model.graph.initializers}
    after = read(model)
    assert all(after[site] == chain for site, chain in weights.items())
    assert judge.decibels(model) == pytest.approx(change.details["fidelity_after"], abs=0.05)
    assert change.details["fidelity_after"] >= damaged + 1


def test_the_same_is_found_again_and_a_little_time_means_few_trials() -> None:
    facets = served()
    found = []
    for seconds in (40.0, 40.0, 1e-3):
        model, _ = widened(facets, 1.8)
        change = SearchRanges(seconds=seconds).apply(model, Context(facets))
        found.append((read(model), change.details.get("trials", 0)))
    assert found[0] == found[1]
    assert found[2][1] < found[0][1]


def test_nothing_changes_where_validation_samples_do_not_gain() -> None:
    facets = served()
    model, _ = widened(facets, 1.0)
    before = read(model)
    change = SearchRanges(gain=20.0).apply(model, Context(facets))
    assert not change.rewrites
    assert read(model) == before


def joined_net() -> ir.Model:
    """Two branches whose concatenation is pooled and read by a convolution, and a softmax."""
    net = Net(["n", *SHAPE])
    one, two = net.add("Relu", net.conv(net.x, 3, 4)), net.add("Relu", net.conv(net.x, 3, 4))
    joined = net.add("Concat", one, two, axis=1)
    pooled = net.add("MaxPool", joined, kernel_shape=[2, 2], strides=[2, 2])
    scores = net.add("Flatten", net.add("GlobalAveragePool", net.conv(pooled, 8, 6)))
    return net.model(net.add("Softmax", scores, axis=-1))


def test_ranges_that_the_runtime_ties_or_fixes_stay_so() -> None:
    facets = served("coral-dev-board", "tflite")
    facets.teacher = joined_net()
    model = joined_net()
    passes.make("static-int8", {"observer": "min-max"}).apply(model, Context(facets))
    params = read(model)
    strip(model)
    widest = params[Site("v4")][0]
    assert widest.scale is not None

    def tied(found: Parameters) -> list[str]:
        return sorted(site.value for site, chain in found.items() if chain[-1] == found[Site("v4")][-1])

    together = tied(params)
    assert {"v4", "v5"} <= set(together)
    wide = QuantParams(widest.dtype, widest.scale * np.float32(1.8), widest.zero_point)
    write(model, {s: [wide if link == widest else link for link in chain] for s, chain in params.items()})
    change = SearchRanges(gain=-100.0).apply(model, Context(facets))
    after = read(model)
    assert change.rewrites
    assert tied(after) == together
    fixed = [chain[0] for chain in after.values() if chain[0].scale is not None and chain[0].scale.ndim == 0]
    softmax = np.float32(1 / 256)
    assert sum(float(link.scale or 0) == softmax for link in fixed) == sum(
        float(chain[0].scale or 0) == softmax
        for chain in params.values()
        if chain[0].scale is not None and chain[0].scale.ndim == 0
    )


def test_no_range_leaves_its_limits() -> None:
    facets = served()
    model, where = widened(facets, 8.0)
    before = scale(read(model), where)
    SearchRanges(gain=-100.0).apply(model, Context(facets))
    assert SMALLEST <= scale(read(model), where) / before <= LARGEST


def test_without_data_or_quantization_nothing_happens() -> None:
    model = residual_net()
    assert not SearchRanges().apply(model, Context(served())).rewrites
    quantized, _ = widened(served(), 1.8)
    assert not SearchRanges().apply(quantized, Context(Facets())).rewrites


def test_options_are_checked() -> None:
    with pytest.raises(UserError):
        SearchRanges(seconds=0)
