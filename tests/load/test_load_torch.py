"""Loading torch modules and archives. All of these need torch, and are skipped without it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from edgeopt.errors import MissingExtra, ModelError, UserError
from edgeopt.load import load, unknown_operators
from edgeopt.load.torch_module import clean

BUILD = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
    def forward(self, image):
        return self.head(torch.relu(self.norm(self.conv(image))).mean((2, 3)))

def build():
    torch.manual_seed(0)
    return Net(), (torch.ones(2, 3, 8, 8),)

def bare():
    torch.manual_seed(0)
    return Net()

def number():
    return 3

def broken():
    raise ValueError("no weights here")
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch: Any) -> Path:
    """A folder, made current, that holds the module ``digits_net``."""
    (tmp_path / "digits_net.py").write_text(BUILD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "digits_net", raising=False)
    return tmp_path


def run(model: ir.Model, *arrays: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))


def test_a_function_that_builds_a_module(
    nets: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [entry for entry in sys.path if entry != str(nets)])
        model = load("digits_net:build")  # found in the current folder, wherever edgeopt is installed
    assert [value.name for value in model.graph.inputs] == ["image"]
    assert list(model.graph.inputs[0].shape or ()) == [2, 3, 8, 8]
    assert "/conv/Conv" in [node.name for node in model.graph]
    assert "conv.weight" in model.graph.initializers
    assert not any(node.metadata_props for node in model.graph)
    assert capfd.readouterr().out == ""
    from digits_net import build

    module, example = build()
    np.testing.assert_allclose(
        run(model, example[0].numpy())[0], module.eval()(*example).detach().numpy(), rtol=1e-5, atol=1e-6
    )
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_shapes_make_example_inputs_and_dynamic_axes(nets: Path) -> None:
    model = load("digits_net:bare", shapes={"image": ["batch", 3, "height", "width"]})
    assert str(model.graph.inputs[0].shape) == "[batch,3,height,width]"
    assert run(model, np.ones((5, 3, 9, 7), np.float32))[0].shape == (5, 2)


def test_shapes_resize_the_functions_own_example(nets: Path) -> None:
    model = load("digits_net:build", shapes={"image": [1, 3, 10, 8]})
    assert list(model.graph.inputs[0].shape or ()) == [1, 3, 10, 8]
    with pytest.raises(ModelError, match="cannot take"):
        load("digits_net:build", shapes={"image": [1, 3, 8]})


def test_the_users_module_is_left_as_it_was(nets: Path) -> None:
    from digits_net import bare

    module = bare()
    module.train()
    module.norm.eval()
    load(module, shapes={"image": [1, 3, 8, 8]})
    assert module.training
    assert not module.norm.training


def test_two_outputs_one_named_like_a_layer(torch: Any) -> None:
    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(10, 4)
            self.head = torch.nn.Linear(4, 3)

        def forward(self, ids: Any) -> Any:
            embedding = self.embedding(ids)
            return {"embedding": embedding, "logits": self.head(embedding.mean(1))}

    ids = np.array([[1, 2, 3], [4, 5, 9]])
    model = load(Encoder(), example={"ids": ids})
    assert [output.shape for output in run(model, ids)] == [(2, 3, 4), (2, 3)]


def test_names_given_twice_are_told_apart() -> None:
    x, inner, outer = (ir.Value(name=name) for name in ("x", "embedding", "embedding"))
    for value in (x, inner, outer):
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1])
    nodes = [
        ir.Node("", "Relu", [x], outputs=[inner], name="n"),
        ir.Node("", "Neg", [inner], outputs=[outer], name="n"),
    ]
    graph = ir.Graph([x], [outer], nodes=nodes, opset_imports={"": 20}, name="g")
    model = clean(ir.Model(graph, ir_version=10))
    assert outer.name == "embedding"
    assert inner.name == "embedding_1"
    assert [node.name for node in model.graph] == ["/Relu", "/Neg"]
    onnx.checker.check_model(ir.to_proto(model))


def test_what_a_user_gets_wrong(nets: Path) -> None:
    cases = [
        ("digits_net:bild", {}, "has no 'bild'", "nearest: build"),
        ("digit_net:build", {}, "cannot import 'digit_net'", "is looked for beside the recipe"),
        ("digits_net:number", {}, "returns a int", "return a torch.nn.Module"),
        ("digits_net:broken", {}, "fails: ValueError: no weights here", ""),
        ("digits_net:bare", {}, "needs example inputs", "--shape"),
        ("digits_net:bare", {"shapes": {"imag": [1, 3, 8, 8]}}, "no argument 'imag'", "nearest: image"),
        ("digits_net:bare", {"example": {"imag": np.ones(1)}}, "no argument 'imag'", "nearest: image"),
        ("digits_net:bare", {"shapes": {"image": [1, 5, 8, 8]}}, "torch cannot export the module", ""),
    ]
    for source, options, sentence, more in cases:
        with pytest.raises(UserError) as caught:
            load(source, **options)
        assert sentence in caught.value.message
        assert "\n" not in caught.value.message
        assert more in str(caught.value)
        assert caught.value.exit_code == 2


def test_a_truncated_archive(tmp_path: Path, torch: Any) -> None:
    (tmp_path / "m.pt2").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ModelError, match="or a truncated one"):
        load(tmp_path / "m.pt2")
    with pytest.raises(UserError, match="can hold pickled code"):
        load(tmp_path / "m.pt2", allow_code=False)


def test_an_archive_stays_as_static_as_it_was_exported(nets: Path, torch: Any) -> None:
    from digits_net import build

    module, example = build()
    static = torch.export.export(module.eval(), example)
    torch.export.save(static, "static.pt2")
    assert list(load("static.pt2").graph.inputs[0].shape or ()) == [2, 3, 8, 8]
    dynamic = torch.export.export(module, example, dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(dynamic, "dynamic.pt2")
    loaded = load("dynamic.pt2")
    assert str(loaded.graph.inputs[0].shape) == "[batch,3,8,8]"
    assert run(loaded, np.ones((7, 3, 8, 8), np.float32))[0].shape == (7, 2)
    assert list(load("dynamic.pt2", shapes={"image": [1, 3, 8, 8]}).graph.outputs[0].shape or ()) == [1, 2]


# ---- weights


def test_weights_are_loaded_into_the_module(nets: Path, torch: Any) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="needs the extra torch")
    from digits_net import bare

    other = bare()
    torch.nn.init.constant_(other.head.bias, 5.0)
    state = {name: tensor for name, tensor in other.state_dict().items() if "num_batches" not in name}
    safetensors.save_file(state, "w.safetensors")
    model = load("digits_net:build", weights="w.safetensors")
    np.testing.assert_array_equal(model.graph.initializers["head.bias"].const_value.numpy(), [5, 5])


def test_weights_that_do_not_fit(nets: Path, torch: Any) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="needs the extra torch")
    from digits_net import bare

    state = dict(bare().state_dict())
    renamed = {name.replace("head", "heads"): tensor for name, tensor in state.items()}
    reshaped = {**state, "head.bias": torch.zeros(3)}
    for given, sentence in (
        (renamed, "lacks 'head.weight' of the module (2 missing and 2 unexpected in all)"),
        ({**state, "tail.bias": torch.zeros(3)}, "holds 'tail.bias', which the module lacks"),
        (reshaped, "'head.bias' has the shape [3] where the module has [2]"),
    ):
        safetensors.save_file(given, "w.safetensors")
        with pytest.raises(ModelError) as caught:
            load("digits_net:build", weights="w.safetensors")
        assert sentence in caught.value.message
    Path("w.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="no safetensors file"):
        load("digits_net:build", weights="w.safetensors")
    with pytest.raises(ModelError, match="no such weights file"):
        load("digits_net:build", weights="v.safetensors")


# ---- without torch, and real models


def test_without_torch_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "m.pt2").write_bytes(b"PK\x03\x04")
    for source in (tmp_path / "m.pt2", "package.module:build"):
        with pytest.raises(MissingExtra, match=r"needs the package 'torch'") as caught:
            load(source)
        assert "pip install 'edgeopt[torch]'" in str(caught.value)


@pytest.mark.parametrize("name", ["kws_dscnn_mlperf_tiny", "resnet20_cifar10", "agnews_text_transformer"])
def test_archives_of_the_zoo_equal_their_onnx_models(zoo: Path, torch: Any, name: str) -> None:
    archive, given = load(zoo / "models" / f"{name}.pt2"), load(zoo / "models" / f"{name}.onnx")
    assert unknown_operators(archive) == []
    value = given.graph.inputs[0]
    shape = [dim if isinstance(dim, int) else 3 for dim in value.shape or ()]
    source = np.random.default_rng(0)
    integers = value.dtype == ir.DataType.INT64
    array = source.integers(1, 100, shape) if integers else source.standard_normal(shape).astype(np.float32)
    (ours,), (theirs,) = run(archive, array), run(given, array)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())
