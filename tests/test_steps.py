"""The store of steps: what is kept, what is found again, what a broken entry does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.errors import OutputError
from edgeopt.steps import BLOB_BYTES, Store, digest, model_digest, write_file


def model_with(weights: np.ndarray) -> ir.Model:
    value = ir.val("x", ir.DataType.FLOAT, [1, weights.shape[0]])
    weight = ir.Value(name="w", const_value=ir.tensor(weights, name="w"))
    node = ir.node("MatMul", [value, weight], name="product")
    node.outputs[0].name = "y"
    graph = ir.Graph([value], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 21})
    return ir.Model(graph, ir_version=10)


def big(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((512, 600)).astype(np.float32)


def test_a_model_comes_back_with_its_weights(tmp_path: Path) -> None:
    weights = big(0)
    assert weights.nbytes > BLOB_BYTES
    store = Store(tmp_path)
    store.keep("ab" * 32, {"change": 1}, model_with(weights))
    again = store.model("ab" * 32)
    assert again is not None
    assert np.array_equal(again.graph.initializers["w"].const_value.numpy(), weights)
    assert store.record("ab" * 32) == {"change": 1}


def test_equal_tensors_are_one_blob(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for key in ("aa" * 32, "bb" * 32):
        store.keep(key, {}, model_with(big(1)))
    assert len(list((tmp_path / "blobs").iterdir())) == 1


def test_a_tensor_in_the_users_file_stays_there(tmp_path: Path) -> None:
    ir.save(model_with(big(2)), tmp_path / "m.onnx", external_data="m.data")
    store = Store(tmp_path / "store")
    store.keep("cc" * 32, {}, ir.load(tmp_path / "m.onnx"))
    assert not (tmp_path / "store" / "blobs").exists()
    again = store.model("cc" * 32)
    assert again is not None
    assert np.array_equal(again.graph.initializers["w"].const_value.numpy(), big(2))
    (tmp_path / "m.data").unlink()
    assert store.model("cc" * 32) is None


def test_a_half_entry_counts_as_absent(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = tmp_path / "entries" / "dd" / ("dd" * 32)
    entry.mkdir(parents=True)
    (entry / "record.json").write_text('{"cut of')
    assert store.record("dd" * 32) is None
    store.keep("dd" * 32, {"whole": True})
    assert store.record("dd" * 32) == {"whole": True}


def test_two_models_never_share_a_digest(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    one, two = model_with(big(3)), model_with(big(3) + np.float32(1e-3))
    assert model_digest(one, store) != model_digest(two, store)
    for name, model in (("one", one), ("two", two)):
        ir.save(
            model, tmp_path / f"{name}.onnx", external_data="weights.data" if name == "one" else "w2.data"
        )
    first = model_digest(ir.load(tmp_path / "one.onnx"), store)
    ir.save(two, tmp_path / "one.onnx", external_data="weights.data")
    assert model_digest(ir.load(tmp_path / "one.onnx"), store) != first


def test_a_file_digest_follows_the_content(tmp_path: Path) -> None:
    store, path = Store(tmp_path / "store"), tmp_path / "f"
    path.write_bytes(b"one")
    first = store.file_digest(path)
    assert store.file_digest(path) == first
    path.write_bytes(b"two!")
    assert store.file_digest(path) != first


def test_an_unwritable_store_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write the store of steps"):
        Store(tmp_path / "file" / "below").keep("ee" * 32, {})


def test_write_file_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        (tmp_path / "target").mkdir()
        write_file(tmp_path / "target", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_digests_depend_on_every_part() -> None:
    assert digest("a", 1) != digest("a", 2) != digest("b", 2)
    assert digest({"x": 1, "y": 2}) == digest({"y": 2, "x": 1})
