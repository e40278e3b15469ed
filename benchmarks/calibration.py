"""What calibration costs beside onnxruntime's, how exact its thresholds are, and what memory it holds.

``python -m benchmarks.calibration [--samples 30] [--turns 3] MODEL.onnx...`` observes each model (float32,
inputs of 224 x 224) on seeded images, turn by turn with onnxruntime's calibrators, which tap the same kinds
of operators on the same samples. Printed per model and method: the processor seconds of collecting and
choosing thresholds, the ratio to min-max collection and to onnxruntime's calibrator of that name (medians of
the turns' ratios), and the peak memory. Each figure comes from a process of its own with one thread.
onnxruntime keeps all that it taps: 30 samples of mobilenet_v2 take 2 GB.

``--exact`` instead compares the thresholds with the exact ones. Percentiles: with the numbers of those ranks
among all, found in a second run over the data. Entropy and squared error, which are defined by bins: with
those of a histogram of the same number of bins that a second run fills in double precision once the exact
range is known; first in bins whose width is a power of two, as observers have them (the narrowest with which
4096 reach over the range), then, to see how much the edges matter, in bins that divide the range equally.

``--memory 50 500 5000`` prints peak memory after so many samples, with the observer of ``entropy``, and that
of plain inference. ``--constancy`` does so for a small network whose samples vary in shape.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.graph.execute import Executor
from edgeopt.graph.names import name_nodes
from edgeopt.graph.observers import BINS, observe, tapped
from edgeopt.graph.placement import place
from edgeopt.graph.thresholds import Histogram, Method, entropy, least_damage
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
        """Makes them anew each time, one by one where the model takes no more."""
        batch = min(batch, self.shape[0] or batch)
        for start in range(0, self.count, batch):
            part = [self.image(index) for index in range(start, min(start + batch, self.count))]
            yield {self.name: np.concatenate(part)}

    def image(self, index: int) -> np.ndarray:
        """One image [1, channels, height, width]."""
        random = np.random.default_rng(index)
        small = random.standard_normal((1, self.shape[1], *(size // 16 for size in self.shape[2:])))
        wide = small.repeat(16, 2).repeat(16, 3) + 0.2 * random.standard_normal((1, *self.shape[1:]))
        return wide.astype(np.float32)


def prepare(path: Path) -> tuple[ir.Model, Images]:
    """Loads a model with its batch normalizations folded, as calibration meets it."""
    model, _ = optimized(load(path), verify="off")
    name_nodes(model)
    value = model.graph.inputs[0]
    shape = tuple(dim if isinstance(dim, int) else 0 for dim in value.shape or ())
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


@dataclass
class Second:
    """What a second run over the data finds out about one value, its extremes being known.

    Attributes:
        low: The smallest number.
        high: The largest.
        count: How many there are.
    """

    low: float
    high: float
    count: int

    def __post_init__(self) -> None:
        self.width = 2.0**-100
        while np.floor(self.high / self.width) - np.floor(self.low / self.width) >= BINS:
            self.width *= 2
        self.first = int(np.floor(self.low / self.width))
        self.size = int(np.floor(self.high / self.width)) - self.first + 1
        self.counts, self.equal = np.zeros(self.size), np.zeros(self.size)
        # 0.005 % on either side, or 0.01 % of the magnitudes, are cut off; ranks as exact fractions
        self.kept = [-(-self.count // 20_000), self.count // 20_000 + 1, self.count // 10_000 + 1]
        self.tails = [np.zeros(0)] * 3

    def see(self, array: np.ndarray) -> None:
        """Takes in numbers once more."""
        numbers = array.reshape(-1).astype(np.float64)
        index = (np.floor(numbers / self.width) - self.first).astype(np.intp)
        self.counts += np.bincount(index, minlength=self.size)
        index = ((numbers - self.low) / (self.high - self.low) * self.size).astype(np.intp)
        self.equal += np.bincount(np.minimum(index, self.size - 1), minlength=self.size)
        for index, part in enumerate((-numbers, numbers, np.abs(numbers))):
            tail, kept = self.tails[index], self.kept[index]
            both = np.concatenate([tail, part[part > tail[0]] if len(tail) == kept else part])
            self.tails[index] = np.partition(both, -kept)[-kept:] if len(both) >= kept else both

    def percentile(self, symmetric: bool) -> tuple[float, float]:
        """The exact range that 99.99 % lie in."""
        below, above, magnitude = (float(tail[0]) for tail in self.tails)
        return (-magnitude, magnitude) if symmetric else (min(-below, 0.0), max(above, 0.0))

    def chosen(self, method: str, symmetric: bool, equal: bool) -> tuple[float, float]:
        """The range that a method chooses from the second run's histogram."""
        seen = Histogram(self.counts, self.first * self.width, self.width)
        if equal:
            seen = Histogram(self.equal, self.low, (self.high - self.low) / self.size)
        choose = entropy if method == "entropy" else least_damage
        return choose(seen, min(self.low, 0.0), max(self.high, 0.0), 256, symmetric)


def exact(path: Path, samples: int) -> dict[str, Any]:
    """Compares thresholds with the exact ones, in bins."""
    model, images = prepare(path)
    images.count = samples
    calls = Calls.fitting(model, images, samples)
    observers = observe(model, place(model, quantization_rules(None)).observed, calls)
    second = {
        name: Second(item.low, item.high, int(item.counts.sum()))
        for name, item in observers.items()
        if item.low < item.high
    }
    for name, array in tapped(model, list(second), calls):
        second[name].see(array)
    same, off = 0, dict[str, list[float]]()
    for name, truth in second.items():
        observer = observers[name]
        seen = observer.seen()
        same += bool(seen is not None and np.array_equal(seen.counts, truth.counts))
        for symmetric in (False, True):
            for method in ("percentile", "entropy", "mse"):
                got = observer.range(method, INT8, symmetric)  # type: ignore[arg-type]
                wanted = {"": truth.percentile(symmetric)}
                if method != "percentile":
                    wanted = {
                        "": truth.chosen(method, symmetric, False),
                        " in equal bins": truth.chosen(method, symmetric, True),
                    }
                for how, ends in wanted.items():
                    apart = max(abs(one - other) for one, other in zip(got, ends, strict=True))
                    off.setdefault(method + how, []).append(apart / truth.width)
    return {
        "values": len(second),
        "same histograms": same,
        "bins apart at most": {key: round(max(found), 3) for key, found in off.items()},
        "within one bin": {
            key: f"{sum(item <= 1 for item in found)} of {len(found)}" for key, found in off.items()
        },
    }


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


def turns(path: Path, samples: int, count: int) -> None:
    """Prints the rows of one model."""
    files = [str(path), str(samples)]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(count):
        for method in METHODS:
            for who in ("ours", "theirs")[: 1 if method == "mse" else 2]:
                result = apart(who, files[0], method, files[1])
                if "failed" in result:
                    raise SystemExit(f"{who} {method}: {result['failed']}")
                found.setdefault((who, method), []).append(result)
    plain = apart("ours", files[0], "inference", files[1])
    print(f"| {path.stem} | inference | {plain['cpu']:.1f} | | {plain['peak']:.0f} | | | |", flush=True)

    def ratio(one: tuple[str, str], other: tuple[str, str]) -> str:
        pairs = zip(found[one], found[other], strict=True)
        return f"{statistics.median(mine['cpu'] / base['cpu'] for mine, base in pairs):.2f}"

    def middle(key: tuple[str, str], what: str, digits: int) -> str:
        return f"{statistics.median(item[what] for item in found[key]):.{digits}f}"

    for method in METHODS:
        mine, peer = ("ours", method), ("theirs", method)
        cells = [path.stem, method, middle(mine, "cpu", 1), ratio(mine, ("ours", "min-max"))]
        cells.append(middle(mine, "peak", 0))
        cells += [middle(peer, "cpu", 1), middle(peer, "peak", 0), ratio(mine, peer)] if peer in found else []
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--samples", type=int, default=30)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--memory", type=int, nargs="+", metavar="SAMPLES")
    parser.add_argument("--constancy", action="store_true")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one)))
        return
    if options.constancy:
        few, many = apart("constancy", "50"), apart("constancy", "5000")
        print(
            f"peak memory {few['peak']:.0f} MB after 50 samples, {many['peak']:.0f} MB after 5000 "
            f"of varying shape ({many['seconds']:.0f} s)"
        )
    for path in options.models:
        if options.exact:
            found = apart("exact", str(path), str(options.samples))
            print(f"{path.stem}, {options.samples} images: {json.dumps(found)}", flush=True)
        elif options.memory:
            for method, counts in (("inference", options.memory[:1]), ("entropy", options.memory)):
                for count in counts:
                    result = apart("ours", str(path), method, str(count))
                    print(
                        f"{path.stem}, {method}, {count} images: {result['peak']:.0f} MB, "
                        f"{result['cpu']:.0f} s of the processor",
                        flush=True,
                    )
        else:
            print("| model | method | CPU s | to min-max | MB | onnxruntime CPU s | its MB | ratio |")
            print("|---|---|---|---|---|---|---|---|")
            turns(path, options.samples, options.turns)


if __name__ == "__main__":
    main()
