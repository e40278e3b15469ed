"""What is wrong with calibration data is said in the change's notes, and only then."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from networks import Rows, residual_net, rows

from edgeopt import passes
from edgeopt.graph.change import Change
from edgeopt.passes.base import Context, Facets, Pass

SHAPE = (3, 8, 8)


class Others(Rows):
    digest = "others"


def notes(model: ir.Model, calibration: Rows, validation: Rows | None = None, **options: Any) -> list[str]:
    step = passes.make("static-int8", options)
    assert isinstance(step, Pass)
    change: Change = step.apply(
        model.clone(), Context(Facets(calibration=calibration, validation=validation))
    )
    return change.notes


def test_good_data_are_not_complained_about() -> None:
    assert notes(residual_net(), rows(SHAPE), Others(rows(SHAPE, seed=2).rows)) == []


def test_too_few_samples() -> None:
    (note,) = notes(residual_net(), rows(SHAPE, count=3))
    assert "3 calibration samples are few" in note


def test_a_range_that_one_sample_sets() -> None:
    data = rows(SHAPE)
    data.rows[7] = {"x": data.rows[7]["x"] * 40}
    found = notes(residual_net(), data, observer="min-max")
    assert any("one calibration sample alone sets the range of" in note for note in found)
    cut = notes(residual_net(), data, observer="percentile", percentile=96.0)
    assert not any("one calibration sample alone" in note for note in cut)


def test_channels_that_never_vary() -> None:
    model = residual_net()
    weight = next(node for node in model.graph if node.op_type == "Conv").inputs[1]
    assert weight is not None and weight.const_value is not None
    array = weight.const_value.numpy().copy()
    array[2] = 0
    weight.const_value = ir.tensor(array, name=weight.name)
    (note,) = notes(model, rows(SHAPE))
    assert "never vary" in note and "1 of 8 in /relu" in note


def test_another_preprocessing_than_the_validation_data() -> None:
    data = rows(SHAPE)
    raw = Others([{"x": (row["x"] * 58 + 120).astype(np.float32)} for row in data.rows])
    (note,) = notes(residual_net(), data, raw)
    assert "look unlike the validation samples" in note and "'x'" in note


def test_channels_of_the_input_that_never_vary() -> None:
    data = rows(SHAPE)
    for row in data.rows:
        row["x"][:, 1] = 0.3
    (note,) = notes(residual_net(), data)
    assert "never vary" in note and "1 of 3 in the input 'x'" in note
