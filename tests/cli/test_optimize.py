from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeopt
from edgeopt.cli import call
from edgeopt.errors import UserError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    weight = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["x"], ["a"]),
            helper.make_node("MatMul", ["a", "w"], ["b"]),
            helper.make_node("Relu", ["b"], ["y"]),
        ],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_it_writes_a_smaller_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = model.with_name("out.onnx")
    assert call(["optimize", str(model), "-o", str(output)]) == 0
    assert "3 -> 2 nodes" in capsys.readouterr().out
    written = onnx.load(output)
    onnx.checker.check_model(written)
    assert [node.op_type for node in written.graph.node] == ["MatMul", "Relu"]
    assert written.opset_import[0].version == 17
    assert not [path for path in model.parent.iterdir() if path.name.startswith(".")], "a temporary file"


def test_json_and_chosen_passes(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = model.with_name("out.onnx")
    arguments = ["optimize", str(model), "-o", str(output), "--pass", "fuse-clip", "--pass", "simplify"]
    assert call([*arguments, "--json", "--verify", "full", "--opset", "21"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["nodes"] == {"before": 3, "after": 2}
    assert [item["name"] for item in report["passes"]] == ["convert-opset", "fuse-clip", "simplify"]
    assert report["bytes"] == output.stat().st_size
    assert onnx.load(output).opset_import[0].version == 21


def test_a_foreign_file_is_not_overwritten(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = model.with_name("out.onnx")
    output.write_bytes(b"precious")
    assert call(["optimize", str(model), "-o", str(output)]) == 2
    assert "edgeopt did not write it" in capsys.readouterr().err
    assert output.read_bytes() == b"precious"
    assert call(["optimize", str(model), "-o", str(output), "--force"]) == 0
    assert call(["optimize", str(model), "-o", str(output)]) == 0, "our own file may be replaced"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--pass", "simplfy"], "there is no pass 'simplfy'\n  nearest: simplify"),
        (["--opset", "3"], "the opset 3 is not one that a model can be raised to"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert call(["optimize", str(model), "-o", str(model.with_name("out.onnx")), *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_a_missing_folder_is_told_before_any_work(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["optimize", str(model), "-o", str(model.parent / "none" / "out.onnx")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_the_same_from_python(model: Path) -> None:
    proto = onnx.load(model)
    for source in (str(model), model, proto):
        optimized = edgeopt.optimize(source)
        assert [node.op_type for node in optimized.graph.node] == ["MatMul", "Relu"]
    assert len(proto.graph.node) == 3
    with pytest.raises(UserError, match="there is no pass"):
        edgeopt.optimize(model, steps=["no-such-pass"])


@pytest.mark.parametrize("width", [4, 4096])
def test_external_weights_come_along(tmp_path: Path, width: int) -> None:
    """As torch's exporter writes them: small and large ones, in a file beside the model."""
    weight = np.random.default_rng(0).normal(size=(8, width)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(weight, "w")],
    )
    source, other = tmp_path / "source", tmp_path / "other"
    source.mkdir()
    other.mkdir()
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = source / "model.onnx"
    onnx.save(proto, model, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    assert call(["optimize", str(model), "-o", str(other / "out.onnx")]) == 0
    optimized = edgeopt.optimize(model)
    for path in source.iterdir():
        path.unlink()
    for written in (onnx.load(other / "out.onnx"), optimized):
        np.testing.assert_array_equal(numpy_helper.to_array(written.graph.initializer[0]), weight)
    assert [path.name for path in other.iterdir()] == ["out.onnx"]
