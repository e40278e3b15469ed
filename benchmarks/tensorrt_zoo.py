"""Lowers every model of the zoo for TensorRT and compares the ONNX file with what it came from.

``python -m benchmarks.tensorrt_zoo [--device jetson-nano] [--version 8.5.2] [NAME]...`` prints a Markdown
table; the version is the device's own, or another of TensorRT.

Each model goes the whole corridor on its own data. Then its file is checked (opset, operators in the table
of that TensorRT) and run in reference mode beside the model that it came from: the float original where
the engine computes in float16, the quantized graph before ``prepare`` where it computes in int8. The error
is max|Δ| over max|expected|, the worst of all outputs and calls; the agreement is that of argmax.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.zoo.compiling import make_job
from benchmarks.zoo.models import ENTRIES
from edgeopt import golden
from edgeopt.compilation import Corridor
from edgeopt.errors import EdgeoptError
from edgeopt.graph.change import Change
from edgeopt.graph.execute import Executor
from edgeopt.platform import Platform, load_platform
from edgeopt.steps import Store
from edgeopt.targets.tensorrt import Tensorrt
from edgeopt.watch import QUIET

HEADER = "| model | precision | opset | nodes | decomposed | not in the table | error | agreement | CPU s |"
CALLS = 8


@dataclass(frozen=True)
class Observed(Tensorrt):
    """The target, keeping the models that it was given and what it made of them."""

    seen: list[tuple[ir.Model, ir.Model, Change]] = field(default_factory=list, compare=False)

    def options(self) -> dict[str, Any]:
        """The options without what is kept."""
        return {"format": self.format}

    def prepare(self, model: ir.Model, platform: Platform) -> tuple[ir.Model, Change]:
        """Prepares, and keeps."""
        prepared, change = super().prepare(model, platform)
        self.seen.append((model.clone(), prepared, change))
        return prepared, change


def compare(
    before: ir.Model, path: Path, calls: Iterator[Mapping[str, np.ndarray]]
) -> tuple[float, float | None]:
    """Runs two models on the same calls; returns the error, and the agreement where there are classes."""
    error, same, total = 0.0, 0, 0
    with Executor(before) as one, Executor(ir.load(path)) as two:
        for feeds in calls:
            for (name, expected), got in zip(one.run(feeds).items(), two.run(feeds).values(), strict=True):
                if expected.dtype.kind != "f":
                    error = max(error, 0.0 if np.array_equal(expected, got) else np.inf)
                    continue
                largest = float(np.abs(expected).max(initial=0.0))
                error = max(error, float(np.abs(got - expected).max(initial=0.0)) / (largest or 1.0))
                if expected.ndim == 2 and name == one.outputs[0]:
                    same += int((expected.argmax(-1) == got.argmax(-1)).sum())
                    total += len(expected)
    return error, same / total if total else None


def rows(name: str, platform: Platform) -> Iterator[str]:
    """Compiles one model and yields a line of the table for each of its parts."""
    target = Observed()
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        job = replace(make_job(name, Path(folder) / "out"), platform=platform, target=target)
        corridor = Corridor(job, Store(Path(folder) / "store"), QUIET)
        try:
            corridor.load()
            corridor.open_data()
            for part in corridor.parts.values():
                corridor.lower(part)
        except EdgeoptError as failure:
            where = " ".join(str(failure.where or "").split())
            yield f"| {name} | refused: {failure.message}; {where} |"
            return
        seconds = time.process_time() - start
        for part, (before, prepared, change) in zip(corridor.parts.values(), target.seen, strict=True):
            out = Path(folder) / part.name
            out.mkdir()
            target.emit(prepared, platform, out)
            path = out / "model.onnx"
            precision = corridor.precisions[part.name]
            expected = before if precision == "static-int8" else part.original
            samples = part.validate
            calls = golden.seeded_calls(expected, 0) if samples is None else samples.feeds()
            error, agreement = compare(expected, path, islice(iter(calls), CALLS))
            shipped = ir.load(path)
            strange = {node.op_type for node in shipped.graph.all_nodes()}
            strange = {op for op in strange if not platform.rules.runs(op)}
            title = name if len(corridor.parts) == 1 else f"{name}, {part.name}"
            cells = [title, precision, str(shipped.opset_imports[""])]
            cells += [f"{len(before.graph)} -> {len(shipped.graph)}", str(len(change.rewrites))]
            cells += [", ".join(sorted(strange)) or "none", f"{error:.1e}"]
            cells += ["" if agreement is None else f"{agreement:.1%}", f"{seconds:.1f}"]
            yield "| " + " | ".join(cells) + " |"


def main() -> None:
    """Prints the table of the models named, or of all of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--device", default="jetson-nano")
    parser.add_argument("--version")
    options = parser.parse_args()
    platform = load_platform(options.device, "tensorrt")
    if options.version:
        platform = platform.model_copy(update={"runtime_version": options.version})
    print(HEADER)
    print("|" + " --- |" * HEADER.count(" | ") + " --- |")
    for name in options.names or ENTRIES:
        if not all(path.is_file() for path in ENTRIES[name].files().values()):
            print(f"| {name} | not in the zoo |")
            continue
        for row in rows(name, platform):
            print(row, flush=True)


if __name__ == "__main__":
    main()
