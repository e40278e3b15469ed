"""Ranges before activation functions that are flat somewhere."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from networks import Net

from edgeopt.graph.execute import Executor
from edgeopt.graph.observers import Observer
from edgeopt.passes._saturating import function_of


@pytest.mark.parametrize("operator", ["HardSwish", "HardSigmoid", "Sigmoid", "Tanh"])
def test_the_function_is_what_the_operator_computes(operator: str) -> None:
    net = Net(["n"])
    model = net.model(net.add(operator, net.x))
    numbers = np.linspace(-9, 9, 101).astype(np.float32)
    with Executor(model) as executor:
        (made,) = executor.run({"x": numbers}).values()
    function = function_of(model.graph[0])
    assert function is not None
    np.testing.assert_allclose(function(numbers.astype(np.float64)), made, atol=2e-6)


def test_no_level_is_spent_where_the_function_is_flat() -> None:
    observer = Observer()
    observer.see(np.random.default_rng(0).uniform(-12, 4, 8192).astype(np.float32))
    net = Net(["n"])
    swish = function_of(net.model(net.add("HardSwish", net.x)).graph[0])
    plain = observer.range("mse", ir.DataType.UINT8)
    low, high = observer.range("mse", ir.DataType.UINT8, behind=swish)
    assert plain[0] < -11
    assert -3.5 < low <= -2.5
    assert high > 3.8
