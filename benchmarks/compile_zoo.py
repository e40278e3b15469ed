"""Compiles every model of the zoo for one device and judges each on its own data with its own metric.

``python -m benchmarks.compile_zoo [--device raspberry-pi-4] [--target NAME] [--out DIR] [NAME]...``
prints a Markdown table: size, host latency of artifact over original (one thread, interleaved), the
metric before and after with its 95 % interval, fidelity, and the processor seconds and peak memory of
the whole compilation in a process of its own with an empty store.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.zoo.compiling import DEVICE, each, make_job, process
from benchmarks.zoo.models import ENTRIES
from edgeopt import benchmark, units
from edgeopt.artifact import open_artifact
from edgeopt.compilation import compile_job
from edgeopt.data import SeededSamples
from edgeopt.runners.host import OnnxSession
from edgeopt.session import Session
from edgeopt.steps import Store

HEADER = (
    "| model | size before, after | host ratio | metric before | after [95 %] | drop [95 %] | fidelity dB "
    "| verdict | CPU s | MB |"
)


def compile_one(name: str, device: str, target: str | None, out: Path) -> dict[str, Any]:
    """Compiles one model; returns its outcome as JSON data."""
    job = replace(make_job(name, out / name, device, target), force=True)
    if name == "dncnn_s_25" and target == "tflite":
        shapes = {"noisy": [1, 1, 256, 256]}
        job = replace(job, parts={key: replace(part, shapes=shapes) for key, part in job.parts.items()})
    with tempfile.TemporaryDirectory() as cache:
        body: dict[str, Any] = compile_job(job, Store(Path(cache))).to_json()
    body["process"] = process()
    body["ratio"] = _ratio(name, open_artifact(out / name).open())
    return body


def _ratio(name: str, sessions: dict[str, Session]) -> float:
    """Times every part against its original on this host, turn by turn; parts weigh by their time."""
    time, scaled = 0.0, 0.0
    for part, path in ENTRIES[name].files().items():
        original = OnnxSession(path)
        shapes = {"noisy": [1, 1, 256, 256]} if name == "dncnn_s_25" else {}
        if name == "minilm_l6_sts":
            shapes = {"input_ids": [1, 64], "attention_mask": [1, 64]}
        feeds = next(SeededSamples(original.inputs, 1, 0, shapes).feeds())
        calls = {"original": original, "artifact": sessions[part]}
        result = benchmark.measure(
            {
                key: (lambda session=session, feeds=feeds: session.run(feeds))  # type: ignore[misc]
                for key, session in calls.items()
            },
            "original",
            seconds=3,
        )
        median = result.timings["original"].median
        time += median
        scaled += median * result.comparisons["artifact"].ratio
    return scaled / time


def row(body: dict[str, Any]) -> str:
    """One line of the table."""
    before, after = body["before"], body["after"]
    metric = next((key for key in before if key not in ("size", "latency", "peak_memory")), None)

    def bounds(figure: dict[str, Any], digits: int = 2) -> str:
        text = f"{figure['value']:.{digits}f} {figure['unit']}".strip()
        if figure["interval"] is None:
            return text
        return f"{text} [{figure['interval'][0]:.{digits}f}, {figure['interval'][1]:.{digits}f}]"

    cells = [body["name"]]
    cells.append(f"{units.format_size(before['size']['value'])}, {units.format_size(after['size']['value'])}")
    cells.append(f"{body['ratio']:.2f}")
    digits = 2 if metric and before[metric]["unit"] else 4
    cells.append("" if metric is None else f"{before[metric]['value']:.{digits}f} {before[metric]['unit']}")
    cells.append("" if metric is None else bounds(after[metric], digits))
    cells.append(bounds(after["accuracy_drop"], digits) if "accuracy_drop" in after else "")
    cells.append(f"{after['fidelity']['value']:.1f}" if "fidelity" in after else "")
    cells.append(", ".join(f"{verdict['status']}" for verdict in body["verdicts"]))
    cells += [f"{body['process']['cpu']:.1f}", f"{body['process']['mb']:.0f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Compiles the models named, or all of them, each in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--device", default=DEVICE)
    parser.add_argument("--target")
    parser.add_argument("--out", type=Path, default=Path("build/zoo"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.one:
        print(json.dumps(compile_one(options.one, options.device, options.target, options.out), default=str))
        return
    print(HEADER)
    print("|" + "---|" * (HEADER.count("|") - 1))
    arguments = ["--device", options.device, "--out", str(options.out)]
    arguments += ["--target", options.target] if options.target else []
    for _, line in each("benchmarks.compile_zoo", options.names or ENTRIES, arguments):
        print(row(json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
