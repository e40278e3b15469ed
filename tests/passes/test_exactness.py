"""Properties of all exact passes: ONNX's own node tests, and a model too large for memory."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def exactness() -> ModuleType:
    path = ROOT / "benchmarks" / "exactness.py"
    spec = importlib.util.spec_from_file_location("exactness", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore")
def test_a_sample_of_onnx_node_tests_gives_the_same_outputs(exactness: ModuleType) -> None:
    """Every 40th; benchmarks/exactness.py runs them all."""
    counted = 0
    for name, model, feeds in exactness.node_cases(40):
        wrong = exactness.differences(model, feeds, exactness.PASSES)
        assert not wrong, name
        counted += wrong is not None
    assert counted >= 30


LARGE = """
import sys, threading, time
from pathlib import Path
import numpy as np, onnx, onnx_ir as ir
from onnx import TensorProto, helper

folder, layers, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
random = np.random.default_rng(0)
nodes, weights, offset, last = [], [], 0, "x"
with (folder / "large.data").open("wb") as data:
    for layer in range(layers):
        numbers = random.standard_normal((size, size), dtype=np.float32) / 64
        weight = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[size, size])
        weight.data_location = TensorProto.EXTERNAL
        for key, value in dict(location="large.data", offset=offset, length=numbers.nbytes).items():
            weight.external_data.add(key=key, value=str(value))
        numbers.tofile(data)
        offset += numbers.nbytes
        del numbers
        weights.append(weight)
        nodes.append(helper.make_node("Identity", [last], [f"i{layer}"]))
        nodes.append(helper.make_node("MatMul", [f"i{layer}", f"w{layer}"], [f"m{layer}"]))
        last = f"m{layer}"
nodes.append(helper.make_node("Relu", [last], ["y"]))
inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", size])]
outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", size])]
graph = helper.make_graph(nodes, "large", inputs, outputs, weights)
onnx.save(
    helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "large.onnx"
)
peak, done = 0, False
def watch():
    global peak
    while not done:
        line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
        peak = max(peak, int(line.split()[1]))
        time.sleep(0.01)
watcher = threading.Thread(target=watch)
watcher.start()
from edgeopt.cli import call
code = call(["optimize", str(folder / "large.onnx"), "-o", str(folder / "out.onnx")])
done = True
watcher.join()
print("code", code, "bytes", offset, "peak", peak * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("EDGEOPT_SLOW"), reason="writes 8 GB and takes minutes; EDGEOPT_SLOW=1 runs it"
)
def test_a_model_of_4_gb_takes_less_than_1_5_gb(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LARGE), str(tmp_path), "64", "4096"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    words = done.stdout.split()
    found = {key: int(words[words.index(key) + 1]) for key in ("code", "bytes", "peak")}
    print(found)
    assert found["code"] == 0, done.stderr
    assert found["bytes"] == 64 * 4096 * 4096 * 4
    assert found["peak"] < 1.5e9
    assert (tmp_path / "out.onnx.data").stat().st_size == found["bytes"]
