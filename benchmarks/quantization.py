"""What the default plan's int8 keeps of every model of the zoo, and what each of its steps bought.

``python -m benchmarks.quantization [--device raspberry-pi-4] [--effort more] [NAME]...``
prints two Markdown tables. The first has the metric on the evaluation data with its 95 % interval, the
fidelity to the float model there, top-1 agreement, size and processor seconds, beside the best recorded
peer (``benchmarks.beside_int8_peers`` runs peers in the same run). The second has,
for each step of the plan, the fidelity on the validation samples after it and its processor seconds.

The recorded peers were measured once on the same data and splits (onnxruntime 1.32, NNCF 3.4, AMD Quark
0.13, AIMET 2.42, ESP-PPQ 1.3.12, ModelOpt 0.47), each in the best of many settings picked by hand; the
figure is the signal-to-noise ratio in dB over the evaluation inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.zoo.models import ENTRIES, open_entry
from edgeopt import units
from edgeopt.artifact import open_artifact
from edgeopt.compilation import compile_job
from edgeopt.data.evaluation import unseal
from edgeopt.fidelity import Fidelity
from edgeopt.harness import record_calls
from edgeopt.job import Job, PartSource, default_passes, make_steps, make_target
from edgeopt.passes.base import Samples
from edgeopt.platform import load_platform
from edgeopt.session import Session
from edgeopt.steps import Store

PEERS: dict[str, tuple[str, float]] = {
    "kws_dscnn_mlperf_tiny": ("Quark CLE + AdaRound", 31.7),
    "kws_dscnn_rescaled": ("Quark CLE + AdaRound", 31.3),
    "resnet20_cifar10": ("Quark CLE + AdaQuant", 28.9),
    "mobilenetv3_cifar10": ("Quark CLE + AdaQuant", 25.7),
    "tiny_darknet_imagenet": ("Quark CLE + AdaQuant", 25.7),
    "yolo_fastestv2_rescaled": ("ESP-PPQ equalization + bias correction", 22.0),
    "dncnn_s_25": ("NNCF mixed", 43.8),
    "cct_vit_cifar10": ("Quark SmoothQuant .5 + AdaQuant, products", 39.1),
    "agnews_text_transformer": ("Quark SmoothQuant .5, products", 48.4),
    "minilm_l6_sts": ("Quark SmoothQuant .6, products", 21.6),
}
"""Per model the peer with the highest signal-to-noise ratio in the regime that the plan works in."""


def measure(name: str, device: str, effort: str) -> dict[str, Any]:
    """Compiles one model and compares its artifact with the float model on the evaluation data."""
    entry = ENTRIES[name]
    platform = load_platform(device, "onnxruntime")
    steps = [
        (step, {"effort": effort} if step == "quantize" else options) for step, options in default_passes()
    ]
    with tempfile.TemporaryDirectory() as folder:
        outcome = compile_job(
            Job(
                name=name,
                parts={part: PartSource(path) for part, path in entry.files().items()},
                platform=platform,
                target=make_target(platform),
                output=Path(folder) / name,
                data=entry.spec(),
                steps=tuple(make_steps(steps)),
            ),
            Store(Path(folder) / "store"),
        )
        usage = resource.getrusage(resource.RUSAGE_SELF)
        body = outcome.to_json()
        body["process"] = {"cpu": usage.ru_utime + usage.ru_stime, "mb": usage.ru_maxrss / 1024}
        artifact = open_artifact(outcome.path).open()
        body["calls"] = compare(name, artifact)
    return body


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


def row(body: dict[str, Any]) -> str:
    """One line of the first table."""
    name, after = body["name"], body["after"]
    metric = next((key for key in body["before"] if key in after and key in _metrics(body)), None)
    cells = [name]
    for side in ("before", "after"):
        figure = body[side][metric] if metric else None
        cells.append("" if figure is None else f"{figure['value']:.4g}{_interval(figure)} {figure['unit']}")
    calls = body["calls"]
    cells.append("" if calls["fidelity"] is None else f"{calls['fidelity']:.1f}")
    cells.append("" if calls["agreement"] is None else f"{calls['agreement']:.2%}")
    best = PEERS.get(name)
    cells.append("" if best is None else f"{best[1]} ({best[0]})")
    cells += [units.format_size(after["size"]["value"]), f"{body['process']['cpu']:.0f}"]
    cells.append(f"{body['process']['mb']:.0f}")
    return "| " + " | ".join(cells) + " |"


def _metrics(body: dict[str, Any]) -> list[str]:
    known = ("size", "latency", "peak_memory", "fidelity", "accuracy_drop")
    return [key for key in body["before"] if key not in known]


def _interval(figure: dict[str, Any]) -> str:
    return "" if figure["interval"] is None else " [{:.4g}, {:.4g}]".format(*figure["interval"])


def steps_of(body: dict[str, Any]) -> list[str]:
    """The lines of the second table: every step of the quantization."""
    lines = []
    for step in body["ledger"]:
        fidelity = step["figures"].get("fidelity")
        if fidelity is None and step["pass"] not in ("smooth-activations", "equalize-channels"):
            continue
        shown = "exact" if fidelity is None else f"{fidelity['value']:.1f}"
        part = "" if step["part"] == "model" else f" ({step['part']})"
        lines.append(
            f"| {body['name']}{part} | {step['pass']} | {shown} | {step['cpu_seconds']:.1f} "
            f"| {step['summary']} |"
        )
    return lines


def main() -> None:
    """Measures the models named, or all of them, each in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--device", default="raspberry-pi-4")
    parser.add_argument("--effort", default="default")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        body = measure(options.one, options.device, options.effort)
        print(json.dumps(body, default=str))
        return
    header = "| model | float | int8 [95 %] | fidelity dB | agreement | best peer dB |"
    header += " size | CPU s | MB |"
    print(header + "\n|" + "---|" * (header.count("|") - 1))
    bought: list[str] = []
    for name in options.names or ENTRIES:
        if not all(path.is_file() for path in ENTRIES[name].files().values()):
            print(f"| {name} | not in the zoo |", flush=True)
            continue
        command = [sys.executable, "-m", "benchmarks.quantization", "--one", name]
        command += ["--device", options.device, "--effort", options.effort]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if ran.returncode:
            print(f"| {name} | failed: {(ran.stderr.strip().splitlines() or ['?'])[-1]} |", flush=True)
            continue
        body = json.loads(ran.stdout.splitlines()[-1])
        bought += steps_of(body)
        print(row(body), flush=True)
    print("\n| model | step | fidelity on validation, dB | CPU s | what |\n|---|---|---|---|---|")
    print("\n".join(bought))


if __name__ == "__main__":
    main()
