"""The host's session through tflite-runtime, where only that is installed.

tflite-runtime's last release needs Python 3.11 and NumPy 1, so it lives in an environment of its own:
EDGEOPT_TFLITE_RUNTIME names its Python, which needs edgeopt's other dependencies as well (docs/tflite.md).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgeopt
from edgeopt import example

pytest.importorskip("ai_edge_litert", reason="needs the extra: pip install 'edgeopt[tflite]'")

CHILD = """
import sys
from pathlib import Path
import numpy as np
from edgeopt.artifact import open_artifact
from edgeopt.targets.tflite.session import runtime

feeds = dict(np.load(sys.argv[2]))
with open_artifact(Path(sys.argv[1])).open()["model"] as session:
    np.savez(sys.argv[3], runtime=runtime().__name__, **session.run(feeds))
"""


@pytest.fixture(scope="module")
def old_python() -> str:
    """The Python that has tflite-runtime and no LiteRT."""
    python = os.environ.get("EDGEOPT_TFLITE_RUNTIME")
    if not python:
        pytest.skip("no environment with tflite-runtime is here; EDGEOPT_TFLITE_RUNTIME names its Python")
    return python


def outputs(python: str, artifact: Path, feeds: Path, result: Path) -> dict[str, np.ndarray]:
    """What an artifact gives under a Python, in a process of its own."""
    root = Path(edgeopt.__file__).parents[1]
    done = subprocess.run(
        [python, "-c", CHILD, str(artifact), str(feeds), str(result)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr
    return dict(np.load(result))


@pytest.mark.parametrize("scheme", ["static-int8", "float16"])
@pytest.mark.parametrize("model", ["example", "kws"])
def test_both_runtimes_give_the_same(
    tmp_path: Path, request: pytest.FixtureRequest, old_python: str, model: str, scheme: str
) -> None:
    if model == "example":
        source, data, metric = example.MODEL, str(example.DATA), example.METRIC
        feeds = {"image": np.load(example.DATA / "evaluation.npz")["image"][:64]}
    else:
        from benchmarks.zoo import kws

        source = request.getfixturevalue("zoo") / "models/kws_dscnn_mlperf_tiny.onnx"
        calls = kws.calibrate()
        feeds = {"features": calls["features"][:64]}
        (tmp_path / "data").mkdir()
        np.savez(tmp_path / "data/calibration.npz", **{k: v[:100] for k, v in calls.items()})
        data, metric = str(tmp_path / "data"), None
    outcome = edgeopt.compile(
        source,
        "raspberry-pi-4",
        target="tflite",
        data=data,
        metric=metric,
        scheme=scheme,
        output=tmp_path / "artifact",
    )
    np.savez(tmp_path / "feeds.npz", **feeds)
    new, old = (
        outputs(python, outcome.path, tmp_path / "feeds.npz", tmp_path / f"{name}.npz")
        for name, python in (("new", sys.executable), ("old", old_python))
    )
    assert str(new.pop("runtime")).startswith("ai_edge_litert")
    assert str(old.pop("runtime")).startswith("tflite_runtime")
    for name, array in new.items():
        if scheme == "float16":
            np.testing.assert_allclose(old[name], array, atol=1e-4 * np.abs(array).max())
        else:
            assert (old[name].argmax(-1) == array.argmax(-1)).all()
            # XNNPACK of 2023 and of today round requantization differently, layer after layer.
            step = np.diff(np.unique(array)).min()
            assert np.abs(old[name] - array).max() <= 2.01 * step
