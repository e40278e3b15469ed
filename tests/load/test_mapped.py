"""Weights that stay in the model's file: the same model, and whatever is no such file is read as ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.errors import ModelError
from edgeopt.load import load, mapped


@pytest.fixture(autouse=True)
def worth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "WORTH", 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.normal(size=(100, 64)).astype(np.float32), "w"),
        numpy_helper.from_array(random.normal(size=(64,)).astype(np.float32), "small"),
        helper.make_tensor("typed", TensorProto.FLOAT, [64, 100], random.normal(size=6400).tolist()),
        helper.make_tensor(
            "half", TensorProto.BFLOAT16, [64, 200], np.zeros(12800, np.uint16).tobytes(), raw=True
        ),
        numpy_helper.from_array(np.arange(9000, dtype=np.int64), "numbers"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], doc_string="a long way " * 20),
        helper.make_node("Add", ["a", "small"], ["b"]),
        helper.make_node("MatMul", ["b", "typed"], ["y"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 100])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 100])
    graph = helper.make_graph(nodes, "test", [given], [made], weights)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_mapped_model_is_the_same_model(path: Path) -> None:
    one, two = load(path), load(path, mapped=True)
    assert ir.to_proto(one) == ir.to_proto(two)


def test_only_large_plain_weights_are_mapped(path: Path) -> None:
    _, found = mapped.read(path)
    assert sorted(found) == ["numbers", "w"]


def test_a_cut_off_file_is_refused_as_ever(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelError, match="truncated"):
        load(path, mapped=True)


def test_text_is_refused_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("no model\n" * 20)
    with pytest.raises(ModelError, match="text file"):
        load(path, mapped=True)


def test_a_weight_of_the_wrong_length_is_refused_as_ever(path: Path) -> None:
    model = onnx.load(path)
    model.graph.initializer[0].dims[0] = 99
    onnx.save(model, path)
    with pytest.raises(ModelError, match="its shape"):
        load(path, mapped=True)


def test_a_weight_that_is_not_finite_is_refused(path: Path) -> None:
    model = onnx.load(path)
    numbers = numpy_helper.to_array(model.graph.initializer[0]).copy()
    numbers[50, 3] = np.nan
    model.graph.initializer[0].raw_data = numbers.tobytes()
    onnx.save(model, path)
    with pytest.raises(ModelError, match="holds NaN"):
        load(path, mapped=True)


def test_large_finite_weights_whose_sum_is_infinite_are_no_error(path: Path) -> None:
    model = onnx.load(path)
    model.graph.initializer[0].raw_data = np.full((100, 64), 3e38, np.float32).tobytes()
    onnx.save(model, path)
    assert load(path, mapped=True).graph.initializers["w"].const_value is not None
