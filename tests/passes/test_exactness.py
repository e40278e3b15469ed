"""Properties of all exact passes: ONNX's own node tests, and a model too large for memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import exactness
from benchmarks.large_model import WIDTH, write

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.filterwarnings("ignore")
def test_a_sample_of_onnx_node_tests_gives_the_same_outputs() -> None:
    """Every 40th; benchmarks/exactness.py runs them all."""
    counted = 0
    for name, model, feeds in exactness.node_cases(40):
        wrong = exactness.differences(model, feeds, exactness.PASSES)
        assert not wrong, name
        counted += wrong is not None
    assert counted >= 30


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("EDGEOPT_SLOW"), reason="writes 8 GB and takes minutes; EDGEOPT_SLOW=1 runs it"
)
def test_a_model_of_4_gb_takes_less_than_1_5_gb(tmp_path: Path) -> None:
    model = write(tmp_path, 64)
    command = [sys.executable, "-m", "benchmarks.anonymous_memory"]
    command += ["optimize", str(model), "-o", str(tmp_path / "out.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    code, peak = map(int, done.stdout.split()[-3:-1])
    assert code == 0, done.stderr
    assert (tmp_path / "out.onnx.data").stat().st_size == 64 * 4 * WIDTH * WIDTH
    assert peak < 1.5e9
