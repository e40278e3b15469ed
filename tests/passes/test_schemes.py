"""16-bit activations, bfloat16 weights, and activations that float16 cannot hold."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from networks import Net, Rows, residual_net, rows

from edgeopt import fidelity, passes
from edgeopt.errors import PassError, UserError
from edgeopt.graph.change import Change
from edgeopt.graph.execute import Executor
from edgeopt.graph.quantization import read
from edgeopt.passes.base import Context, Facets, Pass
from edgeopt.platform import RuntimeVersion, load_platform

SHAPE = (3, 8, 8)


def apply(
    name: str,
    model: ir.Model,
    data: Rows | None = None,
    rules: RuntimeVersion | None = None,
    **options: object,
) -> tuple[ir.Model, Change]:
    step = passes.make(name, options)
    assert isinstance(step, Pass)
    changed = model.clone()
    return changed, step.apply(changed, Context(Facets(calibration=data, rules=rules)))


def decibels(model: ir.Model, other: ir.Model) -> float:
    value = fidelity.compare(Executor(model).run, Executor(other).run, rows(SHAPE).feeds(8)).value
    assert value is not None
    return value


def test_sixteen_bits_leave_the_noise_of_the_weights_alone() -> None:
    model = residual_net()
    eight, _ = apply("static-int8", model, rows(SHAPE))
    sixteen, change = apply("static-int8", model, rows(SHAPE), activation_bits=16)
    kinds = {chain[0].dtype for chain in read(sixteen).values()}
    assert kinds == {ir.DataType.UINT16, ir.DataType.INT8}
    assert decibels(model, sixteen) > decibels(model, eight) + 2
    assert any("no integer kernels" in note for note in change.notes)
    old = model.clone()
    old.opset_imports[""] = 19
    with pytest.raises(PassError, match="opset 21"):
        apply("static-int8", old, rows(SHAPE), activation_bits=16)
    with pytest.raises(UserError, match="8 or 16"):
        passes.make("quantize", {"activation_bits": 12})


def test_bfloat16_has_the_range_of_float32() -> None:
    net = Net(["n", 16])
    large = net.constant((np.random.default_rng(0).standard_normal((16, 16)) * 1e6).astype(np.float32))
    model = net.model(net.add("MatMul", net.x, large))
    _, change = apply("float16", model)
    assert change.skipped and "65504" in change.skipped[0].reason
    stored, change = apply("float16", model, type="bfloat16")
    assert not change.skipped and "bfloat16" in change.summary
    data = rows((16,))
    value = fidelity.compare(Executor(model).run, Executor(stored).run, data.feeds()).value
    assert value is not None and 45 < value < 70


def test_activations_that_overflow_an_engine_are_named() -> None:
    rules = load_platform("jetson-nano", "tensorrt").rules
    model = residual_net()
    _, change = apply("float16", model, rows(SHAPE), rules)
    assert change.notes == []
    data = Rows([{"x": row["x"] * 1e6} for row in rows(SHAPE, count=4).rows])
    _, change = apply("float16", model, data, rules)
    assert len(change.notes) == 1 and "the engine overflows there" in change.notes[0]
