"""Models on emulated boards; these need the emulator to be set up (``edgeopt emulator setup``)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.cli import call
from edgeopt.errors import RuntimeFailure
from edgeopt.runners.emulator import Emulator
from edgeopt.runners.emulator.place import Place, find_place

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
one (float[1, 64] features) => (float[1, 64] logits)
{ y = MatMul (features, w)  logits = Relu (y) }
"""


@pytest.fixture
def there() -> Place:
    place = find_place()
    if not place.has("aarch64") or place.counter is None:
        pytest.skip("the emulator is not set up: edgeopt emulator setup")
    return place


@pytest.fixture
def model(tmp_path: Path) -> Path:
    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    made = ir.from_onnx_text(TEXT, initializers=[ir.tensor(weights, name="w")])
    ir.save(made, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_a_board_computes_and_counts(there: Place, model: Path) -> None:
    feeds = {"features": np.ones((1, 64), np.float32)}
    with Emulator("emulator:cortex-a76", counting=True) as runner:
        session = runner.open(model)["model"]
        weights = ir.load(model).graph.initializers["w"].const_value.numpy()
        found = session.run(feeds)["logits"]
        np.testing.assert_allclose(found, np.maximum(feeds["features"] @ weights, 0), rtol=1e-4, atol=1e-4)
        counts = runner.count(session, feeds)
        private = runner._private
        assert private.is_dir()
        # 4096 products, four to an instruction, each weight read once
        assert counts.classes["fmla"] >= 1024
        assert counts.memory["bytes_read"] >= 64 * 64 * 4
        assert counts.classes["dot"] == 0
        evidence = runner.evidence(counts, session, {})
    assert (evidence.how, evidence.where, evidence.quantity) == ("emulated", "cortex-a76", "instructions")
    assert evidence.conditions["core"] == "cortex-a76"
    assert not private.exists()


def test_bench_and_eval_say_that_they_are_emulated(
    there: Place, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["bench", str(model), "--on", "emulator", "-d", "raspberry-pi-4", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    evidence = body["instructions"]["model"]["model"]
    assert evidence["how"] == body["how"] == "emulated"
    assert "latency" not in json.dumps(body)
    np.savez(
        tmp_path / "evaluation.npz",
        features=np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32),
        label=np.arange(4),
    )
    words = ["--data", str(tmp_path), "--metric", "top1", "--against", str(model), "--json"]
    assert call(["eval", str(model), "--on", "emulator", "-d", "raspberry-pi-4", *words]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["fidelity"]["how"] == "emulated"
    assert body["original"]["how"] == "measured"
    assert body["fidelity"]["value"] > 100


def test_a_32_bit_board_says_what_it_does_not_run(there: Place, model: Path) -> None:
    if not there.has("armv7"):
        pytest.skip("the 32-bit system is not set up: edgeopt emulator setup --armv7")
    with (
        Emulator("emulator:generic-armv7") as runner,
        pytest.raises(RuntimeFailure, match="TFLite artifacts alone"),
    ):
        runner.open(model)


def test_without_a_device_one_is_asked_for(
    there: Place, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["bench", str(model), "--on", "emulator"]) == 2
    assert "the emulator needs a device" in capsys.readouterr().err
    assert call(["eval", str(model), "--on", "host", "--device", "x", "--data", "y"]) == 2
    assert "--on emulator alone" in capsys.readouterr().err
