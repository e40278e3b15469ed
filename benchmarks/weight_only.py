"""What 4-bit weights keep of the zoo's classifiers and transformers.

``python -m benchmarks.weight_only [--bits 4] [--rounding auto] [--measure measure.py] [NAME]...`` compiles
each model with the scheme ``weight-only`` for a Raspberry Pi 4 and prints a Markdown table: the metric of
the float model and of the artifact on the evaluation data, the drop, fidelity and top-1 agreement there,
the artifact's size beside the float file's, processor seconds and peak memory, each model in a process of
its own. ``--measure`` names a script that measures the artifact's file from outside, as
``SCRIPT NAME FILE``; what it prints follows the row.

``python -m benchmarks.weight_only --large 4 [--folder DIR]`` writes a model of so many GB of distinct weights
in external data, compiles it with 4-bit weights and without data in a process of its own, and prints the peak
of that process's anonymous memory (RssAnon: what cannot be dropped; pages of mapped files can). The files
are removed again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.anonymous_memory import Watch
from benchmarks.large_model import layers_of, write
from benchmarks.zoo.compiling import DEVICE, each, measure, plan
from edgeopt import units
from edgeopt.compilation import compile_job
from edgeopt.job import Job, PartSource, make_steps, make_target
from edgeopt.platform import load_platform
from edgeopt.steps import Store

NAMES = (
    "kws_dscnn_mlperf_tiny",
    "resnet20_cifar10",
    "resnet56_cifar10",
    "mobilenetv3_cifar10",
    "cct_vit_cifar10",
    "agnews_text_transformer",
    "minilm_l6_sts",
)


def row(body: dict[str, Any]) -> str:
    """One line of the table."""
    before, after = body["before"], body["after"]
    known = ("size", "latency", "peak_memory", "fidelity", "accuracy_drop")
    metric = next(key for key in before if key in after and key not in known)
    drop = before[metric]["value"] - after[metric]["value"]
    calls = body["calls"]
    cells = [body["name"], f"{before[metric]['value']:.4g}", f"{after[metric]['value']:.4g}", f"{drop:.3g}"]
    cells += ["" if calls["fidelity"] is None else f"{calls['fidelity']:.1f}"]
    cells += ["" if calls["agreement"] is None else f"{calls['agreement']:.2%}"]
    cells += [units.format_size(before["size"]["value"]), units.format_size(after["size"]["value"])]
    cells += [f"{body['process']['cpu']:.0f}", f"{body['process']['mb']:.0f}"]
    return "| " + " | ".join(cells) + " |"


def large(gigabytes: float, folder: Path | None) -> None:
    """Compiles a model of many GB and prints the peak of anonymous memory."""
    layers = layers_of(gigabytes)
    place = Path(tempfile.mkdtemp(prefix="edgeopt-large-", dir=folder))
    try:
        model = write(place, layers)
        size = (place / "large.data").stat().st_size
        command = [sys.executable, "-m", "benchmarks.weight_only", "--compile", str(model)]
        environment = {**os.environ, "TMPDIR": str(place)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise SystemExit(done.stderr)
        artifact, peak, seconds = map(float, done.stdout.split()[-3:])
        print(
            f"{size / 1e9:.2f} GB in {layers} weights -> {artifact / 1e9:.2f} GB: anonymous memory "
            f"{peak / 1e6:.0f} MB at most, {seconds:.0f} s of the processor"
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)


def compile_large(model: Path) -> tuple[int, int]:
    """Compiles a model with 4-bit weights beside it; returns the artifact's bytes and the peak in bytes."""
    platform = load_platform(DEVICE, "onnxruntime")
    job = Job(
        name="large",
        parts={"model": PartSource(model)},
        platform=platform,
        target=make_target(platform),
        output=model.parent / "built",
        steps=make_steps([("weight-only", {"bits": 4})]),
    )
    with Watch() as watch:
        outcome = compile_job(job, Store(model.parent / "store"))
    return sum(path.stat().st_size for path in outcome.path.glob("model.*")), watch.peak


def main() -> None:
    """Measures the models named, or all of them, each in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--rounding", default="auto")
    parser.add_argument("--measure", default="")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--large", type=float, help="GB of a model that is written for this")
    parser.add_argument("--folder", type=Path, help="where to write it; the temporary folder by default")
    parser.add_argument("--compile", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compile:
        print(*compile_large(options.compile), time.process_time())
        return
    if options.large:
        large(options.large, options.folder)
        return
    if options.one:
        steps = plan({"bits": options.bits, "rounding": options.rounding}, "weight-only")
        print(json.dumps(measure(options.one, steps, script=options.measure), default=str))
        return
    header = "| model | float | stored | drop | fidelity dB | agreement | float size | size | CPU s | MB |"
    print(header + "\n|" + "---|" * (header.count("|") - 1))
    arguments = ["--bits", str(options.bits), "--rounding", options.rounding, "--measure", options.measure]
    for _, line in each("benchmarks.weight_only", options.names or NAMES, arguments):
        body = json.loads(line)
        print(row(body), flush=True)
        if body["outside"]:
            print(f"    {body['outside']}", flush=True)


if __name__ == "__main__":
    main()
