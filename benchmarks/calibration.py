"""What calibration costs beside onnxruntime's, how exact its thresholds are, and what memory it holds.

``python -m benchmarks.calibration [--samples 50] [--peer] MODEL.onnx...`` observes each model (float32,
inputs of 224 x 224) on seeded images, and prints per model and method the processor seconds, the ratio to
min-max collection on the same tapped run and to onnxruntime's calibrator (which taps the same kinds of
operators on the same samples), and the peak memory above plain inference. Each figure comes from a
process of its own.

``--exact`` instead compares the streamed thresholds of the first model's tapped values, over ``--samples``
images, with those of all numbers at once, in bins of the streamed histogram: percentiles with numpy's
quantiles, entropy with the same histogram made in one go, since it has no meaning without bins.

``--constancy`` observes a small network whose samples vary in shape, 50 and then 5000 times, and prints
the peak memory of both; at 224 x 224 that would take half an hour a model.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.graph.execute import Executor
from edgeopt.graph.names import name_nodes
from edgeopt.graph.observers import Observer, observe, tapped
from edgeopt.graph.placement import place
from edgeopt.graph.thresholds import Method
from edgeopt.load import load
from edgeopt.optimization import optimized
from edgeopt.passes._calibration import Calls, calibrate
from edgeopt.passes._rules import quantization_rules

INT8 = ir.DataType.UINT8
METHODS: tuple[Method, ...] = ("min-max", "percentile", "entropy", "mse")


class Images:
    """Seeded images, blurred so that they are smoother than noise, normalized as usual."""

    digest = "images"
    labels = None

    def __init__(self, name: str, shape: tuple[int, ...], count: int) -> None:
        self.name, self.shape, self.count = name, shape, count

    def __len__(self) -> int:
        return self.count

    def feeds(self, batch: int = 1) -> Iterator[dict[str, np.ndarray]]:
        """Makes them anew each time."""
        for start in range(0, self.count, batch):
            part = [self.image(index) for index in range(start, min(start + batch, self.count))]
            yield {self.name: np.concatenate(part)}

    def image(self, index: int) -> np.ndarray:
        """One image [1, channels, height, width]."""
        random = np.random.default_rng(index)
        small = random.standard_normal((*self.shape[:2], *(size // 16 for size in self.shape[2:])))
        wide = small.repeat(16, 2).repeat(16, 3) + 0.2 * random.standard_normal(self.shape)
        return wide.astype(np.float32)


def prepare(path: Path) -> tuple[ir.Model, Images]:
    """Loads a model with its batch normalizations folded, as calibration meets it."""
    model, _ = optimized(load(path), verify="off")
    name_nodes(model)
    value = model.graph.inputs[0]
    shape = tuple(dim if isinstance(dim, int) else 1 for dim in value.shape or ())
    return model, Images(value.name or "", shape, 0)


def cpu() -> float:
    """Processor seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak() -> float:
    """Peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(path: Path, method: str, samples: int) -> dict[str, Any]:
    """Calibrates with our observers; ``inference`` runs the model alone."""
    model, images = prepare(path)
    images.count = samples
    calls = Calls.fitting(model, images, samples)
    start, held = cpu(), peak()
    if method == "inference":
        with Executor(model, optimize=True) as executor:
            for feeds in images.feeds():
                executor.run(feeds)
        return {"cpu": cpu() - start, "peak": peak(), "before": held, "values": 0}
    rules = quantization_rules(None)
    placement, observers = calibrate(model, rules, calls, set(), histogram=method != "min-max")
    for name in placement.observed:
        observers[name].range(method, INT8)  # type: ignore[arg-type]
    return {"cpu": cpu() - start, "peak": peak(), "before": held, "values": len(observers)}


def theirs(path: Path, method: str, samples: int) -> dict[str, Any]:
    """Calibrates with onnxruntime's calibrator of that name, at its defaults."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    model, images = prepare(path)
    images.count = samples

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.calls = images.feeds()

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.calls, None)

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        ir.save(model, source)
        kinds = {
            "min-max": CalibrationMethod.MinMax,
            "percentile": CalibrationMethod.Percentile,
            "entropy": CalibrationMethod.Entropy,
        }
        operators = [name for name in quantization_rules(None).operators]
        start, held = cpu(), peak()
        calibrator = create_calibrator(
            str(source), operators, str(Path(folder) / "taps.onnx"), calibrate_method=kinds[method]
        )
        calibrator.set_execution_providers(["CPUExecutionProvider"])
        calibrator.collect_data(Reader())
        data = calibrator.compute_data()
        return {"cpu": cpu() - start, "peak": peak(), "before": held, "values": len(data.data)}


def exact(path: Path, samples: int) -> dict[str, Any]:
    """Compares streamed thresholds with those of all numbers at once, in bins."""
    model, images = prepare(path)
    images.count = samples
    calls = Calls.fitting(model, images, samples)
    names = place(model, quantization_rules(None)).observed
    observers = {name: Observer() for name in names}
    seen: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for name, array in tapped(model, names, calls):  # one run: other taps would round otherwise
        observers[name].see(array)
        seen[name].append(array.reshape(-1))
    worst: dict[str, float] = {method: 0.0 for method in ("percentile", "entropy", "mse")}
    for name, observer in observers.items():
        if not observer.width:
            continue
        numbers = np.concatenate(seen[name])
        whole = Observer(origin=observer.origin, width=observer.width)
        whole.see(numbers)
        low, high = np.quantile(numbers, [0.00005, 0.99995], method="inverted_cdf")
        for method in worst:
            wanted = whole.range(method, INT8)  # type: ignore[arg-type]
            if method == "percentile":
                wanted = (min(float(low), 0.0), max(float(high), 0.0))
            got = observer.range(method, INT8)  # type: ignore[arg-type]
            off = max(abs(one - other) for one, other in zip(got, wanted, strict=True)) / observer.width
            worst[method] = max(worst[method], off)
    return {"values": len(names), "bins": worst}


def constancy(count: int) -> dict[str, Any]:
    """Observes a small convolutional network on images of varying size."""
    random = np.random.default_rng(0)
    x = ir.val("x", ir.DataType.FLOAT, ["n", 3, "h", "w"])
    nodes, constants, last, channels = [], [], x, 3
    for index in range(6):
        array = (random.standard_normal((16, channels, 3, 3)) / np.sqrt(9 * channels)).astype(np.float32)
        weight = ir.val(f"w{index}", ir.DataType.FLOAT, array.shape, const_value=ir.tensor(array))
        constants.append(weight)
        for node in (
            ir.node("Conv", [last, weight], {"pads": [1] * 4}, name=f"conv{index}"),
            ir.node("Relu", [], name=f"relu{index}"),
        ):
            if node.op_type == "Relu":
                node = ir.node("Relu", [nodes[-1].outputs[0]], name=f"relu{index}")
            node.outputs[0].name = node.name
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            nodes.append(node)
        last, channels = nodes[-1].outputs[0], 16
    graph = ir.Graph([x], [last], nodes=nodes, initializers=constants, opset_imports={"": 21}, name="network")
    model = ir.Model(graph, ir_version=10)

    class Varying:
        def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
            for index in range(count):
                sizes = 24 + index % 17, 24 + index % 13
                image = np.random.default_rng(index).standard_normal((1, 3, *sizes))
                yield {"x": image.astype(np.float32)}

    names = [node.outputs[0].name or "" for node in nodes]
    started = time.perf_counter()
    observe(model, names, Varying())
    return {"peak": peak(), "seconds": time.perf_counter() - started}


def apart(*arguments: str) -> dict[str, Any]:
    """Runs one measurement in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.calibration", "--one", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if ran.returncode:
        return {"failed": (ran.stderr.strip().splitlines() or ["?"])[-1]}
    result: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return result


def one(arguments: list[str]) -> dict[str, Any]:
    """The measurement that a process of its own makes."""
    kind, *rest = arguments
    if kind == "constancy":
        return constancy(int(rest[0]))
    if kind == "exact":
        return exact(Path(rest[0]), int(rest[1]))
    return (ours if kind == "ours" else theirs)(Path(rest[0]), rest[1], int(rest[2]))


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--constancy", action="store_true")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one)))
        return
    timed = [] if options.exact else options.models
    if timed:
        print("| model | method | CPU s | to min-max | MB above inference | onnxruntime CPU s | MB | ratio |")
        print("|---|---|---|---|---|---|---|---|")
    for path in timed:
        plain = apart("ours", str(path), "inference", str(options.samples))
        print(f"| {path.stem} | inference | {plain['cpu']:.1f} | | ({plain['peak']:.0f}) | | | |", flush=True)
        base = 0.0
        for method in METHODS:
            mine = apart("ours", str(path), method, str(options.samples))
            base = base or mine["cpu"]
            cells = [path.stem, method, f"{mine['cpu']:.1f}", f"{mine['cpu'] / base:.2f}"]
            cells.append(f"{mine['peak'] - plain['peak']:.0f}")
            if options.peer and method != "mse":
                peer = apart("theirs", str(path), method, str(options.samples))
                failed = peer.get("failed")
                cells += [failed, "", ""] if failed else [f"{peer['cpu']:.1f}", f"{peer['peak']:.0f}"]
                cells += [] if failed else [f"{mine['cpu'] / peer['cpu']:.2f}"]
            print("| " + " | ".join(cells) + " |", flush=True)
    if options.exact:
        for path in options.models:
            found = apart("exact", str(path), str(options.samples))
            print(f"{path.stem}: {found}", flush=True)
    if options.constancy:
        few, many = apart("constancy", "50"), apart("constancy", "5000")
        print(
            f"peak memory {few['peak']:.0f} MB after 50 samples, {many['peak']:.0f} MB after 5000 "
            f"of varying shape ({many['seconds']:.0f} s)"
        )


if __name__ == "__main__":
    main()
