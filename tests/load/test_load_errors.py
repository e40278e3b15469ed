"""What a user sees who gives the command a model that cannot be compiled: one sentence, exit code 2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.cli import call


def save(path: Path, weight: np.ndarray, op_type: str = "Relu") -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
        helper.make_node(op_type, ["h"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=0)


def missing(folder: Path) -> None:
    save(folder / "other.onnx", np.ones((4, 3), np.float32))


def truncated(folder: Path) -> None:
    save(folder / "model.onnx", np.ones((4, 3), np.float32))
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-9])


def corrupt(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(bytes(range(256)) * 4)


def external_missing(folder: Path) -> None:
    save(folder / "model.onnx", np.ones((4, 3), np.float32))
    (folder / "w.data").unlink()


def nan(folder: Path) -> None:
    save(folder / "model.onnx", np.full((4, 3), np.nan, np.float32))


def unknown(folder: Path) -> None:
    save(folder / "model.onnx", np.ones((4, 3), np.float32), "Frobnicate")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (missing, "error: there is no such model file"),
        (truncated, "error: this is no ONNX model, or a truncated one"),
        (corrupt, "error: this is no ONNX model, or a truncated one"),
        (external_missing, "error: the external data of the weight 'w' are missing"),
        (nan, "error: the weight 'w' of the MatMul node 'product' holds NaN"),
        (unknown, "Frobnicate is an operator no runtime knows"),
    ],
)
def test_one_sentence_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEOPT_CACHE", str(tmp_path / "cache"))
    make(tmp_path)
    assert call(["compile", "model.onnx", "--device", "raspberry-pi-4", "-o", "out"]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert "Traceback" not in shown.err
    assert not Path("out").exists()


def test_a_wrong_input_name_in_a_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEOPT_CACHE", str(tmp_path / "cache"))
    save(tmp_path / "model.onnx", np.ones((4, 3), np.float32))
    assert call(["compile", "model.onnx", "--device", "raspberry-pi-4", "--shape", "xs=1,4"]) == 2
    assert "the model has no input 'xs'\n  nearest: x" in capsys.readouterr().err
