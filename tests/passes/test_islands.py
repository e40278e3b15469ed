"""What is left of a model's integers, and the damage of single layers and groups."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from networks import Net, attention_net, residual_net, rows

from edgeopt import passes
from edgeopt.errors import RuntimeFailure
from edgeopt.graph.execute import Executor
from edgeopt.graph.quantization import Parameters, read, strip
from edgeopt.passes import Context, Facets
from edgeopt.passes._alone import alone, quantized
from edgeopt.passes._islands import Islands
from edgeopt.passes._sensitivity import Trial
from edgeopt.platform import load_platform


def gated_net() -> ir.Model:
    """Convolutions with SiLU gates, a view and pooling before a classifier."""
    net = Net(["n", 3, 8, 8])
    first = net.conv(net.x, 3, 8)
    gated = net.add("Mul", first, net.add("Sigmoid", first))
    second = net.conv(gated, 8, 8)
    again = net.add("Mul", second, net.add("Sigmoid", second))
    view = net.add("Transpose", again, perm=[0, 1, 3, 2])
    third = net.conv(net.add("MaxPool", view, kernel_shape=[2, 2], strides=[2, 2]), 8, 4)
    return net.model(net.add("GlobalAveragePool", third))


def placed(model: ir.Model, shape: tuple[int, ...]) -> tuple[ir.Model, Parameters]:
    """The model without its quantization, and the quantization that static int8 gives it."""
    facets = Facets(calibration=rows(shape), rules=load_platform("raspberry-pi-4").rules)
    passes.make("static-int8", {"observer": "min-max"}).apply(model, Context(facets))
    params = read(model)
    strip(model)
    return model, params


@pytest.mark.parametrize(
    ("made", "shape"), [(residual_net, (3, 8, 8)), (gated_net, (3, 8, 8)), (attention_net, (6, 32))]
)
def test_without_any_layer_nothing_is_quantized_and_with_all_everything(made: object, shape: object) -> None:
    model, params = placed(made(), shape)  # type: ignore[operator, arg-type]
    islands = Islands(model, params)
    assert islands.without([]) == params
    assert islands.without(islands.layers) == {}
    assert islands.of(islands.layers) == params


def test_gates_return_to_float_with_their_layer() -> None:
    model, params = placed(gated_net(), (3, 8, 8))
    islands = Islands(model, params)
    first, second, third = islands.layers
    assert {where.value for where in params} >= {"v0", "v1", "v2", "v3", "v4", "v5"}  # gates in integers
    left = {where.value for where in islands.without([first])}
    assert left.isdisjoint({"x", "v0", "v1"}) and {"v2", "v3"} <= left  # its gate went with it
    left = {where.value for where in islands.without([second])}
    assert left.isdisjoint({"v2", "v3", "v4", "v5"})
    assert {where.value for where in islands.without([third])}.isdisjoint({"v6", "v7"})  # view and pooling
    joined = islands.gone([first, second])
    assert joined >= islands.gone([first]) | islands.gone([second])


def test_a_sum_stays_in_integers_for_those_who_still_read_it() -> None:
    model, params = placed(residual_net(), (3, 8, 8))
    islands = Islands(model, params)
    for layer in islands.layers:
        left = islands.without([layer])
        quantized_model = quantized(model, left)
        with Executor(quantized_model) as executor:
            assert all(
                np.isfinite(value).all() for value in executor.run(next(rows((3, 8, 8)).feeds())).values()
            )
        for where in left:
            readers = islands._readers(where)
            assert all(reader != layer for reader, _ in readers)


@pytest.mark.parametrize(
    ("made", "shape"), [(residual_net, (3, 8, 8)), (gated_net, (3, 8, 8)), (attention_net, (6, 32))]
)
def test_one_pass_finds_what_whole_models_would(made: object, shape: object) -> None:
    model, params = placed(made(), shape)  # type: ignore[operator, arg-type]
    samples = rows(shape, 6, 3)  # type: ignore[arg-type]
    trial = Trial(model, params, samples)
    subsets = [(layer,) for layer in trial.layers] + trial.branches + trial.neighbours
    trials = [trial.islands.of(subset) for subset in subsets]
    found = alone(model, trials, list(samples.feeds(2)))
    for quantization, one in zip(trials, found, strict=True):
        assert one.weakest == pytest.approx(trial.measured(quantization, 6).weakest, abs=0.1)


def test_a_group_is_louder_than_its_loudest_layer() -> None:
    model, params = placed(residual_net(), (3, 8, 8))
    trial = Trial(model, params, rows((3, 8, 8), 8, 3))
    layers, groups = trial.ranked(trial.branches)
    assert list(layers.values()) == sorted(layers.values(), key=lambda one: one.weakest)
    assert groups
    for group, one in groups.items():
        assert one.weakest < min(layers[layer,].weakest for layer in group)


def test_where_no_part_runs_by_itself_whole_models_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    model, params = placed(residual_net(), (3, 8, 8))
    samples = rows((3, 8, 8), 4, 3)
    expected, _ = Trial(model, params, samples).ranked()

    def refuse(*arguments: object) -> None:
        raise RuntimeFailure("no part runs")

    monkeypatch.setattr("edgeopt.passes._sensitivity.alone", refuse)
    found, _ = Trial(model, params, samples).ranked()
    assert list(found) == list(expected)
    for layer, one in found.items():
        assert one.weakest == pytest.approx(expected[layer].weakest, abs=0.1)


def test_a_quantized_value_that_is_also_an_output_is_found_in_one_pass() -> None:
    net = Net(["n", 3, 8, 8])
    first = net.add("Relu", net.conv(net.x, 3, 8))
    model, params = placed(net.model(net.conv(first, 8, 4), first), (3, 8, 8))
    assert any(where.value == first.name for where in params)
    samples = rows((3, 8, 8), 4, 3)
    trial = Trial(model, params, samples)
    trials = [trial.islands.of((layer,)) for layer in trial.layers]
    for quantization, one in zip(trials, alone(model, trials, list(samples.feeds(4))), strict=True):
        assert one.weakest == pytest.approx(trial.measured(quantization, 4).weakest, abs=0.1)
