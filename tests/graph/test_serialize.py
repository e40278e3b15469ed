"""Writing models: what is in the file, and what of the exporter's notes is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.graph import serialize
from edgeopt.graph.names import ORIGINAL_NAMES


@pytest.fixture
def model() -> ir.Model:
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.normal(size=(100, 100)).astype(np.float32), "w"),
        numpy_helper.from_array(random.normal(size=(100,)).astype(np.float32), "small"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "product", doc_string="File net.py, line 3"),
        helper.make_node("Add", ["a", "small"], ["y"], "sum"),
    ]
    for node in nodes:
        node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File net.py")
        node.metadata_props.add(key=ORIGINAL_NAMES, value='["mine"]')
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 100])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 100])
    graph = helper.make_graph(nodes, "test", [given], [made], weights)
    graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 100]))
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="p"
    )
    proto.doc_string = "by its author"
    proto.metadata_props.add(key="labels", value="cat, dog")
    proto.graph.metadata_props.add(key="pkg.torch.export.graph_signature", value="long")
    return ir.from_proto(proto)


def run(proto: bytes) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"x": np.ones((2, 100), np.float32)})[0]
    return found


def test_the_file_holds_the_model(model: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    serialize.save(model, path)
    written, expected = onnx.load(path), serialize.to_proto(model)
    assert sorted(item.name for item in written.graph.initializer) == ["small", "w"]
    assert written.graph.node == expected.graph.node
    assert written.graph.value_info == expected.graph.value_info
    assert [item.name for item in written.graph.value_info] == ["a"], "initializers say their type themselves"
    assert written.opset_import == expected.opset_import
    assert (written.producer_name, written.ir_version) == ("p", 8)
    np.testing.assert_array_equal(run(path.read_bytes()), run(ir.to_proto(model).SerializeToString()))
    onnx.checker.check_model(written)


def test_exporters_notes_go_and_the_authors_stay(model: ir.Model) -> None:
    serialize.strip(model)
    proto = serialize.to_proto(model)
    assert [(item.key, item.value) for item in proto.graph.node[0].metadata_props] == [
        (ORIGINAL_NAMES, '["mine"]')
    ]
    assert not proto.graph.node[0].doc_string
    assert not proto.graph.metadata_props
    assert proto.doc_string == "by its author"
    assert [(item.key, item.value) for item in proto.metadata_props] == [("labels", "cat, dog")]
