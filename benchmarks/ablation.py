"""What each step of the default int8 plan buys on each model: fidelity on validation and on evaluation data.

``EDGEOPT_ZOO=... python -m benchmarks.ablation [--device raspberry-pi-4] [--effort more] [NAME]...`` follows
the plan step by step, as the corridor does, and compares what each step leaves with the float original: on
the validation samples, which the steps see, and on evaluation inputs, which they do not. Prints a Markdown
table; the first row of a model is plain static int8 (min-max ranges, weights rounded to the nearest).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from itertools import islice

import onnx_ir as ir

from benchmarks.zoo.models import ENTRIES, open_entry
from edgeopt import passes
from edgeopt.data.evaluation import unseal
from edgeopt.graph.opset import raise_opset
from edgeopt.harness import record_calls
from edgeopt.load import load
from edgeopt.optimization import EXACT
from edgeopt.passes import Context, Facets, Pass, Plan
from edgeopt.passes._judge import Judge
from edgeopt.passes.base import Entry, Samples
from edgeopt.platform import load_platform

CALLS = 125
"""Calls of evaluation data at most, of up to eight samples."""

VALIDATION_CALLS = 12


def measure(name: str, device: str, effort: str) -> None:
    """Prints the rows of one model."""
    entry = ENTRIES[name]
    sessions = entry.sessions()
    data, _, harness = open_entry(entry, sessions)
    assert data.calibrate is not None and data.validate is not None and data.evaluate is not None
    evaluate = unseal(data.evaluate)  # this script judges
    parts: list[dict[str, Samples]] = []
    for samples in (data.calibrate, data.validate, evaluate):
        recorded = record_calls(harness, sessions, samples) if harness else dict.fromkeys(sessions, samples)
        parts.append(dict(recorded))
    for part, path in entry.files().items():
        original, _ = raise_opset(load(str(path)))
        rules = load_platform(device, "onnxruntime").rules
        facets = Facets(rules=rules, calibration=parts[0][part], validation=parts[1][part], teacher=original)
        judges = (
            Judge.of(original, islice(parts[1][part].feeds(8), VALIDATION_CALLS)),
            Judge.of(original, islice(parts[2][part].feeds(8), CALLS)),
        )
        shown = name if len(sessions) == 1 else f"{name} ({part})"
        model = original.clone()
        for step in EXACT:
            exact = passes.make(step)
            assert isinstance(exact, Pass)
            exact.apply(model, Context(verify="off"))
        plain = model.clone()
        _apply(passes.make("static-int8", {"observer": "min-max"}), plain, facets, judges, shown, "plain")
        plan = passes.make("quantize", {"effort": effort})
        assert isinstance(plan, Plan)
        ledger: list[Entry] = []
        while (following := plan.next(model, Context(facets, plan.reads), ledger)) is not None:
            change, seconds = _apply(following, model, facets, judges, shown, following.name)
            ledger.append(Entry(following, change, model, seconds))


def _apply(
    step: object, model: ir.Model, facets: Facets, judges: tuple[Judge, Judge], shown: str, title: str
) -> tuple[passes.Change, float]:
    assert isinstance(step, Pass)
    start = time.process_time()
    change = step.apply(model, Context(facets, step.reads))
    seconds = time.process_time() - start
    exact = step.keeps == "exact" and not change.details.get("fidelity")
    figures = [f"{judge.decibels(model):.1f}" if step.keeps != "exact" else "" for judge in judges]
    if not exact or change.rewrites:
        print(
            f"| {shown} | {title} | {figures[0]} | {figures[1]} | {seconds:.1f} | {change.summary} |",
            flush=True,
        )
    return change, seconds


def main() -> None:
    """Measures the models named, or all of them, each in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--device", default="raspberry-pi-4")
    parser.add_argument("--effort", default="default")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(options.names[0], options.device, options.effort)
        return
    print(
        "| model | step | validation dB | evaluation dB | CPU s | what |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for name in options.names or ENTRIES:
        if not all(path.is_file() for path in ENTRIES[name].files().values()):
            print(f"| {name} | not in the zoo | | | | |", flush=True)
            continue
        command = [sys.executable, "-m", "benchmarks.ablation", "--one", name]
        command += ["--device", options.device, "--effort", options.effort]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        ran = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, env=environment)
        if ran.returncode:
            print(
                f"| {name} | failed: {(ran.stderr.strip().splitlines() or ['?'])[-1]} | | | | |", flush=True
            )


if __name__ == "__main__":
    main()
