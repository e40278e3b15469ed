"""Full-integer models: all int8 inside, no number chosen by ``emit``, equal to the quantized graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from tflite_models import convert, feeds_of, model, node, platform, quantize

from edgeopt.graph.execute import Executor
from edgeopt.targets.tflite import Tflite
from edgeopt.targets.tflite.flatbuffer import read
from edgeopt.targets.tflite.lower import lower
from edgeopt.targets.tflite.program import Tensor

pytest.importorskip("ai_edge_litert", reason="needs the extra: pip install 'edgeopt[tflite]'")

RANDOM = np.random.default_rng(3)


def weight(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def network() -> ir.Model:
    """Convolutions of all kinds, a residual sum, squeeze-and-excite, a concat and a classifier."""
    nodes = [
        node("Conv", "x,w0,b0", "c0", pads=[1, 1, 1, 1]),
        node("Relu", "c0", "r0"),
        node("Conv", "r0,w1,b1", "c1", pads=[1, 1, 1, 1], group=8),
        node("Add", "r0,c1", "s"),
        node("HardSwish", "s", "h"),
        node("GlobalAveragePool", "h", "g"),
        node("Conv", "g,w2,b2", "c2"),
        node("HardSigmoid", "c2", "q", alpha=1 / 6, beta=0.5),
        node("Mul", "h,q", "m"),
        node("MaxPool", "m", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("AveragePool", "m", "a", kernel_shape=[2, 2], strides=[2, 2]),
        node("Concat", "p,a", "k", axis=1),
        node("Flatten", "k", "f"),
        node("Gemm", "f,w3,b3", "y", transB=1),
    ]
    constants = {
        "w0": weight(8, 3, 3, 3),
        "b0": weight(8),
        "w1": weight(8, 1, 3, 3),
        "b1": weight(8),
        "w2": weight(8, 8, 1, 1),
        "b2": weight(8),
        "w3": weight(10, 256),
        "b3": weight(10),
    }
    return model(nodes, {"x": [1, 3, 8, 8]}, ["y"], constants)


def decibels(signal: np.ndarray, noise: np.ndarray) -> float:
    return float(10 * np.log10((signal**2).sum() / max(float((noise**2).sum()), 1e-30)))


def test_a_network_runs_in_integers_throughout(tmp_path):
    quantized = quantize(network())
    session, prepared = convert(quantized, tmp_path)
    operations = lower(prepared).program.operations
    floats = [o.code for o in operations if any(t is not None and t.dtype == "float32" for t in o.inputs)]
    assert floats == ["QUANTIZE"]
    assert [o.code for o in operations][-1] == "DEQUANTIZE"
    feeds = feeds_of(quantized, 100)
    expected = Executor(quantized).run(feeds)["y"]
    assert decibels(expected, session.run(feeds)["y"] - expected) > 30


def test_emit_chooses_no_number(tmp_path):
    quantized = quantize(network())
    _, prepared = convert(quantized, tmp_path)
    stored = read((tmp_path / "model.tflite").read_bytes())
    by_name = {tensor.name: tensor for tensor in stored.tensors()}
    checked = 0
    for item in prepared.graph:
        if item.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        value = item.outputs[0] if item.op_type == "QuantizeLinear" else item.inputs[0]
        constant = item.inputs[0].const_value
        # A weight is stored under the name of the value that the operator reads.
        name = (item.outputs[0] if constant is not None else value).name
        tensor = by_name.get(name)
        if tensor is None:
            continue
        scale = np.atleast_1d(item.inputs[1].const_value.numpy())
        zero = np.atleast_1d(item.inputs[2].const_value.numpy()).astype(np.int64)
        assert np.array_equal(tensor.scale, scale)
        assert np.array_equal(tensor.zero_point, zero)
        if constant is not None:
            assert sorted(tensor.data.reshape(-1)) == sorted(constant.numpy().reshape(-1))
            _same_numbers(tensor, constant.numpy())
        checked += 1
    assert checked > 25


def _same_numbers(tensor: Tensor, array: np.ndarray) -> None:
    if array.ndim == 4 and array.shape[1] > 1:
        assert np.array_equal(tensor.data, array.transpose(0, 2, 3, 1))
    elif array.ndim == 4:
        assert np.array_equal(tensor.data, array.transpose(1, 2, 3, 0))
    else:
        assert np.array_equal(tensor.data.reshape(array.shape), array)


def test_integer_inputs_and_outputs_are_adapters(tmp_path):
    quantized = quantize(network())
    session, prepared = convert(quantized, tmp_path, io="int8")
    stored = read((tmp_path / "model.tflite").read_bytes())
    assert [tensor.dtype for tensor in (*stored.inputs, *stored.outputs)] == ["int8", "int8"]
    assert not {"QUANTIZE", "DEQUANTIZE"} & {operation.code for operation in stored.operations}
    adapters = {adapter.side: adapter for adapter in lower(prepared, "int8").adapters}
    assert adapters["input"].permutation == (0, 2, 3, 1)
    assert adapters["input"].scale is not None
    (tmp_path / "float").mkdir()
    other, _ = convert(quantized, tmp_path / "float")
    feeds = feeds_of(quantized, 100)
    assert np.array_equal(session.run(feeds)["y"], other.run(feeds)["y"])


def test_biases_are_int32_at_the_product_of_the_scales():
    quantized = quantize(model([node("Conv", "x,w,b", "y")], {"x": [1, 3, 5, 5]}, ["y"],
                               {"w": weight(4, 3, 3, 3), "b": weight(4)}))  # fmt: skip
    prepared, change = Tflite().prepare(quantized, platform())
    conv = next(o for o in lower(prepared).program.operations if o.code == "CONV_2D")
    source, kernel, bias = conv.inputs
    assert bias.dtype == "int32"
    assert np.array_equal(bias.scale, source.scale * kernel.scale)
    assert "bias" in {rewrite.rule for rewrite in change.rewrites}


@pytest.mark.parametrize(
    ("activation", "scale", "zero_point"),
    [("Softmax", 1 / 256, -128), ("Sigmoid", 1 / 256, -128), ("Tanh", 1 / 128, 0)],
)
def test_fixed_outputs_come_before_other_scales(tmp_path, activation, scale, zero_point):
    params = {
        "s": np.array(0.05, np.float32),
        "z": np.array(3, np.int8),
        "t": np.array(0.02, np.float32),
    }
    nodes = [
        node("QuantizeLinear", "x,s,z", "q"),
        node("DequantizeLinear", "q,s,z", "d"),
        node(activation, "d", "a"),
        node("QuantizeLinear", "a,t,z", "p"),
        node("DequantizeLinear", "p,t,z", "y"),
    ]
    given = model(nodes, {"x": [2, 12]}, ["y"], params)
    session, prepared = convert(given, tmp_path)
    made = next(o for o in lower(prepared).program.operations if o.code in ("SOFTMAX", "LOGISTIC", "TANH"))
    assert made.outputs[0].dtype == "int8"
    assert (made.outputs[0].scale[0], made.outputs[0].zero_point[0]) == (np.float32(scale), zero_point)
    feeds = {"x": weight(2, 12)}
    difference = np.abs(session.run(feeds)["y"] - Executor(given).run(feeds)["y"])
    assert difference.max() <= 0.0201


def test_what_is_joined_is_brought_to_one_scale(tmp_path):
    nodes = [
        node("Conv", "x,w", "a"),
        node("Conv", "x,v", "b"),
        node("Relu", "b", "c"),
        node("Concat", "a,c", "k", axis=1),
        node("Conv", "k,u", "y"),
    ]
    constants = {"w": weight(4, 3, 1, 1), "v": 5 * weight(4, 3, 1, 1), "u": weight(2, 8, 1, 1)}
    quantized = quantize(model(nodes, {"x": [1, 3, 4, 4]}, ["y"], constants))
    session, prepared = convert(quantized, tmp_path)
    concat = next(o for o in lower(prepared).program.operations if o.code == "CONCATENATION")
    assert {tensor.dtype for tensor in concat.inputs} == {"int8"}
    assert len({float(tensor.scale[0]) for tensor in (*concat.inputs, *concat.outputs)}) == 1
    feeds = feeds_of(quantized, 100)
    expected = Executor(quantized).run(feeds)["y"]
    assert decibels(expected, session.run(feeds)["y"] - expected) > 30


def test_what_is_not_quantized_stays_float(tmp_path):
    nodes = [node("Conv", "x,w", "a"), node("Exp", "a", "e"), node("Conv", "e,v", "y")]
    constants = {"w": weight(4, 3, 1, 1) / 4, "v": weight(2, 4, 1, 1)}
    quantized = quantize(model(nodes, {"x": [1, 3, 4, 4]}, ["y"], constants))
    session, prepared = convert(quantized, tmp_path)
    codes = [operation.code for operation in lower(prepared).program.operations]
    assert codes == ["QUANTIZE", "CONV_2D", "DEQUANTIZE", "EXP", "QUANTIZE", "CONV_2D", "DEQUANTIZE"]
    feeds = feeds_of(quantized, 100)
    expected = Executor(quantized).run(feeds)["y"]
    assert decibels(expected, session.run(feeds)["y"] - expected) > 30


def test_half_weights_are_widened_in_the_file(tmp_path):
    nodes = [node("Cast", "h", "w", to=TensorProto.FLOAT), node("Conv", "x,w", "y")]
    given = model(nodes, {"x": [1, 3, 6, 6]}, ["y"], {"h": weight(4, 3, 3, 3).astype(np.float16)})
    session, prepared = convert(given, tmp_path)
    stored = read((tmp_path / "model.tflite").read_bytes())
    assert [operation.code for operation in stored.operations] == ["DEQUANTIZE", "CONV_2D"]
    assert stored.operations[0].inputs[0].dtype == "float16"
    feeds = feeds_of(prepared)
    np.testing.assert_allclose(session.run(feeds)["y"], Executor(given).run(feeds)["y"], rtol=1e-5, atol=1e-5)


def test_unsigned_activations_are_refused():
    params = {"s": np.array(0.05, np.float32), "z": np.array(3, np.uint8)}
    nodes = [node("QuantizeLinear", "x,s,z", "q"), node("DequantizeLinear", "q,s,z", "y")]
    problems = Tflite().check(model(nodes, {"x": [2, 12]}, ["y"], params), platform())
    assert "only int8" in problems[0].reason


def test_a_prepared_model_holds_its_weights_once():
    prepared, _ = Tflite().prepare(quantize(network()), platform())
    floats = [
        value.const_value.nbytes
        for value in prepared.graph.initializers.values()
        if value.dtype == ir.DataType.FLOAT
    ]
    # What is left in float are scales.
    assert max(floats) <= 4 * 10
