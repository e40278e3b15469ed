"""The convolutional zoo on the target ``tflite``, in float and in int8.

``python -m benchmarks.tflite_zoo [NAME]... [--only float|int8] [--winners exact] [--compiled]`` prints
two tables.

Float: the largest deviation from onnxruntime relative to the largest output, and the file's sizes.

Int8 (static quantization with min-max ranges by the runtime's rules, or with ``--compiled`` what
``edgeopt compile`` makes of the model), in dB of signal over error, on
evaluation samples:

- *cost*: the prepared graph in exact arithmetic (``targets/tflite/exact.py``) against the float model.
- *file, graph*: the file on LiteRT's default kernels against that same graph.
- *file, onnxruntime*: against the prepared graph run by onnxruntime, whose float32 sums are rounded.
- *file, kernels*: against our statement of the default kernels (``targets/tflite/xnnpack.py``).
- *reference file, specification*: LiteRT's BUILTIN_REF against ``targets/tflite/reference.py``.
- *reference file, graph*: what the specification's own roundings cost.
- *same winner*: the file and the prepared graph run by onnxruntime, or with ``--winners exact`` in exact
  arithmetic (slow), on up to 500 samples.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.zoo.compiling import make_job
from benchmarks.zoo.models import ENTRIES, Entry
from edgeopt.compilation import Corridor
from edgeopt.data import DataSamples, open_data
from edgeopt.graph.change import Change
from edgeopt.graph.execute import Executor
from edgeopt.passes import Context, Facets, make
from edgeopt.platform import Platform, load_platform
from edgeopt.session import Session, signature
from edgeopt.steps import Store
from edgeopt.targets.tflite import Tflite, exact, reference, xnnpack
from edgeopt.targets.tflite.flatbuffer import write
from edgeopt.targets.tflite.lower import Lowered, lower
from edgeopt.targets.tflite.session import TfliteSession, from_runtime, to_runtime
from edgeopt.watch import QUIET

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
SAMPLES = {
    **{"dncnn_s_25": 1, "tiny_darknet_imagenet": 6, "face_ulf_slim_320": 6},
    **dict.fromkeys(("yolo_fastestv2_coco", "yolo_fastestv2_rescaled"), 48),
}
"""Few where numpy takes long for a sample, all of the detector's, which differ by 40 dB; otherwise 12."""
AGREEMENT = 500


class Decibels:
    """Signal over error, summed over all outputs and samples."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(
        self,
        signal: Mapping[str, np.ndarray],
        other: Mapping[str, np.ndarray],
        base: Mapping[str, np.ndarray],
    ) -> None:
        """Adds one call: the error of ``other`` against ``base``."""
        for name, array in signal.items():
            self.signal += float((array.astype(np.float64) ** 2).sum())
            self.noise += float(((other[name].astype(np.float64) - base[name]) ** 2).sum())

    def __str__(self) -> str:
        value = float(10 * np.log10(self.signal / max(self.noise, 1e-30)))
        return "equal" if value > 200 else f"{value:.1f}"


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


def float_row(name: str, platform: Platform) -> list[str]:
    """One row of the float table."""
    original, target = _original(name)
    with tempfile.TemporaryDirectory() as scratch:
        start = time.process_time()
        prepared, _ = target.prepare(original, platform)
        session = emitted(target, prepared, original, platform, Path(scratch))
        seconds = time.process_time() - start
        size = (Path(scratch) / "model.tflite").stat().st_size / 1024
        run, worst = Executor(original), 0.0
        for feeds in islice(_evaluation(ENTRIES[name], prepared).feeds(1), 12):
            got = session.run(feeds)
            for key, value in run.run(feeds).items():
                worst = max(worst, float(np.abs(got[key] - value).max() / np.abs(value).max()))
    lowered = lower(prepared)
    operators = f"{len(lowered.program.operations)}"
    return [f"{worst:.1e}", operators, f"{lowered.transposes}", f"{size:.0f}", f"{seconds:.2f}"]


def quantized(name: str, platform: Platform) -> ir.Model:
    """A model quantized with min-max ranges, not yet in integers."""
    original, target = _original(name)
    prepared, _ = target.prepare(original, platform)
    calibration = open_data(ENTRIES[name].spec(), signature(prepared.graph.inputs)).calibrate
    context = Context(Facets(rules=platform.rules, calibration=calibration))
    make("static-int8", {"samples": CALIBRATION, "observer": "min-max"}).apply(prepared, context)  # type: ignore[union-attr]
    return prepared


class Observed(Tflite):
    """The target, keeping the last model that it was given."""

    given: ir.Model | None = None

    def prepare(self, model: ir.Model, platform: Platform) -> tuple[ir.Model, Change]:
        """Keeps, and prepares."""
        Observed.given = model.clone()
        return super().prepare(model, platform)


def compiled(name: str, platform: Platform) -> ir.Model:
    """A model as ``edgeopt compile`` quantizes it with its own data, not yet in integers."""
    with tempfile.TemporaryDirectory() as folder:
        target = Observed(shape=SHAPES.get(name, ()))
        job = replace(make_job(name, Path(folder) / "out"), platform=platform, target=target)
        corridor = Corridor(job, Store(Path(folder) / "store"), QUIET)
        corridor.load()
        corridor.open_data()
        for part in corridor.parts.values():
            corridor.lower(part)
        model = Observed.given
        if model is None:
            raise SystemExit(f"{name} was not compiled")
        for value in model.graph.initializers.values():
            # The store's files go away with the folder.
            if value.const_value is not None:
                value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    return model


def int8_row(
    name: str, platform: Platform, winners: str, quantize: Callable[[str, Platform], ir.Model]
) -> list[str]:
    """One row of the int8 table."""
    original, target = _original(name)
    prepared = quantize(name, platform)
    start = time.process_time()
    ready, _ = target.prepare(prepared, platform)
    lowered = lower(ready)
    content = write(lowered.program)
    seconds = time.process_time() - start
    fast, slow = (
        TfliteSession(
            content,
            signature(original.graph.inputs),
            signature(original.graph.outputs),
            lowered.adapters,
            reference=is_reference,
        )
        for is_reference in (False, True)
    )
    model, graph = Executor(original), Executor(ready)
    sums = [Decibels() for _ in range(6)]
    samples = _evaluation(ENTRIES[name], ready)
    for feeds in islice(samples.feeds(1), SAMPLES.get(name, 12)):
        signal, got, slow_got = model.run(feeds), fast.run(feeds), slow.run(feeds)
        true, kernels, specified = (
            stated(lowered, feeds, table) for table in (exact.KERNELS, xnnpack.KERNELS, reference.KERNELS)
        )
        pairs = [
            (true, signal),
            (got, true),
            (got, graph.run(feeds)),
            (got, kernels),
            (slow_got, specified),
            (slow_got, true),
        ]
        for total, (one, other) in zip(sums, pairs, strict=True):
            total.add(signal, one, other)
    equal = []
    if ENTRIES[name].metric == "top1":
        for feeds in islice(samples.feeds(1), AGREEMENT):
            got = fast.run(feeds)
            wanted = stated(lowered, feeds, exact.KERNELS) if winners == "exact" else graph.run(feeds)
            equal += [bool((got[key].argmax(-1) == value.argmax(-1)).all()) for key, value in wanted.items()]
    agreement = f"{np.mean(equal):.1%} of {len(equal)}" if equal else ""
    floats = sum(o.outputs[0].dtype == "float32" for o in lowered.program.operations) - len(graph.outputs)
    operators = f"{len(lowered.program.operations)}"
    sizes = [operators, f"{max(floats, 0)}", f"{len(content) / 1024:.0f}", f"{seconds:.2f}"]
    return [*sizes, *map(str, sums), agreement]


def stated(lowered: Lowered, feeds: Mapping[str, np.ndarray], kernels: Any) -> dict[str, np.ndarray]:
    """Runs a program by statements of its kernels, in the original's terms."""
    sides = {side: [a for a in lowered.adapters if a.side == side] for side in ("input", "output")}
    given = {
        tensor.name: to_runtime(feeds[adapter.name], adapter)
        for tensor, adapter in zip(lowered.program.inputs, sides["input"], strict=True)
    }
    values = reference.execute(lowered.program, given, kernels)
    return {
        adapter.name: from_runtime(values[tensor.name], adapter)
        for tensor, adapter in zip(lowered.program.outputs, sides["output"], strict=True)
    }


def _original(name: str) -> tuple[ir.Model, Tflite]:
    return ir.load(next(iter(ENTRIES[name].files().values()))), Tflite(shape=SHAPES.get(name, ()))


def _evaluation(entry: Entry, model: ir.Model) -> DataSamples:
    """The evaluation samples: nothing here is chosen by them."""
    spec = entry.spec()
    opened = open_data(
        spec.model_copy(update={"calibrate": spec.evaluate, "evaluate": None}), signature(model.graph.inputs)
    )
    if opened.calibrate is None:
        raise SystemExit("the model has no evaluation data")
    return opened.calibrate


FLOAT = ("model", "max error", "operators", "transposes", "KiB", "CPU s")
INT8 = (
    *("model", "operators", "in float", "KiB", "CPU s", "cost", "file, graph", "file, onnxruntime"),
    *("file, kernels", "reference file, specification", "reference file, graph", "same winner"),
)


def _table(
    names: list[str],
    columns: tuple[str, ...],
    winners: str,
    quantize: Callable[[str, Platform], ir.Model],
) -> Iterator[str]:
    platform = load_platform("raspberry-pi-4", "tflite")
    yield f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"
    for name in names:
        is_float = columns is FLOAT
        row = float_row(name, platform) if is_float else int8_row(name, platform, winners, quantize)
        yield f"| {name} | {' | '.join(row)} |"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--only", choices=("float", "int8"))
    parser.add_argument("--winners", choices=("onnxruntime", "exact"), default="onnxruntime")
    parser.add_argument("--compiled", action="store_true")
    options = parser.parse_args()
    quantize = compiled if options.compiled else quantized
    for kind, columns in (("float", FLOAT), ("int8", INT8)):
        if options.only in (None, kind):
            for line in _table(options.names or MODELS, columns, options.winners, quantize):
                print(line, flush=True)


if __name__ == "__main__":
    main()
