"""Reference execution does not saturate where the integer kernels of some hosts do.

x86 without VNNI multiplies unsigned by signed bytes with ``vpmaddubsw``: two neighbouring products are added
in 16 bits, and what does not fit is cut off at 32767. ``saturating`` computes exactly that, so that a host
which has VNNI shows the difference too.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.graph.execute import Executor
from edgeopt.graph.quantization import QuantParams, Site, dequantize_array, quantize_array, write
from edgeopt.host import distortion

DEPTH = 64
CONFIDENT, MODEST = 0, 1
"""Two classes: weights of the first are large and alike, those of the second are not, and sum up to less."""

ACTIVATION = QuantParams(ir.DataType.UINT8, np.float32(1 / 255))
WEIGHT = QuantParams(ir.DataType.INT8, np.array([1 / 127, 0.8 / 127], np.float32), axis=1)


def weights() -> np.ndarray:
    """float32 [depth, classes]."""
    confident = np.where(np.arange(DEPTH) % 8 < 6, 1.0, -0.2)
    modest = np.where(np.arange(DEPTH) % 2 == 0, 0.8, 0.2)
    return np.stack([confident, modest], axis=1).astype(np.float32)


def classifier(kind: str) -> ir.Model:
    """A product of u8 activations and s8 weights as a MatMul or a 1x1 Conv, quantized and scored."""
    if kind == "MatMul":
        x = ir.val("x", ir.DataType.FLOAT, [1, DEPTH])
        weight, params = weights(), WEIGHT
        attributes: dict[str, object] = {}
    else:
        x = ir.val("x", ir.DataType.FLOAT, [1, DEPTH, 1, 1])
        weight, params = weights().T[:, :, None, None], QuantParams(WEIGHT.dtype, WEIGHT.scale, None, 0)
        attributes = {"kernel_shape": [1, 1]}
    constant = ir.val("w", ir.DataType.FLOAT, weight.shape, const_value=ir.tensor(weight, name="w"))
    node = ir.node(kind, [x, constant], attributes, name="product")
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [x], node.outputs, nodes=[node], initializers=[constant], opset_imports={"": 21}, name="g"
    )
    model = ir.Model(graph, ir_version=10)
    write(model, {Site("x"): [ACTIVATION], Site("w"): [params]})
    return model


def exact(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """int64 [classes]: the product of bytes."""
    return x.astype(np.int64) @ weight.astype(np.int64)


def saturating(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """int64 [classes]: the same by ``vpmaddubsw``, which adds pairs of products in saturated 16 bits."""
    products = x.astype(np.int64)[:, None] * weight.astype(np.int64)
    pairs = products[0::2] + products[1::2]
    return np.clip(pairs, -(2**15), 2**15 - 1).sum(0)


@pytest.mark.parametrize("kind", ["MatMul", "Conv"])
def test_reference_execution_is_exact_where_saturating_products_choose_another_class(kind: str) -> None:
    bright = np.linspace(0.9, 1.0, DEPTH, dtype=np.float32)
    x, weight = quantize_array(bright, ACTIVATION), quantize_array(weights(), WEIGHT)
    model = classifier(kind)
    with Executor(model) as executor:
        (value,) = executor.run(
            {"x": bright.reshape([1, DEPTH] if kind == "MatMul" else [1, DEPTH, 1, 1])}
        ).values()
    found = value.reshape(-1)
    assert WEIGHT.scale is not None and ACTIVATION.scale is not None
    step = ACTIVATION.scale * WEIGHT.scale
    np.testing.assert_allclose(found / step, exact(x, weight), rtol=1e-6)
    wrong = saturating(x, weight) * step
    assert np.argmax(found) == CONFIDENT and np.argmax(wrong) == MODEST
    assert 10 * np.log10(np.sum(found**2) / np.sum((found - wrong) ** 2)) < 10  # dB, far off


@pytest.mark.parametrize("kind", ["MatMul", "Conv"])
def test_the_naive_session_of_a_host_is_right_only_if_the_host_does_not_saturate(kind: str) -> None:
    bright = np.full(DEPTH, 1.0, np.float32)
    feeds = {"x": bright.reshape([1, DEPTH] if kind == "MatMul" else [1, DEPTH, 1, 1])}
    with Executor(classifier(kind)) as honest, Executor(classifier(kind), optimize=True) as naive:
        (one,), (two,) = (list(executor.run(feeds).values()) for executor in (honest, naive))
    if distortion() is None:
        np.testing.assert_allclose(two, one, rtol=1e-5)
    x, weight = quantize_array(bright, ACTIVATION), quantize_array(weights(), WEIGHT)
    assert WEIGHT.scale is not None and ACTIVATION.scale is not None
    step = ACTIVATION.scale * WEIGHT.scale
    candidates = [exact(x, weight) * step, saturating(x, weight) * step]
    assert any(np.allclose(two.reshape(-1), item, rtol=1e-5) for item in candidates)


def test_small_numbers_do_not_saturate() -> None:
    dim = np.linspace(0.0, 0.3, DEPTH, dtype=np.float32)
    x, weight = quantize_array(dim, ACTIVATION), quantize_array(weights(), WEIGHT)
    assert np.array_equal(saturating(x, weight), exact(x, weight))
    np.testing.assert_allclose(dequantize_array(x, ACTIVATION), dim, atol=0.5 / 255)
