"""The convolutional zoo on the target ``tflite``, in float and in int8.

``python -m benchmarks.tflite_zoo [NAME]...`` prints a table. Float: the largest deviation from
onnxruntime relative to the largest output, over calibration samples. Int8: static quantization with
min-max ranges by the runtime's rules; the quantization error of the graph, how far the file lies from
that graph (and from the prepared one, with its int32 biases) in reference execution, all in dB of signal
over error, and the share of equal winners.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.zoo.models import ENTRIES
from edgeopt.data import open_data
from edgeopt.graph.execute import Executor
from edgeopt.passes import Context, Facets, make
from edgeopt.platform import Platform, load_platform
from edgeopt.session import Session, signature
from edgeopt.targets.tflite import Tflite
from edgeopt.targets.tflite.lower import lower

MODELS = [
    "kws_dscnn_mlperf_tiny",
    "kws_dscnn_rescaled",
    "resnet20_cifar10",
    "resnet20_cifar10.dynamo",
    "resnet56_cifar10",
    "mobilenetv3_cifar10",
    "tiny_darknet_imagenet",
    "face_ulf_slim_320",
    "yolo_fastestv2_coco",
    "yolo_fastestv2_rescaled",
    "dncnn_s_25",
]
SHAPES = {"dncnn_s_25": ("noisy=1,1,256,256",)}
CALIBRATION = 64
SAMPLES = 12


class Decibels:
    """Signal over error, summed over all outputs and samples."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(
        self, signal: dict[str, np.ndarray], other: dict[str, np.ndarray], base: dict[str, np.ndarray]
    ) -> None:
        """Adds one call: the error of ``other`` against ``base``."""
        for name, array in signal.items():
            self.signal += float((array.astype(np.float64) ** 2).sum())
            self.noise += float(((other[name].astype(np.float64) - base[name]) ** 2).sum())

    def value(self) -> float:
        """In dB."""
        return float(10 * np.log10(self.signal / max(self.noise, 1e-30)))


def emitted(
    target: Tflite, prepared: ir.Model, original: ir.Model, platform: Platform, folder: Path
) -> Session:
    """Writes a prepared model and opens it."""
    files = target.emit(prepared, platform, folder)
    manifest: dict[str, Any] = {
        "model": files.main,
        "inputs": [asdict(spec) for spec in signature(original.graph.inputs)],
        "outputs": [asdict(spec) for spec in signature(original.graph.outputs)],
        "adapters": [asdict(adapter) for adapter in files.adapters],
    }
    return target.open(folder, manifest)


def measure(name: str, platform: Platform) -> str:
    """One row of the table."""
    entry = ENTRIES[name]
    original = ir.load(next(iter(entry.files().values())))
    target = Tflite(shape=SHAPES.get(name, ()))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        start = time.process_time()
        prepared, _ = target.prepare(original, platform)
        (folder / "float").mkdir()
        real = emitted(target, prepared, original, platform, folder / "float")
        seconds = time.process_time() - start
        lowered = lower(prepared)
        data = open_data(entry.spec(), signature(prepared.graph.inputs))
        quantized = prepared.clone()
        context = Context(Facets(rules=platform.rules, calibration=data.calibrate))
        options = {"samples": CALIBRATION, "observer": "min-max"}
        make("static-int8", options).apply(quantized, context)  # type: ignore[union-attr]
        start = time.process_time()
        ready, _ = target.prepare(quantized, platform)
        (folder / "int8").mkdir()
        small = emitted(target, ready, original, platform, folder / "int8")
        int8_seconds = time.process_time() - start
        sizes = [(folder / kind / "model.tflite").stat().st_size / 1024 for kind in ("float", "int8")]
        runs = [Executor(model) for model in (original, quantized, ready)]
        worst, equal = 0.0, []
        graph_error, file_error, kernel_error = Decibels(), Decibels(), Decibels()
        for feeds in islice(_samples(data, SAMPLES), SAMPLES):
            exact, graph, prepared_graph = (run.run(feeds) for run in runs)
            got, whole = small.run(feeds), real.run(feeds)
            worst = max(
                worst, *(float(np.abs(whole[k] - v).max() / np.abs(v).max()) for k, v in exact.items())
            )
            graph_error.add(exact, graph, exact)
            file_error.add(exact, got, graph)
            kernel_error.add(exact, got, prepared_graph)
            equal += [float((got[k].argmax(-1) == v.argmax(-1)).mean()) for k, v in graph.items()]
        small_lowered = lower(ready)
    floats = sum(o.outputs[0].dtype == "float32" for o in small_lowered.program.operations) - len(
        runs[0].outputs
    )
    cells = [
        f"{worst:.1e}",
        f"{len(lowered.program.operations)}",
        f"{lowered.transposes}",
        f"{seconds:.2f}",
        f"{sizes[0]:.0f}",
        f"{sizes[1]:.0f}",
        f"{small_lowered.transposes}",
        f"{max(floats, 0)}",
        f"{int8_seconds:.2f}",
        f"{graph_error.value():.1f}",
        f"{file_error.value():.1f}",
        f"{kernel_error.value():.1f}",
        f"{np.mean(equal):.1%}",
    ]
    return f"| {name} | {' | '.join(cells)} |"


def _samples(data: Any, count: int) -> Iterator[dict[str, np.ndarray]]:
    yield from islice(data.validate.feeds(1), count)


def main(names: list[str]) -> None:
    """Prints the table."""
    platform = load_platform("raspberry-pi-4", "tflite")
    columns = [
        *("model", "float max error", "operators", "transposes", "CPU s", "float KiB", "int8 KiB"),
        *("transposes", "float operators inside", "CPU s", "graph dB", "file vs graph dB"),
        *("file vs prepared dB", "same winner"),
    ]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name in names or MODELS:
        print(measure(name, platform), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
