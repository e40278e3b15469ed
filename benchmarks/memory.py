"""How far the predicted peak memory is from what a process really takes, on the host.

    python benchmarks/memory.py MODEL.onnx...

Each model runs once in a process of its own, with one thread; its largest resident set stands beside
the prediction (the runtime empty, plus the model's bytes, plus the peak of its activations).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx_ir as ir

from edgeopt.platform import load_platform
from edgeopt.predict import peak_memory

CHILD = """
import sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
types = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32"}
feeds = {
    value.name: numpy.zeros([size if isinstance(size, int) else 1 for size in value.shape], types[value.type])
    for value in session.get_inputs()
}
session.run(None, feeds)
# getrusage would also count what the parent held before it started this program
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024)
"""


def main() -> None:
    """Runs the benchmark."""
    platform = load_platform("generic-x86-64")
    empty = platform.rules.memory
    for path in map(Path, sys.argv[1:]):
        predicted = peak_memory(path.stat().st_size, ir.load(path), platform)
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=True
        )
        measured = int(done.stdout)
        low, high = predicted.interval or (0.0, 0.0)
        share = (measured - empty) / (predicted.value - empty)
        print(
            f"{path.stem:42} predicted {predicted.value / 2**20:6.1f} MiB  "
            f"measured {measured / 2**20:6.1f} MiB"
            f"  above empty x {share:5.2f}  {'inside' if low <= measured <= high else 'outside'}"
        )


if __name__ == "__main__":
    main()
