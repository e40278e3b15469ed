"""The artifact's folder: atomic, checksummed, never over somebody else's files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edgeopt.artifact import destination, open_artifact, part_manifest, write_manifest
from edgeopt.errors import IntegrityError, ModelError, OutputError
from edgeopt.session import TensorSpec
from edgeopt.targets.base import Emitted, ModelFile


def fill(folder: Path, text: str = "model") -> None:
    (folder / "model.onnx").write_text(text)
    emitted = Emitted("model.onnx", (ModelFile("model.onnx"),))
    part = part_manifest(emitted, [TensorSpec("x", "float32", (1, 3))], [TensorSpec("y", "float32", (1,))])
    write_manifest(folder, {"name": "m", "target": "onnxruntime"}, {"model": part}, {"model.onnx": "model"})


def test_the_manifest_names_the_model_file(tmp_path: Path) -> None:
    with destination(tmp_path / "out") as folder:
        fill(folder)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["model"] == "model.onnx"
    assert open_artifact(tmp_path / "out").size == len("model")
    assert "manifest.json" in (tmp_path / "out" / "SHA256SUMS").read_text()


def test_the_digest_does_not_depend_on_the_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with destination(tmp_path / name) as folder:
            fill(folder)
    assert open_artifact(tmp_path / "one").digest == open_artifact(tmp_path / "two").digest


def test_a_changed_file_is_found(tmp_path: Path) -> None:
    with destination(tmp_path / "out") as folder:
        fill(folder)
    open_artifact(tmp_path / "out").verify()
    (tmp_path / "out" / "model.onnx").write_text("other")
    with pytest.raises(IntegrityError, match=r"'model\.onnx' differs"):
        open_artifact(tmp_path / "out").verify()


def test_an_error_leaves_the_old_artifact(tmp_path: Path) -> None:
    with destination(tmp_path / "out") as folder:
        fill(folder, "old")
    with pytest.raises(KeyboardInterrupt), destination(tmp_path / "out") as folder:
        fill(folder, "new")
        raise KeyboardInterrupt
    assert (tmp_path / "out" / "model.onnx").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_new_artifact_replaces_the_old_one(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with destination(tmp_path / "out") as folder:
            fill(folder, text)
    assert (tmp_path / "out" / "model.onnx").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_not_ours_is_kept(tmp_path: Path, force: bool) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    if force:
        with destination(tmp_path / "out", force=True) as folder:
            fill(folder)
        assert not (tmp_path / "out" / "thesis.tex").exists()
        return
    with pytest.raises(OutputError, match="was not written by edgeopt"), destination(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_leftovers_of_a_killed_process_are_cleared(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom edgeopt.artifact import destination\n"
        "with destination(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('x')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.iterdir())) == 1
    with destination(tmp_path / "out") as folder:
        fill(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_no_artifact_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is no artifact: it has no manifest\.json"):
        open_artifact(tmp_path)
