"""Judging a model that is changed from front to back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.passes import _judge
from edgeopt.passes._judge import Course, Judge
from edgeopt.passes._walk import segments

sys.path.insert(0, str(Path(__file__).parent))

from networks import Net, attention_net, residual_net, rows


def disturb(model: ir.Model, nodes: list[str], random: np.random.Generator) -> None:
    """Changes the weights that some nodes read."""
    for node in model.graph:
        for value in node.inputs[1:] if node.name in nodes else ():
            if value is not None and value.const_value is not None and value.dtype == ir.DataType.FLOAT:
                array = value.const_value.numpy()
                noise = random.standard_normal(array.shape).astype(np.float32) * np.float32(0.01)
                value.const_value = ir.tensor(array + noise, name=value.name)


@pytest.mark.parametrize("held", [0, 2**27])
@pytest.mark.parametrize(("network", "shape"), [(residual_net, (3, 8, 8)), (attention_net, (6, 32))])
def test_what_is_settled_need_not_run_again(
    network: Callable[[], ir.Model], shape: tuple[int, ...], held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_judge, "HELD", held)
    original = network()
    model, random = original.clone(), np.random.default_rng(0)
    judge = Judge.of(original, rows(shape, count=4).feeds(2))
    course = Course.of(judge, model)
    seen = [course.decibels()]
    assert seen[0] > 100
    for nodes in segments(model):
        disturb(model, nodes, random)
        assert course.decibels() == judge.decibels(model)
        seen.append(course.decibels())
        course.settle(nodes)
    assert course.decibels() == judge.decibels(model) == seen[-1] < 60
    assert len(set(seen)) > 3
    assert (course.settled == []) == (held > 0)


def test_an_output_that_no_input_reaches_is_judged_too() -> None:
    net = Net(["n", 4])
    made = net.add("MatMul", net.x, net.weight(4, 3))
    model = net.model(made, net.add("Neg", net.weight(5)))
    judge = Judge.of(model, rows((4,), count=2).feeds())
    assert Course.of(judge, model).decibels() == judge.decibels(model)
