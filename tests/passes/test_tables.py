"""Embedding tables: 8 bits with a scale per row or per column, gathered as integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from networks import Net, Rows

from edgeopt import passes, targets
from edgeopt.graph.execute import Executor
from edgeopt.graph.quantization import read, strip, with_rounded_constants
from edgeopt.passes import Context, Facets, Pass
from edgeopt.platform import load_platform

PI = load_platform("raspberry-pi-4")


def embedded(spread: str) -> ir.Model:
    """Words of very different lengths, or of very different channels, normalized and multiplied."""
    net = Net(["n", 5], dtype=ir.DataType.INT64)
    table = net.random.standard_normal((64, 16)).astype(np.float32)
    factors = np.exp(2 * net.random.standard_normal(64 if spread == "rows" else 16)).astype(np.float32)
    table *= factors[:, None] if spread == "rows" else factors
    table[0] = 0
    gathered = net.add("Gather", net.constant(table, "table"), net.x)
    norm = net.add("LayerNormalization", gathered, net.weight(16), net.weight(16), axis=-1)
    return net.model(net.add("MatMul", norm, net.weight(16, 8)))


def texts() -> Rows:
    random = np.random.default_rng(3)
    return Rows([{"x": random.integers(1, 64, (1, 5))} for _ in range(60)])


def quantized(model: ir.Model, **options: object) -> ir.Model:
    step = passes.make("static-int8", options)
    assert isinstance(step, Pass)
    made = model.clone()
    step.apply(made, Context(Facets(PI.rules, texts(), Rows(texts().rows[4::5]))))
    return made


def table_of(model: ir.Model) -> ir.DataType | None:
    gather = next(node for node in model.graph if node.op_type == "Gather")
    assert gather.inputs[0] is not None
    return gather.inputs[0].dtype


@pytest.mark.parametrize(("spread", "axis"), [("rows", 0), ("columns", 1)])
def test_a_table_has_its_scales_where_they_leave_less(spread: str, axis: int, tmp_path: Path) -> None:
    model = embedded(spread)
    made = quantized(model)
    params = {where.value: chain[0] for where, chain in read(made).items()}["table"]
    assert (params.dtype, params.axis) == (ir.DataType.INT8, axis)
    target = targets.make("onnxruntime")
    prepared, _ = target.prepare(made, PI)
    assert table_of(prepared) == ir.DataType.INT8
    assert all(value.uses() for value in prepared.graph.initializers.values())
    feeds = {"x": np.arange(60).reshape(12, 5)}
    expected, between = Executor(model).run(feeds), Executor(made).run(feeds)
    for name, array in Executor(prepared).run(feeds).items():
        np.testing.assert_allclose(array, between[name], rtol=1e-5, atol=1e-5)
        others = array[1:]  # the row of zeros is normalized from nothing
        assert np.abs(others - expected[name][1:]).max() < 0.05 * np.abs(expected[name]).max()
    target.emit(prepared, PI, tmp_path)
    with target.open(tmp_path, {"model": "model.onnx"}) as session:
        found = session.run(feeds)
    for name, array in between.items():
        assert np.abs(found[name] - array).max() < 0.05 * np.abs(array).max()


def test_where_integers_are_added_all_rows_have_one_scale() -> None:
    params = {
        where.value: chain[0] for where, chain in read(quantized(embedded("rows"), throughout="int8")).items()
    }
    assert params["table"].axis in (1, None)


def test_a_table_that_a_product_reads_too_has_scales_for_both(tmp_path: Path) -> None:
    net = Net(["n", 5], dtype=ir.DataType.INT64)
    table = net.constant(net.random.standard_normal((64, 16)).astype(np.float32) / 4, "table")
    norm = net.add(
        "LayerNormalization", net.add("Gather", table, net.x), net.weight(16), net.weight(16), axis=-1
    )
    flat = net.add("Reshape", norm, net.constant(np.array([-1, 16], np.int64)))
    model = net.model(net.add("Gemm", flat, table, transB=1))
    made = quantized(model)
    prepared, _ = targets.make("onnxruntime").prepare(made, PI)
    stored = [
        v for v in prepared.graph.initializers.values() if v.shape is not None and v.shape.numpy() == (64, 16)
    ]
    assert [value.dtype for value in stored] == [ir.DataType.INT8]  # once, for both of its readers
    feeds = {"x": np.arange(60).reshape(12, 5)}
    expected = Executor(model).run(feeds)
    plain = prepared.clone()
    strip(plain)
    for candidate in (prepared, with_rounded_constants(prepared), plain):  # the Gather reads integers still
        for name, array in Executor(candidate).run(feeds).items():
            assert np.abs(array - expected[name]).max() < 0.05 * np.abs(expected[name]).max()
