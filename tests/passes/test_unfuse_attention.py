"""Attention that comes as one operator is taken apart where the runtime has no kernel of it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from networks import Net, Rows

from edgeopt import fidelity, passes
from edgeopt.graph.execute import Executor
from edgeopt.graph.quantization import read
from edgeopt.graph.shapes import infer_shapes
from edgeopt.passes import Context, Facets
from edgeopt.platform import load_platform


def model() -> ir.Model:
    """Self-attention of four heads as one operator of opset 23, with its projections."""
    net = Net(["n", 6, 32])
    parts = [net.add("MatMul", net.x, net.weight(32, 32)) for _ in range(3)]
    joined = net.add("Attention", *parts, q_num_heads=4, kv_num_heads=4)
    built = net.model(net.add("MatMul", joined, net.weight(32, 32)))
    built.graph.opset_imports[""], built.ir_version = 23, 11
    infer_shapes(built)
    return built


def unfused(target: str | None) -> ir.Model:
    changed = model()
    rules = None if target is None else load_platform("raspberry-pi-4", target).rules
    passes.make("unfuse-attention").apply(changed, Context(Facets(rules=rules)))  # type: ignore[union-attr]
    return changed


def operators(item: ir.Model) -> list[str]:
    return [node.op_type for node in item.graph]


def test_it_is_taken_apart_where_the_runtime_has_no_kernel() -> None:
    assert "Attention" in operators(unfused(None))
    assert "Attention" in operators(unfused("onnxruntime"))
    changed = unfused("tflite")
    assert "Attention" not in operators(changed) and operators(changed).count("MatMul") == 6
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 6, 32)).astype(np.float32)}
    with Executor(model()) as one, Executor(changed) as two:
        expected, actual = (next(iter(item.run(feeds).values())) for item in (one, two))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_its_products_are_quantized_then_and_it_stays_in_float_otherwise() -> None:
    random = np.random.default_rng(1)
    data = Rows([{"x": random.standard_normal((1, 6, 32)).astype(np.float32)} for _ in range(20)])
    for target, layers in (("tflite", 6), ("onnxruntime", 4)):
        changed = unfused(target)
        plain = changed.clone()
        facets = Facets(rules=load_platform("raspberry-pi-4", target).rules, calibration=data)
        passes.make("static-int8").apply(changed, Context(facets))  # type: ignore[union-attr]
        readers = [node for node in plain.graph if node.op_type == "MatMul"]
        assert len(readers) == layers and read(changed)
        with Executor(plain) as one, Executor(changed) as two:
            value = fidelity.compare(one.run, two.run, data.feeds(4)).value
        assert value is not None and value > 25
