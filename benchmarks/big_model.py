"""How much memory and time simplifying a model of many GB takes.

    python benchmarks/big_model.py [--gigabytes 6] [--folder DIR]

Writes a model of products with distinct pseudo-random weights in external data, copies its data file once
as the measure of the disk, and runs ``edgeopt optimize`` on it in a process of its own. Prints the peak of
that process's anonymous memory (RssAnon: what cannot be dropped; pages of mapped files can), its seconds,
and those of the plain copy. Needs about two and a half times the model's size on disk, and removes it again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

WIDTH = 4096
"""Rows and columns of each weight: 64 MiB in float32."""

CHILD = """
import sys, threading, time
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
code = call(["optimize", sys.argv[1], "-o", sys.argv[2]])
done = True
watcher.join()
print(code, peak * 1024)
"""


def write(folder: Path, layers: int) -> Path:
    """Writes the model: products, a normalization folded into some, and nodes that do nothing."""
    random = np.random.default_rng(0)
    nodes, weights, offset, last = [], [], 0, "x"
    with (folder / "large.data").open("wb") as data:
        for layer in range(layers):
            numbers = random.standard_normal((WIDTH, WIDTH), dtype=np.float32) / 64
            weight = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
            weight.data_location = TensorProto.EXTERNAL
            place = {"location": "large.data", "offset": offset, "length": numbers.nbytes}
            for key, value in place.items():
                weight.external_data.add(key=key, value=str(value))
            numbers.tofile(data)
            offset += numbers.nbytes
            weights.append(weight)
            nodes.append(helper.make_node("Identity", [last], [f"i{layer}"]))
            nodes.append(helper.make_node("MatMul", [f"i{layer}", f"w{layer}"], [f"m{layer}"]))
            last = f"m{layer}"
        data.flush()
        os.fsync(data.fileno())
    nodes.append(helper.make_node("Relu", [last], ["y"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])]
    graph = helper.make_graph(nodes, "large", inputs, outputs, weights)
    imports = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), folder / "large.onnx")
    return folder / "large.onnx"


def synced(path: Path) -> None:
    """Waits until a file lies on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--folder", type=Path, help="where to write; the temporary folder by default")
    arguments = parser.parse_args()
    layers = max(1, round(arguments.gigabytes * 1e9 / (4 * WIDTH * WIDTH)))
    folder = Path(tempfile.mkdtemp(prefix="edgeopt-big-", dir=arguments.folder))
    try:
        model = write(folder, layers)
        size = (folder / "large.data").stat().st_size
        start = time.perf_counter()
        shutil.copyfile(folder / "large.data", folder / "copy.data")
        synced(folder / "copy.data")
        copied = time.perf_counter() - start
        (folder / "copy.data").unlink()
        start = time.perf_counter()
        command = [sys.executable, "-c", CHILD, str(model), str(folder / "out.onnx")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        synced(folder / "out.onnx.data")
        taken = time.perf_counter() - start
        code, peak = map(int, done.stdout.split()[-2:])
        if code or (folder / "out.onnx.data").stat().st_size != size:
            raise SystemExit(f"optimize ended with {code}: {done.stderr}")
        print(
            f"{size / 1e9:.2f} GB in {layers} weights: anonymous memory {peak / 1e6:.0f} MB at most, "
            f"{taken:.1f} s; a plain copy of the data {copied:.1f} s"
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
