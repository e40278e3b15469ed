"""Models cut into prefixes, whose differences are layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from edgeopt.runners.emulator import prefixes

FLOAT = """
<ir_version: 8, opset_import: ["" : 17]>
chain (float[1, 3, 8, 8] x) => (float[1, 4] y)
{
    [first] a = Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (x, w1, b1)
    b = Relu (a)
    [second] c = Conv <group = 4, pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (b, w2)
    d = Relu (c)
    [third] e = Conv <kernel_shape = [1, 1]> (d, w3)
    f = Add (e, b)
    g = GlobalAveragePool (f)
    y = Flatten (g)
}
"""

QUANTIZED = """
<ir_version: 8, opset_import: ["" : 17]>
quantized (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
{
    w1f = DequantizeLinear <axis = 0> (w1, sw, zw)
    w2f = DequantizeLinear <axis = 0> (w2, sw, zw)
    q0 = QuantizeLinear (x, s, z)
    d0 = DequantizeLinear (q0, s, z)
    c1 = Conv (d0, w1f)
    r1 = Relu (c1)
    q1 = QuantizeLinear (r1, s, z)
    d1 = DequantizeLinear (q1, s, z)
    c2 = Conv (d1, w2f)
    q2 = QuantizeLinear (c2, s, z)
    y = DequantizeLinear (q2, s, z)
}
"""


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).uniform(0.1, 0.2, shape).astype(np.float32)


CONSTANTS = {
    FLOAT: {
        "w1": weights(4, 3, 3, 3),
        "b1": weights(4),
        "w2": weights(4, 1, 3, 3),
        "w3": weights(4, 4, 1, 1),
    },
    QUANTIZED: {
        "s": np.float32(0.05),
        "z": np.uint8(100),
        "sw": weights(4),
        "zw": np.zeros(4, np.int8),
        "w1": np.arange(12, dtype=np.int8).reshape(4, 3, 1, 1),
        "w2": np.arange(16, dtype=np.int8).reshape(4, 4, 1, 1),
    },
}


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str], Path]:
    def saved(text: str) -> Path:
        tensors = [ir.tensor(np.asarray(array), name=name) for name, array in CONSTANTS[text].items()]
        ir.save(ir.from_onnx_text(text, initializers=tensors), tmp_path / "model.onnx")
        return tmp_path / "model.onnx"

    return saved


def run(path: Path) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    return list(session.run(None, {"x": x}))


def test_layers_end_where_kernels_end(save: Callable[[str], Path], tmp_path: Path) -> None:
    source = save(FLOAT)
    cut = prefixes.write(source, tmp_path, limit=9)
    kernels = [prefix.kernel for prefix in cut]
    assert kernels[:3] == ["Conv", "Conv depthwise", "Conv 1x1"]  # each with its activation or sum
    assert cut[0].layer == "first"
    types = [node.op_type for node in ir.load(cut[1].file).graph]
    assert types == ["Conv", "Relu", "Conv", "Relu"]
    assert len(run(cut[1].file)) == 2  # the sum still needs the first layer's output
    np.testing.assert_array_equal(run(cut[-1].file)[0], run(source)[0])


def test_quantized_models_are_cut_at_integers_alone(save: Callable[[str], Path], tmp_path: Path) -> None:
    source = save(QUANTIZED)
    cut = prefixes.write(source, tmp_path)
    assert [prefix.kernel for prefix in cut] == ["Conv", "Conv"]
    assert run(cut[0].file)[0].dtype == np.uint8
    assert "w2" not in ir.load(cut[0].file).graph.initializers
    np.testing.assert_array_equal(run(cut[-1].file)[0], run(source)[0])


def test_large_models_are_cut_into_so_many_stretches(save: Callable[[str], Path], tmp_path: Path) -> None:
    assert len(prefixes.write(save(FLOAT), tmp_path, limit=2)) == 2


def test_tflite_files_are_cut_after_each_operation(tmp_path: Path) -> None:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="needs the extra tflite")
    from edgeopt.targets.tflite import flatbuffer
    from edgeopt.targets.tflite.program import Operation, Program, Tensor

    x, a, y = (Tensor(name, (1, 4), "float32") for name in "xay")
    program = Program(inputs=[x], outputs=[y])
    program.operations.append(Operation("ABS", [x], [a]))
    program.operations.append(Operation("NEG", [a], [y]))
    source = tmp_path / "model.tflite"
    source.write_bytes(flatbuffer.write(program))
    cut = prefixes.write(source, tmp_path)
    assert [prefix.kernel for prefix in cut] == ["ABS", "NEG"]
    for prefix, sign in zip(cut, (1, -1), strict=True):
        opened = interpreter.Interpreter(model_path=str(prefix.file))
        opened.allocate_tensors()
        opened.set_tensor(opened.get_input_details()[0]["index"], np.full((1, 4), -2, np.float32))
        opened.invoke()
        assert opened.get_tensor(opened.get_output_details()[0]["index"])[0, 0] == 2 * sign
