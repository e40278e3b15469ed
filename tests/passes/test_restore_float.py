"""Putting back to float the layers that int8 harms most."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from networks import Rows, residual_net, rows

from edgeopt import fidelity, passes
from edgeopt.budget import Budget
from edgeopt.graph.execute import Executor
from edgeopt.graph.quantization import QuantParams, read, strip, write
from edgeopt.passes import Context, Facets
from edgeopt.passes._islands import Islands
from edgeopt.passes.restore_float import RestoreFloat


def test_the_layer_that_is_harmed_goes_back_and_the_others_stay() -> None:
    original = residual_net()
    facets = Facets(calibration=rows((3, 8, 8)), validation=rows((3, 8, 8), 20, 2))
    model = original.clone()
    passes.make("static-int8", {"observer": "min-max"}).apply(model, Context(facets))
    params = read(model)
    strip(model)
    weights = [site for site in params if site.value in model.graph.initializers]
    (link,) = params[weights[0]]
    assert link.scale is not None
    params[weights[0]] = [QuantParams(link.dtype, link.scale * np.float32(100), link.zero_point, link.axis)]
    write(model, params)
    harmed = next(
        node.name
        for node in original.graph
        if any(value is not None and value.name == weights[0].value for value in node.inputs)
    )
    count = len(Islands(original, read(model)).layers)
    change = RestoreFloat(fidelity=35.0).apply(model, Context(facets))
    assert change.details["restored"] == [harmed]
    assert len(Islands(original, read(model)).layers) == count - 1
    ranking = change.details["ranking"]
    assert ranking[0][0] == harmed
    assert [decibels for _, decibels in ranking] == sorted(decibels for _, decibels in ranking)
    with Executor(original) as one, Executor(model) as two:
        value = fidelity.compare(one.run, two.run, rows((3, 8, 8), 40, 7).feeds(8)).value
    assert value is not None and value > 34


def test_what_is_faithful_enough_stays_as_it_is() -> None:
    model = residual_net()
    facets = Facets(calibration=rows((3, 8, 8)), validation=rows((3, 8, 8), 20, 2))
    passes.make("static-int8", {"observer": "min-max"}).apply(model, Context(facets))
    before = read(model)
    change = RestoreFloat(fidelity=15.0).apply(model, Context(facets))
    assert not change.rewrites
    assert read(model) == before


class _Dear:
    """A latency model in which one layer gains much by integers and every other one nothing."""

    digest = "dear"

    def __init__(self, layer: str) -> None:
        self.layer = layer

    def latency(self, model: ir.Model) -> float:
        plain = model.clone()
        strip(plain)
        return 1.0 if self.layer in Islands(plain, read(model)).layers else 2.0


def test_layers_go_back_that_cost_the_least_predicted_time() -> None:
    original = residual_net()
    facets = Facets(calibration=rows((3, 8, 8)), validation=rows((3, 8, 8), 20, 2))
    model = original.clone()
    passes.make("static-int8", {"observer": "min-max"}).apply(model, Context(facets))
    params = read(model)
    reached = RestoreFloat(fidelity=200.0)
    ranking = [name for name, _ in reached.apply(model, Context(facets)).details["ranking"]]

    def restored(predictor: _Dear | None) -> list[str]:
        model = original.clone()
        write(model, params)
        facets.predictor = predictor
        before = RestoreFloat(fidelity=0.0).apply(model, Context(facets)).details["fidelity"]
        change = RestoreFloat(fidelity=before + 0.5).apply(model, Context(facets))
        assert change.details["fidelity_after"] >= before + 0.5
        return list(change.details["restored"])

    assert ranking[0] in restored(None)
    assert ranking[0] not in restored(_Dear(ranking[0]))


class _Labelled(Rows):
    """Samples with labels."""

    def __init__(self, samples: Rows, labels: np.ndarray) -> None:
        super().__init__(samples.rows)
        self.labels = labels


def _damaged(facets: Facets) -> ir.Model:
    """A network in int8 with one weight's scale far too large."""
    model = residual_net(seed=1)
    passes.make("static-int8", {"observer": "min-max"}).apply(model, Context(facets))
    params = read(model)
    strip(model)
    where = next(site for site in params if site.value in model.graph.initializers)
    (link,) = params[where]
    assert link.scale is not None
    params[where] = [QuantParams(link.dtype, link.scale * np.float32(60), link.zero_point, link.axis)]
    write(model, params)
    return model


def test_a_budget_on_fidelity_counts_where_it_is_higher() -> None:
    facets = Facets(calibration=rows((3, 8, 8)), validation=rows((3, 8, 8), 20, 2))
    model = residual_net()
    passes.make("static-int8", {"observer": "min-max"}).apply(model, Context(facets))
    before = RestoreFloat(fidelity=0.0).apply(model.clone(), Context(facets)).details["fidelity"]
    facets.budget = [Budget.parse("fidelity", f"{before + 1:.2f} dB")]
    change = RestoreFloat(fidelity=1.0).apply(model, Context(facets))
    assert change.rewrites and change.details["fidelity_after"] >= before + 1
    assert change.details["threshold"] == pytest.approx(before + 1, abs=0.01)


def test_a_budget_on_accuracy_is_met_on_labelled_validation_samples() -> None:
    samples = rows((3, 8, 8), 520, 2)
    with Executor(residual_net(seed=1)) as executor:
        classes = np.concatenate([executor.run(call)["v12"].argmax(1) for call in samples.feeds(8)])
    facets = Facets(calibration=rows((3, 8, 8)), validation=_Labelled(samples, classes))
    model = _damaged(facets)
    facets.budget = [Budget.parse("accuracy_drop", "2 pp")]
    change = RestoreFloat(fidelity=0.0).apply(model, Context(facets))
    before, after = change.details["top1_drop"]
    assert before > 2 >= after and change.rewrites
    facets.validation = _Labelled(rows((3, 8, 8), 40, 2), classes[:40])  # too few to say anything
    assert not RestoreFloat(fidelity=0.0).apply(_damaged(facets), Context(facets)).rewrites


class _FasterInFloat:
    """A latency model by which every layer is faster in float."""

    digest = "faster in float"

    def latency(self, model: ir.Model) -> float:
        plain = model.clone()
        strip(plain)
        return 1.0 + len(Islands(plain, read(model)).layers)


def test_layers_that_are_faster_in_float_are_not_put_back_for_that_alone() -> None:
    facets = Facets(calibration=rows((3, 8, 8)), validation=rows((3, 8, 8), 20, 2))
    facets.predictor = _FasterInFloat()
    model = residual_net()
    passes.make("static-int8", {"observer": "min-max"}).apply(model, Context(facets))
    count = len(Islands(residual_net(), read(model)).layers)
    before = RestoreFloat(fidelity=0.0).apply(model.clone(), Context(facets)).details["fidelity"]
    change = RestoreFloat(fidelity=before + 0.5).apply(model, Context(facets))
    assert 0 < len(change.details["restored"]) < count / 2
