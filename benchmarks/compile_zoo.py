"""Compiles every model of the zoo for one device and judges each on its own data with its own metric.

``python -m benchmarks.compile_zoo [--device raspberry-pi-4] [--target NAME] [--out DIR] [NAME]...``
prints a Markdown table: size, host latency of artifact over original (one thread, interleaved), the
metric before and after with its 95 % interval, fidelity, and the processor seconds and peak memory of
the whole compilation in a process of its own with an empty store.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.zoo.models import ENTRIES
from edgeopt import benchmark, units
from edgeopt.artifact import open_artifact
from edgeopt.compilation import compile_job
from edgeopt.data import SeededSamples
from edgeopt.job import Job, PartSource, make_target
from edgeopt.platform import load_platform
from edgeopt.runners.host import OnnxSession
from edgeopt.session import Session
from edgeopt.steps import Store

HEADER = (
    "| model | size before, after | host ratio | metric before | after [95 %] | drop [95 %] | fidelity dB "
    "| verdict | CPU s | MB |"
)


def compile_one(name: str, device: str, target: str | None, out: Path) -> dict[str, Any]:
    """Compiles one model; returns its outcome as JSON data."""
    entry = ENTRIES[name]
    platform = load_platform(device, target)
    shapes = {"noisy": [1, 1, 256, 256]} if name == "dncnn_s_25" and target == "tflite" else {}
    with tempfile.TemporaryDirectory() as cache:
        outcome = compile_job(
            Job(
                name=name,
                parts={part: PartSource(path, shapes=shapes) for part, path in entry.files().items()},
                platform=platform,
                target=make_target(platform),
                output=out / name,
                data=entry.spec(),
                force=True,
            ),
            Store(Path(cache)),
        )
    usage = resource.getrusage(resource.RUSAGE_SELF)
    body = outcome.to_json()
    body["process"] = {"cpu": usage.ru_utime + usage.ru_stime, "mb": usage.ru_maxrss / 1024}
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
    parser.add_argument("--device", default="raspberry-pi-4")
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
    for name in options.names or ENTRIES:
        if not all(path.is_file() for path in ENTRIES[name].files().values()):
            print(f"| {name} | not in the zoo |", flush=True)
            continue
        command = [sys.executable, "-m", "benchmarks.compile_zoo", "--one", name, "--device", options.device]
        command += ["--out", str(options.out)] + (["--target", options.target] if options.target else [])
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if ran.returncode:
            print(f"| {name} | failed: {(ran.stderr.strip().splitlines() or ['?'])[-1]} |", flush=True)
            continue
        print(row(json.loads(ran.stdout.splitlines()[-1])), flush=True)


if __name__ == "__main__":
    main()
