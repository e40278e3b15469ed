"""Correcting biases for the mean error of quantization."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from networks import attention_net, residual_net, rows

from edgeopt import fidelity, passes
from edgeopt.errors import UserError
from edgeopt.graph.execute import Executor
from edgeopt.graph.quantization import QuantParams, read, strip, write
from edgeopt.passes import Context, Facets
from edgeopt.passes.bias_correction import BiasCorrection


def coarse(model: ir.Model, facets: Facets) -> ir.Model:
    """Quantizes with steps of weights eight times too large, whose rounding shifts means."""
    passes.make("static-int8", {"observer": "min-max"}).apply(model, Context(facets))
    params = read(model)
    strip(model)
    wide = {
        site: [QuantParams(link.dtype, link.scale * np.float32(8), link.zero_point, link.axis)]
        if site.value in model.graph.initializers
        else chain
        for site, chain in params.items()
        for link in chain[:1]
    }
    write(model, wide)
    return model


def signal(expected: ir.Model, actual: ir.Model) -> float:
    with Executor(expected) as one, Executor(actual) as two:
        value = fidelity.compare(one.run, two.run, rows((3, 8, 8), 40, 7).feeds(8)).value
    assert value is not None
    return value


def test_corrected_biases_make_unseen_samples_more_faithful() -> None:
    original = residual_net()
    facets = Facets(calibration=rows((3, 8, 8)), validation=rows((3, 8, 8), 20, 2), teacher=original)
    model = coarse(original.clone(), facets)
    before = signal(original, model)
    change = BiasCorrection().apply(model, Context(facets, reads=BiasCorrection().reads))
    assert signal(original, model) > before + 0.5
    assert len(change.rewrites) == change.details["layers"] > 3


def test_means_of_every_channel_are_those_of_the_float_model() -> None:
    original = residual_net()
    data = rows((3, 8, 8), 16)
    facets = Facets(calibration=data, teacher=original)
    model = coarse(original.clone(), facets)
    BiasCorrection().apply(model, Context(facets))
    name = model.graph.outputs[0].name or ""
    with Executor(original) as one, Executor(model) as two:
        expected = np.concatenate([one.run(feeds)[name] for feeds in data.feeds(8)])
        got = np.concatenate([two.run(feeds)[name] for feeds in data.feeds(8)])
    np.testing.assert_allclose(got.mean(0), expected.mean(0), atol=1e-4)


def test_a_layer_without_bias_is_named_with_the_reason() -> None:
    original = attention_net()
    facets = Facets(calibration=rows((6, 32)), teacher=original)
    model = original.clone()
    passes.make("static-int8", {"observer": "min-max"}).apply(model, Context(facets))
    change = BiasCorrection().apply(model, Context(facets))
    assert change.summary == "no layer has a bias to correct"


def test_it_needs_data_and_quantization() -> None:
    with pytest.raises(UserError, match="needs calibration data"):
        BiasCorrection().apply(residual_net(), Context())
    change = BiasCorrection().apply(residual_net(), Context(Facets(calibration=rows((3, 8, 8)))))
    assert "no quantized values" in change.summary
