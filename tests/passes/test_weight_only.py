"""Weights in few bits: laid out as runtimes take them, rounded by what their layers multiply."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from networks import Net, Rows, attention_net, residual_net, rows

from edgeopt import fidelity, passes, targets
from edgeopt.errors import UserError
from edgeopt.graph.change import Change
from edgeopt.graph.execute import Executor
from edgeopt.graph.quantization import Site, read
from edgeopt.passes.base import Context, Facets, Pass
from edgeopt.platform import load_platform

PI = load_platform("raspberry-pi-4", "onnxruntime")


def apply(model: ir.Model, data: Rows | None = None, **options: Any) -> tuple[ir.Model, Change]:
    step = passes.make("weight-only", options)
    assert isinstance(step, Pass)
    changed = model.clone()
    change = step.apply(changed, Context(Facets(rules=PI.rules, calibration=data)))
    return changed, change


def decibels(model: ir.Model, other: ir.Model, data: Rows) -> float:
    value = fidelity.compare(Executor(model).run, Executor(other).run, data.feeds()).value
    assert value is not None
    return value


def wide_net() -> ir.Model:
    """Convolutions whose channels fill blocks, a depthwise one and a classifier."""
    net = Net(["n", 3, 6, 6])
    first = net.add("Relu", net.conv(net.x, 3, 32))
    second = net.add("Relu", net.conv(first, 32, 64))
    deep = net.add("Relu", net.conv(second, 64, 64, group=64))
    pooled = net.add("Flatten", net.add("GlobalAveragePool", net.conv(deep, 64, 64, kernel=1)))
    return net.model(net.add("Gemm", pooled, net.weight(16, 64), net.weight(16), transB=1))


def test_every_operator_has_its_own_blocks() -> None:
    quantized, change = apply(wide_net(), bits=4)
    found = {where.value: chain[0] for where, chain in read(quantized).items()}
    layouts = [(params.dtype, params.axis, params.block) for _, params in sorted(found.items())]
    int4, int8 = ir.DataType.INT4, ir.DataType.INT8
    assert layouts == [(int4, 0, 0), (int4, 1, 32), (int8, 0, 0), (int4, 1, 32), (int4, 1, 32)]
    assert change.details["storage_only"] == ["Conv", "Gemm"]
    assert any("storage alone" in note for note in change.notes)
    assert change.details["four_bit_share"] > 0.95


@pytest.mark.parametrize("net", ["residual", "wide", "attention"])
def test_data_make_four_bits_more_faithful(net: str) -> None:
    model = {"residual": residual_net, "wide": wide_net, "attention": attention_net}[net]()
    shape = {"residual": (3, 8, 8), "wide": (3, 6, 6), "attention": (6, 32)}[net]
    random = np.random.default_rng(7)
    mixing = random.standard_normal((shape[-1], shape[-1])) * np.geomspace(0.05, 1, shape[-1])
    data = Rows([{"x": (row["x"] @ mixing).astype(np.float32)} for row in rows(shape).rows])
    nearest, _ = apply(model, data, bits=4, rounding="nearest")
    learned, change = apply(model, data, bits=4)
    assert change.details["rounding"] == "gptq"
    assert decibels(model, learned, data) > decibels(model, nearest, data) + 1


def test_learned_weights_lie_on_their_grid() -> None:
    model, data = wide_net(), rows((3, 6, 6))
    learned, _ = apply(model, data, bits=4)
    again, _ = apply(model, data, bits=4)
    for where, chain in read(learned).items():
        tensor = learned.graph.initializers[where.value].const_value
        other = again.graph.initializers[where.value].const_value
        assert tensor is not None and other is not None
        np.testing.assert_array_equal(tensor.numpy(), other.numpy())
        assert chain == read(again)[where]


def test_the_artifact_computes_what_the_graph_says() -> None:
    net = Net(["n", 5], dtype=ir.DataType.INT64)
    table = net.weight(40, 64)
    model = net.model(net.add("MatMul", net.add("Gather", table, net.x), net.weight(64, 32, scale=0.2)))
    quantized, change = apply(model, bits=4)
    assert change.details["storage_only"] == []
    prepared, _ = targets.make("onnxruntime").prepare(quantized, PI)
    operators = [node.op_type for node in prepared.graph]
    assert "GatherBlockQuantized" in operators and "Gather" not in operators
    feeds = {"x": np.arange(10).reshape(2, 5)}
    with Executor(quantized) as one, Executor(prepared) as other:
        for name, array in one.run(feeds).items():
            np.testing.assert_allclose(other.run(feeds)[name], array, rtol=1e-5, atol=1e-6)


def test_convolutions_are_widened_when_the_model_is_loaded() -> None:
    model, data = wide_net(), rows((3, 6, 6), count=4)
    quantized, _ = apply(model, bits=4)
    prepared, change = targets.make("onnxruntime").prepare(quantized, PI)
    assert change.details["widened_at_load"] == 5
    assert not [node for node in prepared.graph if node.op_type == "DequantizeLinear"]
    assert decibels(quantized, prepared, data) > 100


def test_a_shared_weight_is_not_learned_for_one_of_its_readers() -> None:
    net = Net(["n", 4, 32])
    weight = net.weight(32, 32)
    model = net.model(net.add("MatMul", net.add("MatMul", net.x, weight), weight))
    quantized, _ = apply(model, rows((4, 32)), bits=4)
    tensor = quantized.graph.initializers[weight.name or ""].const_value
    assert tensor is not None and weight.const_value is not None
    np.testing.assert_array_equal(tensor.numpy(), weight.const_value.numpy())
    assert Site(weight.name or "") in read(quantized)


def test_options_are_checked() -> None:
    with pytest.raises(UserError, match="needs calibration data"):
        apply(wide_net(), bits=4, rounding="gptq")
    with pytest.raises(UserError, match="rounding"):
        passes.make("weight-only", {"rounding": "gtpq"})
