"""Our default int8 beside the peers', on the same data in the same run.

``EDGEOPT_ZOO=... python -m benchmarks.beside_int8_peers [NAME]... [--nncf PYTHON] [--quark PYTHON]
[--ppq PYTHON] [--aimet PYTHON] [--settings best|A,B] [--keep FOLDER] [--device raspberry-pi-4]`` compiles
every model named (all by default) with our default plan and quantizes it with settings of ``peer_int8.py``
whose environment is given (onnxruntime needs none of its own): those that are best on that model, or those
named. All read the same first 256 calibration samples at most. ``--keep`` keeps the peers' files with what
they took, and takes them from there when model, calibration and setting are the same, so that a long training
need not run again when only our side changed.

Per row: the regime (``integer_products``) with the products in integers and the product outputs stored in 8
bits; fidelity to the float model over the evaluation inputs; top-1 agreement and the metric, each with the
paired 95 % interval of ours minus theirs; bytes; processor seconds of quantizing; and host latency over the
float model's (one thread, turn by turn, optimizations on). The last column says what is asked of us against
that peer and does not hold:

- fidelity at least 1 dB above that of a peer of the same regime;
- neither interval wholly below zero;
- a file not larger;
- a latency not larger: the peer is not faster beyond the noise of the comparison;
- at most the peer's processor seconds or a minute, whichever is more.

Models with several parts are left out: no peer quantizes a harness.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.integer_products import Regime, regime
from benchmarks.peer_files import calibration, theirs
from benchmarks.peer_int8 import SETTINGS
from benchmarks.zoo.compiling import DEVICE, make_job
from benchmarks.zoo.models import ENTRIES, open_entry
from edgeopt import benchmark, intervals
from edgeopt.artifact import open_artifact
from edgeopt.compilation import compile_job
from edgeopt.data import SeededSamples
from edgeopt.data.evaluation import unseal
from edgeopt.data.samples import Call
from edgeopt.errors import EdgeoptError
from edgeopt.evidence import Evidence
from edgeopt.fidelity import Fidelity
from edgeopt.harness import record_calls
from edgeopt.judgement import drop_evidence, metric_evidence
from edgeopt.runners.host import OnnxSession
from edgeopt.session import Session
from edgeopt.steps import Store

BEST = {
    "kws_dscnn_rescaled": ("quark-adaround", "quark-cle", "aimet-cle"),
    "kws_dscnn_mlperf_tiny": ("quark-adaround", "onnxruntime-products"),
    "resnet20_cifar10": ("quark-adaquant", "onnxruntime-products"),
    "resnet56_cifar10": ("quark-cle", "onnxruntime-products"),
    "mobilenetv3_cifar10": ("quark-adaquant-b4-i200", "onnxruntime-products"),
    "cct_vit_cifar10": ("quark-smooth-adaquant", "onnxruntime-products", "aimet"),
    "agnews_text_transformer": ("quark-smooth", "onnxruntime-products", "nncf"),
    "tiny_darknet_imagenet": ("quark-adaquant-b2-i300", "quark-cle", "onnxruntime-products"),
    "yolo_fastestv2_coco": ("quark-cle", "onnxruntime-products"),
    "yolo_fastestv2_rescaled": ("ppq-equalize-bias", "aimet-cle", "quark-cle"),
    "dncnn_s_25": ("nncf", "onnxruntime"),
    "minilm_l6_sts": ("quark-smooth-60", "nncf-transformer", "onnxruntime-products"),
}
"""The settings with the highest fidelity on a model, and the cheapest of them that come near."""

MARGIN = 1.0
"""The decibels that are asked for."""

MINUTE = 60.0

SHAPES = {
    "dncnn_s_25": {"noisy": [1, 1, 256, 256]},
    "minilm_l6_sts": {"input_ids": [1, 64], "attention_mask": [1, 64]},
}


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
        "regime": regime(outcome.path / "model.onnx"),
    }


@dataclass
class Seen:
    """What one candidate did on the evaluation data.

    Attributes:
        samples: How many there were.
        same: Per sample, whether it names the float model's class; empty for models without classes.
        records: Per sample, what the metric keeps.
        failed: Why it stopped, or nothing.
    """

    fidelity: Fidelity = field(default_factory=Fidelity)
    samples: int = 0
    same: list[bool] = field(default_factory=list)
    records: list[Any] = field(default_factory=list)
    failed: str = ""


def look(name: str, candidates: Mapping[str, dict[str, Session]], keep: Path) -> dict[str, Seen]:
    """Runs the float model and every candidate over the evaluation data, once.

    What was seen of a peer's file is kept beside it, for the same file and data.
    """
    entry = ENTRIES[name]
    originals = entry.sessions()
    data, metric, harness = open_entry(entry, originals)
    assert data.evaluate is not None
    samples = unseal(data.evaluate)  # this script judges
    part, original = next(iter(originals.items()))
    seen, places, digests = {}, {}, {}
    for who in candidates:
        seen[who] = Seen()
        if who == "edgeopt":
            continue
        places[who] = keep / f"{name}.{who}.seen"
        content = (keep / f"{name}.{who}.onnx").read_bytes() + samples.digest.encode()
        digests[who] = hashlib.sha256(content).hexdigest()
        if places[who].is_file():
            digest, found = pickle.loads(places[who].read_bytes())  # written below
            if digest == digests[who]:
                seen[who] = found
    new = {who: found for who, found in seen.items() if not found.samples}
    if harness is None:
        calls = samples.calls(8)
    else:
        feeds = record_calls(harness, originals, samples)[part].feeds(8)
        calls = (Call(one, (), False) for one in feeds)
    for call in calls:
        expected = original.run(call.feeds)
        for who, found in new.items():
            if found.failed:
                continue
            try:
                actual = candidates[who][part].run(call.feeds)
            except EdgeoptError as error:
                found.failed = f"cannot be run: {error}"[:100]
                continue
            found.fidelity.add(expected, actual)
            found.samples += len(call.samples) or 1
            if entry.metric == "top1":
                first = next(iter(expected))
                found.same += list(expected[first].argmax(-1).ravel() == actual[first].argmax(-1).ravel())
            if metric is not None:
                for position, sample in enumerate(call.samples):
                    found.records.append(metric.record(one_of(actual, call, position), sample))
    if metric is not None and harness is not None:
        for who, found in new.items():
            ran = harness.run(candidates[who], samples)
            found.records = [
                metric.record(outputs, item) for outputs, item in zip(ran, samples.items(), strict=True)
            ]
    for who, place in places.items():
        place.write_bytes(pickle.dumps((digests[who], seen[who])))
    return seen


def one_of(outputs: Mapping[str, Any], call: Call, position: int) -> dict[str, Any]:
    """One sample's outputs out of a call's."""
    return {key: value[position] if call.joined else value for key, value in outputs.items()}


def agreement(mine: Sequence[bool], theirs: Sequence[bool]) -> tuple[float, float, float] | None:
    """Ours minus theirs in percentage points, with its paired 95 % interval."""
    if not mine:
        return None
    first, second = np.asarray(mine, bool), np.asarray(theirs, bool)
    only = int((first & ~second).sum()), int((second & ~first).sum())
    lower, upper = intervals.paired_proportions(*only, len(first))
    return 100 * (only[0] - only[1]) / len(first), 100 * lower, 100 * upper


def timed(name: str, candidates: Mapping[str, dict[str, Session]]) -> benchmark.Result:
    """Times everything against ours."""
    original = next(iter(ENTRIES[name].sessions().values()))
    feeds = next(SeededSamples(original.inputs, 1, 0, SHAPES.get(name, {})).feeds())
    calls = {"float": original, **{key: next(iter(one.values())) for key, one in candidates.items()}}
    return benchmark.measure(
        {key: (lambda session=one: session.run(feeds)) for key, one in calls.items()},  # type: ignore[misc]
        "edgeopt",
        seconds=3,
    )


def measure(name: str, device: str, peers: Mapping[str, str], keep: Path) -> list[dict[str, Any]]:
    """Returns one row per setting, ours first."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        calibration(name, folder / "calibration.npz")
        mine, row = ours(name, device, folder)
        candidates, rows = {"edgeopt": mine}, [row]
        for setting, python in peers.items():
            file, row = theirs(name, setting, python, folder / "calibration.npz", keep)
            rows.append(row)
            if "failed" in row:
                continue
            try:
                candidates[setting] = {next(iter(mine)): OnnxSession(file)}
                row["regime"] = regime(file)
            except EdgeoptError as error:
                row["failed"] = f"cannot be opened: {error}"[:100]
        judged(name, rows, look(name, candidates, keep))
        left = {row["setting"] for row in rows if "failed" not in row}
        result = timed(name, {who: one for who, one in candidates.items() if who in left})
        for row in rows:
            if row["setting"] in left:
                add_latency(row, result)
                row["misses"] = [] if row["setting"] == "edgeopt" else misses(rows[0], row)
    return rows


def judged(name: str, rows: Sequence[dict[str, Any]], seen: Mapping[str, Seen]) -> None:
    """Adds fidelity, agreement and metric to the rows."""
    entry = ENTRIES[name]
    _, metric, _ = open_entry(entry, entry.sessions())
    mine = seen["edgeopt"]
    for row in rows:
        found = seen.get(row["setting"])
        if found is None:
            continue
        if found.failed:
            row["failed"] = found.failed
            continue
        row["fidelity"] = found.fidelity.value
        row["agreement"] = float(np.mean(found.same)) if found.same else None
        row["agreement_gain"] = None if found is mine else agreement(mine.same, found.same)
        row["metric"] = row["gain"] = None
        if metric is None:
            continue
        stamp = Evidence(quantity="", value=0.0, unit="", how="measured", where="host", n=len(found.records))
        row["metric"] = metric_evidence(metric, found.records, stamp, 0)
        if found is not mine:  # what theirs loses to ours, turned round
            drop = drop_evidence(metric, found.records, mine.records, stamp, 0)
            assert drop.interval is not None
            row["gain"] = -drop.value, -drop.interval[1], -drop.interval[0]


def add_latency(row: dict[str, Any], result: benchmark.Result) -> None:
    """Adds the latency over the float model's, and beside ours."""
    original = result.comparisons["float"].ratio
    if row["setting"] == "edgeopt":
        row["latency"] = 1 / original
        return
    found = result.comparisons[row["setting"]]
    row["latency"], row["faster"] = found.ratio / original, found.verdict == "faster"
    row["beside"] = 1 / found.ratio


def misses(mine: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """What is asked of us against a peer and does not hold, in words."""
    found = []
    above = mine["fidelity"] - row["fidelity"]
    if mine["regime"].name == row["regime"].name and above < MARGIN:
        found.append(f"fidelity {above:+.1f} dB")
    if row["agreement_gain"] is not None and row["agreement_gain"][2] < 0:
        found.append(f"agreement {row['agreement_gain'][0]:+.2f} pp")
    if row["gain"] is not None and row["gain"][2] < 0:
        found.append(f"metric {row['gain'][0]:+.3g}")
    if mine["bytes"] > row["bytes"]:
        found.append(f"size x{mine['bytes'] / row['bytes']:.3f}")
    if row["faster"]:
        found.append(f"latency x{row['beside']:.2f}")
    if mine["cpu"] > max(row["cpu"], MINUTE):
        found.append(f"CPU {mine['cpu']:.0f} s")
    return found


def interval(found: tuple[float, float, float] | None) -> str:
    """A difference with its interval."""
    return "" if found is None else f"{found[0]:+.2g} [{found[1]:+.2g}, {found[2]:+.2g}]"


def shown(name: str, row: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    """One line of the table."""
    if "failed" in row:
        return f"| {name} | {row['setting']} | fails: {row['failed']} |"
    how: Regime = row["regime"]
    counts = f"{how.integer}/{how.products}, {how.stored}/{how.outputs}"
    cells = [name, row["setting"], f"{how.name} ({counts})", f"{row['fidelity']:.1f}"]
    cells.append("" if row["agreement"] is None else f"{row['agreement']:.2%}")
    cells.append(interval(row["agreement_gain"]))
    metric = row["metric"]
    cells.append("" if metric is None else f"{metric.value:.4g} {metric.unit}")
    cells += [interval(row["gain"]), str(row["bytes"]), f"{row['cpu']:.1f}", f"{row['latency']:.2f}"]
    if row["setting"] == "edgeopt":
        words = ""
    else:
        words = "misses: " + ", ".join(row["misses"]) if row["misses"] else "all hold"
        if how.name != mine["regime"].name:
            words += " (fidelity not asked: other regime)"
    return "| " + " | ".join([*cells, words]) + " |"


HEADER = (
    "model",
    "who",
    "regime (integer products, 8-bit outputs)",
    "fidelity dB",
    "agreement",
    "ours minus theirs, pp",
    "metric",
    "ours minus theirs",
    "bytes",
    "CPU s",
    "latency",
    "what holds",
)


def main() -> None:
    """Measures the models named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(BEST))
    parser.add_argument("--device", default=DEVICE)
    for peer in ("nncf", "quark", "ppq", "aimet"):
        parser.add_argument(f"--{peer}", default="", help="the interpreter of its environment")
    parser.add_argument("--settings", default="best")
    parser.add_argument("--keep", type=Path, help="the folder with the peers' files")
    options = parser.parse_args()
    for setting in options.settings.split(","):
        if setting not in (*SETTINGS, "best"):
            parser.error(f"no setting {setting!r}; there are best, {', '.join(SETTINGS)}")
    print("| " + " | ".join(HEADER) + " |")
    print("|" + "---|" * len(HEADER), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        keep: Path = options.keep or Path(scratch)
        keep.mkdir(parents=True, exist_ok=True)
        for name in options.names:
            wanted = BEST[name] if options.settings == "best" else options.settings.split(",")
            peers = {}
            for setting in wanted:
                family = setting.partition("-")[0]
                place = sys.executable if family == "onnxruntime" else getattr(options, family)
                if place:
                    peers[setting] = place
            rows = measure(name, options.device, peers, keep)
            for row in rows:
                print(shown(name, row, rows[0]), flush=True)


if __name__ == "__main__":
    main()
