from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.graph import proof
from edgeopt.graph.names import name_nodes, original_names
from edgeopt.graph.opset import raise_opset


def model(opset: int = 11, operator: str = "Squeeze", domain: str = "", size: int = 4) -> ir.Model:
    weight = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["x"], ["a"], axes=[1], name="first"),
            helper.make_node("Squeeze", ["a"], ["b"], axes=[1], name="second"),
            helper.make_node("MatMul", ["b", "w"], ["c"], name="third"),
            helper.make_node("Softmax", ["c"], ["y"], name="fourth", axis=1),
        ],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", size])],
        [numpy_helper.from_array(weight, "w")],
    )
    return ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)
    )


@pytest.mark.parametrize("size", [4, 64])
def test_an_old_model_is_raised_and_proved(size: int) -> None:
    before = model(size=size)
    after, note = raise_opset(before)
    assert note is None
    assert after.opset_imports[""] == 21
    assert not proof.compare_models(before, after).reason
    onnx.checker.check_model(ir.to_proto(after))
    assert [value.name for value in after.graph.inputs] == ["x"]
    assert before.opset_imports[""] == 11, "the model given is not changed"


def test_weights_are_the_same_tensors() -> None:
    before = model(size=64)
    after, _ = raise_opset(before)
    assert after.graph.initializers["w"].const_value is before.graph.initializers["w"].const_value


def test_original_names_survive() -> None:
    before = model()
    name_nodes(before)
    after, _ = raise_opset(before)
    assert {name for node in after.graph for name in original_names(node)} == {
        "first",
        "second",
        "third",
        "fourth",
    }


def test_a_model_that_is_new_enough_is_returned_as_it_is() -> None:
    before, note = raise_opset(model(11), 13)
    assert note is None
    same, note = raise_opset(before, 13)
    assert same is before
    assert note is None


def test_a_model_that_cannot_be_raised_stays_with_a_reason() -> None:
    graph = helper.make_graph(
        [helper.make_node("Upsample", ["x"], ["y"], mode="nearest", width_scale=2.0, height_scale=2.0)],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 4, 4])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 1)], ir_version=3)
    before = ir.from_proto(proto)
    after, note = raise_opset(before)
    assert after is before
    assert note is not None
    assert note.startswith("the model stays at opset 1: ")
    assert "\n" not in note


def test_published_models_are_raised(zoo: Path) -> None:
    for path in [zoo / "models" / "dtln_model_1.onnx", *sorted((zoo / "published_onnx").glob("*.onnx"))]:
        before = ir.load(path)
        after, note = raise_opset(before)
        assert note is None
        assert after.opset_imports[""] == 21


def test_a_large_model_is_raised_with_a_note_that_it_is_unproved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "WHOLE_MODEL", 8)
    after, note = raise_opset(model())
    assert after.opset_imports[""] == 21
    assert note == "the model was raised to opset 21 unproved: above 1 GiB it is not run"
