"""Loading ONNX models, and the sentences for those that cannot be loaded."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.errors import ModelError, UserError
from edgeopt.load import load, unknown_operators


def value(name: str, shape: list[int | str | None]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray] | None = None, **kwargs
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        kwargs.pop("inputs", [value("x", ["batch", 4])]),
        kwargs.pop("outputs", [value("y", ["batch", 3])]),
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
        **kwargs,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def linear(weight: np.ndarray | None = None) -> onnx.ModelProto:
    weight = np.arange(12, dtype=np.float32).reshape(4, 3) if weight is None else weight
    return model(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
            helper.make_node("Relu", ["h"], ["y"], "act"),
        ],
        {"w": weight},
    )


def message(source, **options) -> str:
    with pytest.raises(ModelError) as caught:
        load(source, **options)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message
    return str(caught.value)


# ---- what can be loaded


def test_the_same_model_from_path_bytes_proto_and_ir(tmp_path: Path) -> None:
    proto = linear()
    onnx.save(proto, tmp_path / "m.onnx")
    sources = [
        str(tmp_path / "m.onnx"),
        tmp_path / "m.onnx",
        proto.SerializeToString(),
        proto,
        ir.from_proto(proto),
    ]
    texts = {ir.to_proto(load(source)).SerializeToString() for source in sources}
    assert len(texts) == 1


def test_a_given_ir_model_is_not_changed() -> None:
    given = ir.from_proto(linear())
    load(given, shapes={"x": [1, 4]})
    assert str(given.graph.inputs[0].shape) == "[batch,4]"


def test_external_data_stay_in_their_file(tmp_path: Path) -> None:
    onnx.save(linear(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    tensor = load(tmp_path / "m.onnx").graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    np.testing.assert_array_equal(tensor.numpy(), np.arange(12, dtype=np.float32).reshape(4, 3))


def test_nodes_out_of_order_are_sorted() -> None:
    proto = linear()
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    assert [node.name for node in load(proto).graph] == ["product", "act"]


def test_inputs_with_an_initializer_are_constants() -> None:
    proto = linear()
    proto.ir_version = 3
    proto.graph.input.append(value("w", [4, 3]))
    loaded = load(proto)
    assert [item.name for item in loaded.graph.inputs] == ["x"]
    onnx.checker.check_model(ir.to_proto(loaded))


# ---- files that are no model


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    onnx.save(linear(), tmp_path / "other.onnx")
    text = message(tmp_path / "model.onnx")
    assert "no such model file" in text
    assert "other.onnx" in text


def test_any_prefix_of_a_model_is_refused(tmp_path: Path) -> None:
    data = linear().SerializeToString()
    path = tmp_path / "m.onnx"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert "m.onnx" in message(path)


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    source = random.Random(0)
    for length in (1, 2, 3, 10, 100, 10_000):
        for _ in range(50):
            message(source.randbytes(length))


def test_a_model_with_flipped_bytes_never_breaks_the_loader() -> None:
    data = linear().SerializeToString()
    source = random.Random(0)
    refused = 0
    for _ in range(500):
        broken = bytearray(data)
        for _ in range(3):
            broken[source.randrange(len(data))] = source.randrange(256)
        try:
            load(bytes(broken))
        except ModelError:
            refused += 1
    assert 0 < refused < 500


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "an empty file"),
        (b"\x1c\0\0\0TFL3" + bytes(40), "a TFLite model"),
        (b"\x1c\0\0\0ORTM" + bytes(40), "ORT format"),
        (b"this is a text\n" * 20, "a text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS"),
        (b"PK\x03\x04" + bytes(40), "a zip archive"),
        (b"PK\x03\x04" + bytes(26) + b"x.npy" + bytes(40), "an archive of NumPy arrays"),
        (b"\x80\x04\x95" + bytes(40), "a Python pickle"),
    ],
)
def test_other_files_are_recognized(tmp_path: Path, data: bytes, what: str) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    assert what in message(tmp_path / "m.onnx")


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    assert "is a folder" in message(tmp_path)


def test_an_object_that_is_no_model() -> None:
    with pytest.raises(UserError, match="a int is no model"):
        load(3)


# ---- models that are not whole


def test_missing_external_data(tmp_path: Path) -> None:
    onnx.save(linear(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "m.data").unlink()
    text = message(tmp_path / "m.onnx")
    assert "weight 'w' are missing" in text
    assert "m.data" in text


def test_external_data_too_short(tmp_path: Path) -> None:
    onnx.save(linear(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "m.data").write_bytes((tmp_path / "m.data").read_bytes()[:-1])
    assert "weight 'w' end at byte 47, not at 48" in message(tmp_path / "m.onnx")


def test_external_data_outside_the_models_folder(tmp_path: Path) -> None:
    onnx.save(linear(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "m.data").rename(tmp_path.parent / "elsewhere.data")
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../elsewhere.data"
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    assert "outside the model's folder" in message(tmp_path / "m.onnx")


def test_weights_shorter_than_their_shape() -> None:
    proto = linear()
    proto.graph.initializer[0].raw_data = bytes(40)
    assert "'w' holds 40 bytes where its shape [4, 3] needs 48" in message(proto)


def test_no_inputs_and_no_outputs() -> None:
    constant = helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.ones(3, np.float32)))
    assert "no inputs" in message(model([constant], inputs=[]))
    assert "no outputs" in message(model([helper.make_node("Relu", ["x"], ["y"])], outputs=[]))


def test_values_nothing_computes() -> None:
    assert "Relu node 'r' reads 'z', which nothing computes" in message(
        model([helper.make_node("Relu", ["z"], ["y"], "r")])
    )
    assert "nothing computes the output 'y'" in message(model([helper.make_node("Relu", ["x"], ["z"])]))


def test_a_value_computed_twice() -> None:
    twice = [helper.make_node("Relu", ["x"], ["y"], "one"), helper.make_node("Neg", ["x"], ["y"], "two")]
    assert "'y' is computed twice, by the Relu node 'one' and by the Neg node 'two'" in message(model(twice))


def test_a_cycle() -> None:
    cycle = [helper.make_node("Add", ["x", "y"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    assert "form a cycle" in message(model(cycle))


# ---- weights that are not finite


@pytest.mark.parametrize(("bad", "text"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
@pytest.mark.parametrize("external", [False, True])
def test_non_finite_weights_are_named(tmp_path: Path, bad: float, text: str, external: bool) -> None:
    weight = np.ones((4, 3), np.float32)
    weight[3, 2] = bad
    options = {"save_as_external_data": True, "location": "m.data", "size_threshold": 0} if external else {}
    onnx.save(linear(weight), tmp_path / "m.onnx", **options)
    assert f"weight 'w' of the MatMul node 'product' holds {text}" in message(tmp_path / "m.onnx")


def test_a_mask_of_minus_infinity_is_meant() -> None:
    proto = model(
        [helper.make_node("Add", ["x", "mask"], ["h"]), helper.make_node("Softmax", ["h"], ["y"])],
        {"mask": np.array([0, 0, -np.inf, -np.inf], np.float32)},
        outputs=[value("y", ["batch", 4])],
    )
    assert load(proto).graph.num_nodes() == 2


def test_large_external_data_never_enter_memory(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("the memory of a process is read from /proc")
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**14, 2**14])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="w.data")
    with (tmp_path / "w.data").open("wb") as file:
        file.truncate(2**30)  # a hole: it takes no space and reads as zeros
    proto = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        inputs=[value("x", [1, 2**14])],
        outputs=[value("y", [1, 2**14])],
    )
    proto.graph.initializer.append(weight)
    onnx.save(proto, tmp_path / "m.onnx")
    code = (
        "import sys; from edgeopt.load import load\n"
        "def anonymous():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith('RssAnon'))\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM'))\n"
        "before = peak(); model = load(sys.argv[1]); print(anonymous(), peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.onnx")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    anonymous, grown = (int(word) * 1024 for word in done.stdout.split())
    assert anonymous < 2**28
    assert grown < 2**27


# ---- operators


def test_unknown_operators_are_listed_and_do_not_stop_loading() -> None:
    proto = model(
        [
            helper.make_node("Frobnicate", ["x"], ["a"], "f"),
            helper.make_node("Thing", ["a"], ["b"], "t", domain="com.acme"),
            helper.make_node("Gelu", ["b"], ["c"], "g"),
            helper.make_node("FusedMatMul", ["c", "c"], ["d"], "m", domain="com.microsoft"),
            helper.make_node("Relu", ["d"], ["y"], "r"),
        ]
    )
    proto.opset_import.extend([helper.make_opsetid("com.acme", 1), helper.make_opsetid("com.microsoft", 1)])
    found = unknown_operators(load(proto))
    assert [str(item) for item in found] == [
        "the node 'f': Frobnicate is an operator no runtime knows",
        "the node 't': com.acme::Thing is an operator no runtime knows",
        "the node 'g': Gelu does not exist in opset 17 (the model's); the current one is of opset 20",
    ]


def test_functions_of_the_model_are_known() -> None:
    proto = model([helper.make_node("Twice", ["x"], ["y"], "t", domain="own")])
    proto.opset_import.append(helper.make_opsetid("own", 1))
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    proto.functions.append(
        helper.make_function("own", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    )
    assert unknown_operators(load(proto)) == []


# ---- shapes


def test_shapes_bind_symbols_everywhere() -> None:
    loaded = load(linear(), shapes={"x": [2, 4]})
    assert list(loaded.graph.inputs[0].shape or ()) == [2, 4]
    assert list(loaded.graph.outputs[0].shape or ()) == [2, 3]


def test_shapes_that_do_not_fit() -> None:
    assert "nearest: x" in message(linear(), shapes={"xx": [1, 4]})
    assert "has the shape [batch, 4] and cannot take [1, 5]" in message(linear(), shapes={"x": [1, 5]})
    assert "cannot take [1, 4, 1]" in message(linear(), shapes={"x": [1, 4, 1]})
    assert "a size below 1" in message(linear(), shapes={"x": [0, 4]})


def test_one_symbol_cannot_have_two_sizes() -> None:
    proto = model(
        [helper.make_node("Add", ["x", "z"], ["y"])],
        inputs=[value("x", ["batch", 4]), value("z", ["batch", 4])],
        outputs=[value("y", ["batch", 4])],
    )
    assert "'batch' cannot be both 1 and 2" in message(proto, shapes={"x": [1, 4], "z": [2, 4]})


# ---- torch-only arguments


def test_weights_need_a_torch_module(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only for a torch module"):
        load(linear(), weights=tmp_path / "w.safetensors")


def test_code_can_be_forbidden() -> None:
    with pytest.raises(UserError, match="not allowed"):
        load("somewhere:build", allow_code=False)


# ---- real models


def test_every_model_of_the_zoo_loads(zoo: Path) -> None:
    files = sorted([*zoo.glob("models/*.onnx"), *zoo.glob("published_onnx/*.onnx")])
    assert len(files) > 10
    for file in files:
        loaded = load(file)
        assert unknown_operators(loaded) == []
        if not file.parent.name.startswith("published"):
            given = onnx.load(file, load_external_data=False)
            assert [node.name for node in loaded.graph] == [node.name for node in given.graph.node]
