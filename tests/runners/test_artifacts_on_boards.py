"""Artifacts on a board give what they give on the host, whatever the runtime wants inside."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt import example
from edgeopt.artifact import open_artifact, part_manifest, write_manifest
from edgeopt.cli import call
from edgeopt.errors import IntegrityError, ModelError
from edgeopt.platform import load_platform
from edgeopt.session import signature
from edgeopt.targets import make

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 3, 8, 6] image, float[4, 3, 3, 3] w) => (float[batch, 4, 8, 6] map) {
  map = Conv <pads = [1, 1, 1, 1]> (image, w)
}
"""


def artifact(folder: Path, target: str, parts: tuple[str, ...] = ("model",)) -> Path:
    """An artifact of a small convolution."""
    model = ir.from_onnx_text(TEXT)
    value = model.graph.inputs.pop()
    value.const_value = ir.tensor(
        np.random.default_rng(1).standard_normal((4, 3, 3, 3), np.float32), name="w"
    )
    model.graph.register_initializer(value)
    platform = load_platform("raspberry-pi-4", target)
    maker = make(target)
    prepared, _ = maker.prepare(model, platform)
    manifests, roles = {}, {}
    for name in parts:
        prefix = "" if len(parts) == 1 else f"{name}/"
        (folder / prefix).mkdir(parents=True, exist_ok=True)
        emitted = maker.emit(prepared, platform, folder / prefix)
        inputs, outputs = signature(model.graph.inputs), signature(model.graph.outputs)
        manifests[name] = part_manifest(emitted, inputs, outputs, prefix)
        roles.update({prefix + file.path: file.role for file in emitted.files})
    write_manifest(folder, {"name": "net", "target": target, "device": "raspberry-pi-4"}, manifests, roles)
    return folder


@pytest.mark.parametrize("target", ["onnxruntime", "tflite"])
def test_the_board_and_the_host_agree(server, tmp_path: Path, target) -> None:
    if target == "tflite":
        pytest.importorskip("ai_edge_litert", reason="needs the extra: pip install 'edgeopt[tflite]'")
    path = artifact(tmp_path / "net", target, ("one", "two"))
    feeds = {"image": np.random.default_rng(0).standard_normal((3, 3, 8, 6), np.float32)}
    here = open_artifact(path).open()
    with server.board() as board:
        there = board.open(path)
        assert list(there) == ["one", "two"]
        for name, session in there.items():
            expected = here[name].run(feeds)["map"]
            assert expected.shape == (3, 4, 8, 6)
            assert np.allclose(session.run(feeds)["map"], expected, atol=1e-6)
            single = {"image": feeds["image"][:1]}
            assert min(board.timer(session, single).time(3)) > 0
        there["one"].close()
        assert there["two"].run(feeds)["map"].shape == (3, 4, 8, 6)


def test_the_runtime_of_the_board_stands_in_the_evidence(server, tmp_path: Path, capsys) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs the extra: pip install 'edgeopt[tflite]'")
    path = artifact(tmp_path / "net", "tflite")
    assert call(["bench", str(path), "--runs", "5", "--json", "--on", server.address()]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parts"]["model"]["model"]["runtime"].startswith("LiteRT ")
    assert found["memory"]["model"]["value"] > 0


def test_a_compiled_artifact_is_as_right_there_as_here(server, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("EDGEOPT_CACHE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    arguments = ["--data", str(example.DATA), "--metric", "top1"]
    assert call(["compile", str(example.MODEL), "--device", "raspberry-pi-4", *arguments, "-o", "out"]) == 0
    capsys.readouterr()
    (path,) = [manifest.parent for manifest in tmp_path.glob("out/**/manifest.json")]
    assert call(["bench", str(path), "--runs", "5", "--json", "--on", server.address()]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["golden"]["model"]["model"]["passed"] is True
    figures = []
    for where in ("host", server.address()):
        command = ["eval", str(path), "--against", str(example.MODEL), *arguments, "--on", where, "--json"]
        assert call([*command, "--limit", "40"]) == 0
        figures.append(json.loads(capsys.readouterr().out))
    here, there = figures
    for figure in ("original", "artifact", "drop", "agreement"):
        assert there[figure]["value"] == pytest.approx(here[figure]["value"], abs=3)
    assert there["artifact"]["artifact"] == here["artifact"]["artifact"] != ""

    outputs = dict(np.load(path / "golden" / "outputs.npz"))
    np.savez(path / "golden" / "outputs.npz", **{name: value + 100 for name, value in outputs.items()})
    assert call(["bench", str(path), "--runs", "5", "--on", server.address()]) == 0
    shown = capsys.readouterr()
    assert "golden vectors FAIL there" in shown.out and "of its largest value" in shown.err


def test_what_does_not_run_on_a_board(server, tmp_path: Path) -> None:
    path = artifact(tmp_path / "net", "onnxruntime")
    with server.board() as board:
        with pytest.raises(ModelError, match="there is no model"):
            board.open(tmp_path / "none.onnx")
        (tmp_path / "x.tflite").write_bytes(b"x")
        with pytest.raises(ModelError, match="does not run on a board by itself"):
            board.open(tmp_path / "x.tflite")
        (path / "model.onnx").write_bytes(b"other")
        with pytest.raises(IntegrityError, match=r"model\.onnx"):
            board.open(path)
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps({**manifest, "target": "tensorrt"}))
        with pytest.raises(ModelError, match="artifacts for tensorrt do not run on boards"):
            board.open(path)
