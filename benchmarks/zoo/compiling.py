"""Compiling models of the zoo and measuring what came of them, each in a process of its own.

A benchmark's own module is started again per model with ``--one NAME``, prints one line of JSON, and ends:

    for name, body in each("benchmarks.quantization", names, ["--device", device]): ...
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.zoo.models import ENTRIES, open_entry
from edgeopt.artifact import open_artifact
from edgeopt.compilation import compile_job
from edgeopt.data.evaluation import unseal
from edgeopt.fidelity import Fidelity
from edgeopt.harness import record_calls
from edgeopt.job import Job, PartSource, default_passes, make_steps, make_target
from edgeopt.passes.base import Options, Samples
from edgeopt.platform import load_platform
from edgeopt.session import Session
from edgeopt.steps import Store

DEVICE = "raspberry-pi-4"


def make_job(name: str, output: Path, device: str = DEVICE, target: str | None = "onnxruntime") -> Job:
    """Returns the job that compiles a model with its own data by the platform's own plan."""
    entry, platform = ENTRIES[name], load_platform(device, target)
    return Job(
        name=name,
        parts={part: PartSource(path) for part, path in entry.files().items()},
        platform=platform,
        target=make_target(platform),
        output=output,
        data=entry.spec(),
    )


def plan(options: Mapping[str, Any], step: str = "quantize") -> tuple[Options, ...]:
    """Returns the default plan with another step, or other options, in place of its quantization."""
    wanted = [(step, options) if name == "quantize" else (name, given) for name, given in default_passes()]
    return make_steps(wanted)


def measure(name: str, steps: tuple[Options, ...], device: str = DEVICE, script: str = "") -> dict[str, Any]:
    """Compiles a model with an empty store and compares it with the float model on the evaluation data.

    Args:
        name: The model's name in the zoo.
        steps: The passes.
        device: The device.
        script: A program that measures the artifact's file from outside, as ``SCRIPT NAME FILE``.

    Returns:
        The outcome as JSON data, with ``process`` (processor seconds and peak MB of this process),
        ``calls`` (see ``compare``) and ``outside`` (what the script printed).
    """
    with tempfile.TemporaryDirectory() as folder:
        job = replace(make_job(name, Path(folder) / name, device), steps=steps)
        outcome = compile_job(job, Store(Path(folder) / "store"))
        body: dict[str, Any] = outcome.to_json()
        body["process"] = process()
        body["calls"] = compare(name, open_artifact(outcome.path).open())
        body["outside"] = ""
        if script:
            command = [sys.executable, script, name, str(outcome.path / "model.onnx")]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            body["outside"] = (ran.stdout or ran.stderr).strip()
    return body


def process() -> dict[str, float]:
    """Processor seconds and peak memory in MB of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu": usage.ru_utime + usage.ru_stime, "mb": usage.ru_maxrss / 1024}


def compare(name: str, artifact: Mapping[str, Session]) -> dict[str, float | None]:
    """Returns signal-to-noise ratio and top-1 agreement over the float model's own calls."""
    entry = ENTRIES[name]
    originals = entry.sessions()
    data, _, harness = open_entry(entry, originals)
    evaluate = None if data.evaluate is None else unseal(data.evaluate)  # this script judges
    if evaluate is None:
        return {"fidelity": None, "agreement": None}
    calls: Mapping[str, Samples] = (
        record_calls(harness, originals, evaluate) if harness else {part: evaluate for part in originals}
    )
    found, same, count = Fidelity(), 0, 0
    for part, samples in calls.items():
        for feeds in samples.feeds(8):
            expected, actual = originals[part].run(feeds), artifact[part].run(feeds)
            found.add(expected, actual)
            if entry.metric == "top1":
                first = next(iter(expected))
                same += int((expected[first].argmax(-1) == actual[first].argmax(-1)).sum())
                count += len(expected[first])
    return {"fidelity": found.value, "agreement": same / count if count else None}


def each(module: str, names: Iterable[str], arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Runs a benchmark's module once per model, with one thread, and yields what the last line says.

    Models that are not in the zoo and processes that fail are printed as rows of a Markdown table instead.
    """
    for name in names:
        if name in ENTRIES and not all(path.is_file() for path in ENTRIES[name].files().values()):
            print(f"| {name} | not in the zoo |", flush=True)
            continue
        command = [sys.executable, "-m", module, "--one", name, *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if ran.returncode:
            print(f"| {name} | failed: {(ran.stderr.strip().splitlines() or ['?'])[-1]} |", flush=True)
            continue
        yield name, ran.stdout.splitlines()[-1]
