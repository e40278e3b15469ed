"""``edgeopt.convert``: a file of another format, for no device in particular."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import edgeopt
from edgeopt.errors import ModelError, UserError

pytest.importorskip("ai_edge_litert", reason="needs the extra: pip install 'edgeopt[tflite]'")


def network(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """A convolution of an image of two channels, then some nodes from ``c`` to ``y``."""
    weight = np.random.default_rng(3).standard_normal((4, 2, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), *nodes],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2, 6, 7])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_file_computes_the_same_with_channels_last(tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    proto = network(helper.make_node("Relu", ["c"], ["y"]))
    written = edgeopt.convert(proto, tmp_path / "network.tflite")
    assert [(item.name, item.permutation) for item in written.adapters] == [
        ("x", (0, 2, 3, 1)),
        ("y", (0, 2, 3, 1)),
    ]
    image = np.random.default_rng(4).standard_normal((1, 2, 6, 7)).astype(np.float32)
    interpreter = Interpreter(str(tmp_path / "network.tflite"))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image.transpose(0, 2, 3, 1))
    interpreter.invoke()
    got = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    expected = ReferenceEvaluator(proto).run(None, {"x": image})[0]
    np.testing.assert_allclose(got.transpose(0, 3, 1, 2), expected, atol=1e-5)
    assert gc.isenabled()


def test_what_cannot_be_said_leaves_no_file_and_names_the_node(tmp_path: Path) -> None:
    proto = network(helper.make_node("Erf", ["c"], ["y"], name="/head/Erf"))
    with pytest.raises(ModelError, match="TFLite cannot run 1 node") as caught:
        edgeopt.convert(proto, tmp_path / "network.tflite")
    assert "/head/Erf" in str(caught.value.where)
    assert not list(tmp_path.iterdir())


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'network\.onnx'"):
        edgeopt.convert(network(helper.make_node("Relu", ["c"], ["y"])), tmp_path / "network.onnx")
