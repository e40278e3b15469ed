"""How far the predicted peak memory is from what a process really takes, on the host.

    python -m benchmarks.memory MODEL.onnx...
    python -m benchmarks.memory order [BRANCHES]     what the pass memory-order saves under LiteRT

Each model runs once in a process of its own, with one thread; its largest resident set stands beside
the prediction (the runtime empty, plus the model's bytes, plus the peak of its activations). For ``order``
a network of parallel branches, each wide at first, is listed breadth first, as a converter might; its
.tflite runs before and after the pass, with the XNNPACK delegate and without.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeopt import targets
from edgeopt.passes import Context
from edgeopt.passes.memory_order import MemoryOrder
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


LITERT = """
import sys
import numpy
from ai_edge_litert.interpreter import Interpreter, OpResolverType
kind = OpResolverType.AUTO if sys.argv[2] == "xnnpack" else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
interpreter = Interpreter(sys.argv[1], experimental_op_resolver_type=kind, num_threads=1)
interpreter.allocate_tensors()
given = interpreter.get_input_details()[0]
interpreter.set_tensor(given["index"], numpy.ones(given["shape"], given["dtype"]))
interpreter.invoke()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) * 1024)
"""


def branching(branches: int, size: int = 128, channels: int = 64) -> ir.Model:
    """Parallel branches, each a wide convolution and a pooling to one number a channel, then their sum."""
    random = np.random.default_rng(0)
    x = ir.val("x", ir.DataType.FLOAT, [1, 3, size, size])
    layers: list[list[ir.Node]] = [[], []]
    weights, results = [], []
    for branch in range(branches):
        numbers = random.standard_normal((channels, 3, 3, 3)).astype(np.float32)
        weight = ir.val(f"w{branch}", ir.DataType.FLOAT, numbers.shape, const_value=ir.tensor(numbers))
        conv = ir.node("Conv", [x, weight], {"pads": [1, 1, 1, 1]}, name=f"conv{branch}")
        pool = ir.node("GlobalAveragePool", [conv.outputs[0]], name=f"pool{branch}")
        for place, node in enumerate((conv, pool)):
            node.outputs[0].name = f"{node.name}_out"
            layers[place].append(node)
        weights.append(weight)
        results.append(pool.outputs[0])
    total, sums = results[0], []
    for branch, result in enumerate(results[1:]):
        add = ir.node("Add", [total, result], name=f"add{branch}")
        add.outputs[0].name = f"add{branch}_out"
        sums.append(add)
        total = add.outputs[0]
    total.type, total.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1, channels, 1, 1])
    nodes = [*layers[0], *layers[1], *sums]
    graph = ir.Graph(
        [x], [total], nodes=nodes, initializers=weights, opset_imports={"": 21}, name="branching"
    )
    return ir.Model(graph, ir_version=10)


def order(branches: int) -> None:
    """What the pass saves under LiteRT."""
    platform = load_platform("raspberry-pi-4", "tflite")
    before = branching(branches)
    after = before.clone()
    change = MemoryOrder().apply(after, Context())
    print(f"{branches} branches: {change.summary}{', optimal' if change.details['optimal'] else ''}")
    target = targets.make("tflite")
    for kind in ("xnnpack", "without"):
        found = []
        for model in (before, after):
            with tempfile.TemporaryDirectory() as folder:
                prepared, _ = target.prepare(model, platform)
                emitted = target.emit(prepared, platform, Path(folder))
                command = [sys.executable, "-c", LITERT, str(Path(folder) / emitted.main), kind]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found.append(int(done.stdout.split()[-1]))
        print(
            f"  LiteRT, {kind:8} largest resident set {found[0] / 2**20:6.1f} -> {found[1] / 2**20:6.1f} MiB"
        )


def main() -> None:
    """Runs the benchmark."""
    if sys.argv[1:2] == ["order"]:
        order(int(sys.argv[2]) if len(sys.argv) > 2 else 8)
        return
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
