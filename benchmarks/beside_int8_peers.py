"""Our default int8 beside the peers', on the same data in the same run.

``EDGEOPT_ZOO=... python -m benchmarks.beside_int8_peers [--nncf PYTHON] [--quark PYTHON] [--settings A,B]
[--device raspberry-pi-4] [NAME]...`` compiles every model named with our default plan and quantizes it with
each setting of ``peer_int8.py`` whose environment is given (onnxruntime needs none of its own). All read the
same first 256 calibration samples at most. Per row: fidelity to the float model over the evaluation inputs,
top-1 agreement, the metric, the paired 95 % interval of ours minus theirs, bytes, processor seconds of the
whole process, and host latency over the float model's (one thread, turn by turn, optimizations on).

Models with several parts are left out: no peer quantizes a harness.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.zoo.compiling import DEVICE, compare, make_job
from benchmarks.zoo.models import ENTRIES, open_entry
from edgeopt import benchmark
from edgeopt.artifact import open_artifact
from edgeopt.compilation import compile_job
from edgeopt.data import SeededSamples
from edgeopt.evaluate import judge
from edgeopt.harness import record_calls
from edgeopt.runners.host import OnnxSession
from edgeopt.session import Session
from edgeopt.steps import Store

SETTINGS = (
    "onnxruntime",
    "onnxruntime-products",
    "nncf",
    "nncf-transformer",
    "quark-cle",
    "quark-adaround",
    "quark-adaquant",
    "quark-smooth",
)

SAMPLES = 256

SHAPES = {
    "dncnn_s_25": {"noisy": [1, 1, 256, 256]},
    "minilm_l6_sts": {"input_ids": [1, 64], "attention_mask": [1, 64]},
}


def calibration(name: str, path: Path) -> None:
    """Writes the calibration calls of a model into an archive."""
    entry = ENTRIES[name]
    sessions = entry.sessions()
    data, _, harness = open_entry(entry, sessions)
    assert data.calibrate is not None
    part = next(iter(sessions))
    samples = record_calls(harness, sessions, data.calibrate)[part] if harness else data.calibrate
    calls = {
        f"{key}/{index}": array
        for index, feeds in enumerate(islice(samples.feeds(), SAMPLES))
        for key, array in feeds.items()
    }
    np.savez(path, **calls)  # type: ignore[arg-type, unused-ignore]


def ours(name: str, device: str, folder: Path) -> tuple[dict[str, Session], dict[str, Any]]:
    """Compiles with the default plan, in this process, with an empty store."""
    start = sum(os.times()[:4])
    outcome = compile_job(make_job(name, folder / name, device), Store(folder / "store"))
    spent = sum(os.times()[:4]) - start
    body = outcome.to_json()
    quantizing = sum(step["cpu_seconds"] for step in body["ledger"])
    return open_artifact(outcome.path).open(), {
        "setting": "edgeopt",
        "cpu": quantizing,
        "whole": spent,
        "bytes": int(body["after"]["size"]["value"]),
    }


def theirs(name: str, setting: str, python: str, folder: Path) -> tuple[dict[str, Session], dict[str, Any]]:
    """Quantizes with a peer in its own environment.

    Raises:
        subprocess.CalledProcessError: The peer fails.
    """
    entry = ENTRIES[name]
    part, source = next(iter(entry.files().items()))
    out = folder / f"{setting}.onnx"
    script = Path(__file__).with_name("peer_int8.py")
    command = [python, str(script), setting, str(source), str(folder / "calibration.npz"), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment, cwd=folder, timeout=1800
    )
    row = json.loads(ran.stdout.strip().splitlines()[-1])
    return {part: OnnxSession(out)}, {**row, "bytes": out.stat().st_size}


def measure(name: str, device: str, peers: dict[str, str]) -> list[dict[str, Any]]:
    """Returns one row per setting, ours first."""
    entry = ENTRIES[name]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        calibration(name, folder / "calibration.npz")
        mine, row = ours(name, device, folder)
        candidates = {"edgeopt": mine}
        rows.append(row | compare(name, mine))
        for setting, python in peers.items():
            try:
                candidates[setting], row = theirs(name, setting, python, folder)
            except subprocess.CalledProcessError as failure:
                reason = (failure.stderr.strip().splitlines() or ["?"])[-1]
                rows.append({"setting": setting, "failed": reason[:100]})
                continue
            data, metric, harness = open_entry(entry, entry.sessions())
            if metric is not None and data.evaluate is not None:
                found = judge(candidates[setting], mine, data.evaluate, metric, harness=harness)
                row["metric"], rows[0]["metric"] = found.original, found.artifact
                row["drop"] = found.drop
            rows.append(row | compare(name, candidates[setting]))
        original = next(iter(entry.sessions().values()))
        feeds = next(SeededSamples(original.inputs, 1, 0, SHAPES.get(name, {})).feeds())
        calls = {"float": original, **{key: next(iter(one.values())) for key, one in candidates.items()}}
        timed = benchmark.measure(
            {key: (lambda session=one: session.run(feeds)) for key, one in calls.items()},  # type: ignore[misc]
            "float",
            seconds=3,
        )
        for row in rows:
            if row["setting"] in timed.comparisons:
                row["ratio"] = timed.comparisons[row["setting"]].ratio
    return rows


def shown(name: str, row: dict[str, Any]) -> str:
    """One line of the table."""
    if "failed" in row:
        return f"| {name} | {row['setting']} | fails: {row['failed']} |"
    cells = [name, row["setting"], f"{row['fidelity']:.1f}"]
    cells.append("" if row["agreement"] is None else f"{row['agreement']:.2%}")
    metric, drop = row.get("metric"), row.get("drop")
    cells.append("" if metric is None else f"{metric.value:.4g} {metric.unit}")
    if drop is None or drop.interval is None:
        cells.append("")
    else:  # what theirs loses to ours, turned round
        cells.append(f"{-drop.value:+.2g} [{-drop.interval[1]:+.2g}, {-drop.interval[0]:+.2g}]")
    cells += [str(row["bytes"]), f"{row['cpu']:.1f}", f"{row['ratio']:.2f}" if "ratio" in row else ""]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measures the models named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+")
    parser.add_argument("--device", default=DEVICE)
    parser.add_argument("--nncf", default="")
    parser.add_argument("--quark", default="")
    parser.add_argument("--settings", default="onnxruntime,onnxruntime-products,nncf,quark-cle")
    options = parser.parse_args()
    python = {"onnxruntime": sys.executable, "nncf": options.nncf, "quark": options.quark}
    wanted = options.settings.split(",")
    for setting in wanted:
        if setting not in SETTINGS:
            parser.error(f"no setting {setting!r}; there are {', '.join(SETTINGS)}")
    peers = {setting: place for setting in wanted if (place := python[setting.partition("-")[0]])}
    print("| model | who | fidelity dB | agreement | metric | ours minus theirs | bytes | CPU s | latency |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in options.names:
        for row in measure(name, options.device, peers):
            print(shown(name, row), flush=True)


if __name__ == "__main__":
    main()
