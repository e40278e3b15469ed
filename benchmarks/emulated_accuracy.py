"""Accuracy and instruction counts of real models on emulated cores, beside this host.

``python -m benchmarks.emulated_accuracy [--samples 200] [--rows FILE] [--table] [NAME]...`` compiles each
model in float and in int8, runs each artifact on the emulated Cortex-A72, A76 and A53 and on the host on the
same evaluation samples, and counts the instructions of one inference in two processes of their own. It
appends one line of JSON to FILE as soon as a combination is done and skips those that are in it with the very
artifact that edgeopt makes now, so it can be stopped; then it prints the tables. The emulator must be set up
(``edgeopt emulator setup``).

Every difference is between the same artifact here and there: the quantization has no part in it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.zoo.compiling import make_job
from benchmarks.zoo.models import ENTRIES, open_entry
from edgeopt.artifact import open_artifact
from edgeopt.compilation import compile_job
from edgeopt.data import SeededSamples
from edgeopt.errors import EdgeoptError
from edgeopt.evaluate import judge
from edgeopt.job import make_steps, structure_passes
from edgeopt.runners.emulator import Emulator
from edgeopt.session import Session

CONVOLUTIONAL = ("kws_dscnn_mlperf_tiny", "kws_dscnn_rescaled", "resnet20_cifar10", "mobilenetv3_cifar10")
MODELS = (*CONVOLUTIONAL, "agnews_text_transformer", "cct_vit_cifar10")
CORES = ("cortex-a72", "cortex-a76", "cortex-a53")
"""The A72 and A53 differ in LiteRT's kernels for the in-order core, the A76 has dot products."""
PRECISIONS = ("static-int8", "float32")
CALIBRATION = 64
PRODUCTS = ("fmla", "mla", "dot")
"""Classes of instructions that tell kernels apart."""
BEFORE: dict[str, list[tuple[str, dict[str, Any]]]] = {"kws_dscnn_rescaled": [("equalize-channels", {})]}
"""Passes before quantization: that model's channels differ so much in scale that plain int8 guesses."""


@dataclass(frozen=True)
class Combination:
    """One artifact on one core."""

    model: str
    precision: str
    target: str
    core: str

    @property
    def key(self) -> str:
        """Its name in the file of rows."""
        return "/".join((self.model, self.precision, self.target, self.core))


def combinations(names: tuple[str, ...]) -> Iterator[Combination]:
    """Everything to be run, what tells the most first: one core, then integers, then floats on the others."""
    first, *others = CORES
    for precisions, cores in ((PRECISIONS, [first]), (PRECISIONS[:1], others), (PRECISIONS[1:], others)):
        for model in names:
            for core in cores:
                for precision in precisions:
                    for target in ("onnxruntime", "tflite"):
                        if target == "onnxruntime" or model in CONVOLUTIONAL:
                            yield Combination(model, precision, target, core)


class Beside(Session):
    """Remembers the outputs of the session before it, or compares with them."""

    def __init__(self, session: Session, first: Beside | None = None) -> None:
        self.inputs, self.outputs = session.inputs, session.outputs
        self.runtime = getattr(session, "runtime", "")
        self._session, self._first = session, first
        self.last: Mapping[str, np.ndarray] = {}
        self.worst, self.equal, self.values, self.seconds = 0.0, 0, 0, 0.0

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs a call and takes note of how far it lies from the other session's."""
        started = time.monotonic()
        found = self._session.run(feeds)
        self.seconds += time.monotonic() - started
        self.last = found
        if self._first is not None:
            for name, expected in self._first.last.items():
                scale = max(float(np.abs(expected).max()), 1e-30)
                self.worst = max(self.worst, float(np.abs(found[name] - expected).max()) / scale)
                self.equal += int((found[name] == expected).sum())
                self.values += expected.size
        return found


def artifact(one: Combination, work: Path, fresh: set[Path]) -> Path:
    """Compiles a combination's artifact, once for all cores with equal rules.

    Args:
        one: The combination.
        work: The folder of artifacts.
        fresh: Those that this process has compiled, added to.
    """
    rules = "dotprod" if one.target == "onnxruntime" and one.core == "cortex-a76" else "plain"
    output = work / f"{one.model}-{one.precision}-{one.target}-{rules}"
    if output in fresh:
        return output
    fresh.add(output)
    steps = structure_passes()
    if one.precision != "float32":
        options = {"samples": CALIBRATION, "observer": "min-max"} if one.precision == "static-int8" else {}
        steps += [*BEFORE.get(one.model, []), (one.precision, options)]
    job = make_job(one.model, output, one.core, one.target)
    compile_job(replace(job, steps=make_steps(steps), limit=16, force=True))
    return output


def measure(one: Combination, folder: Path, samples: int) -> dict[str, Any]:
    """One row: accuracy here and there, how far the outputs differ, and the instructions of two processes."""
    entry = ENTRIES[one.model]
    here = open_artifact(folder).open()
    started = time.monotonic()
    with Emulator(f"emulator:{one.core}") as runner:
        there = runner.open(folder)
        data, metric, harness = open_entry(entry, entry.sessions())
        assert data.evaluate is not None
        host = {part: Beside(session) for part, session in here.items()}
        board = {part: Beside(session, host[part]) for part, session in there.items()}
        found = judge(
            host, board, data.evaluate, metric, harness=harness, limit=samples, batch=1,
            where=runner.where, how=runner.how, there=runner.conditions(),
        )  # fmt: skip
    row: dict[str, Any] = {
        "key": one.key,
        "files": files_of(folder),
        "samples": samples,
        "metric": found.artifact.quantity if found.artifact else "",
        "host": found.original.value if found.original else None,
        "emulated": found.artifact.value if found.artifact else None,
        "drop": found.drop.value if found.drop else None,
        "fidelity_db": found.fidelity.value if found.fidelity else None,
        "agreement": found.agreement.value if found.agreement else None,
        "worst": max(session.worst for session in board.values()),
        "equal": sum(session.equal for session in board.values())
        / sum(session.values for session in board.values()),
        "runtime": next(iter(board.values())).runtime,
        "seconds": sum(session.seconds for session in board.values()),
    }
    counted = [count(one, folder) for _ in range(2)]
    row["counts"] = [
        {"total": counts.total, "by_class": {key: value for key, value in counts.classes.items() if value}}
        for counts in counted
    ]
    row["wall"] = time.monotonic() - started
    return row


def files_of(folder: Path) -> str:
    """A digest of an artifact's model files, without what names versions of edgeopt."""
    files = open_artifact(folder).manifest["files"]
    models = {file["path"]: file["sha256"] for file in files if file["role"] == "model"}
    return sha256(json.dumps(models, sort_keys=True).encode()).hexdigest()


def count(one: Combination, folder: Path) -> Any:
    """Counts one inference in a process of its own."""
    with Emulator(f"emulator:{one.core}", counting=True, caches=False) as runner:
        session = next(iter(runner.open(folder).values()))
        return runner.count(session, next(SeededSamples(session.inputs, 1).feeds()))


def tables(rows: list[dict[str, Any]]) -> str:
    """The tables of differences and of counts: one line for every artifact, one column for every core."""
    cores = " | ".join(core.removeprefix("cortex-").upper() for core in CORES)
    held = {row["key"]: row for row in rows}
    artifacts = dict.fromkeys(key.rpartition("/")[0] for key in held)
    heads = ("model | precision | runtime | metric here", "model | precision | runtime")
    marks = ("---|---|---|--:", "---|---|---")
    differences, totals = (
        [f"| {head} | {cores} |", f"|{mark}|{'--:|' * len(CORES)}"]
        for head, mark in zip(heads, marks, strict=True)
    )
    for name in sorted(artifacts, key=lambda name: name.split("/")[::-1]):
        model, precision, target = name.split("/")
        found = [held.get(f"{name}/{core}") for core in CORES]
        metrics = {f"{row['host']:.1f}" for row in found if row is not None}
        line = f"| {model} | {precision} | {target} |"
        cells = " | ".join("" if row is None else _difference(row) for row in found)
        differences.append(f"{line} {', '.join(sorted(metrics))} | {cells} |")
        cells = " | ".join("" if row is None else _counted(row) for row in found)
        totals.append(f"{line} {cells} |")
    return "\n".join(
        [
            "Points of the metric lost there; the worst difference over the largest output; equal outputs.",
            "",
            *differences,
            "",
            "Millions of instructions; how far a second process's count lies off; millions of products.",
            "",
            *totals,
        ]
    )


def _difference(row: Mapping[str, Any]) -> str:
    """What one cell says of accuracy."""
    worst = f"{row['worst']:.0e}".replace("e-0", "e-") if row["worst"] else "0"
    agreement = row["agreement"]
    other = "" if agreement is None or agreement == 100 else f", {100 - agreement:.1f} % of classes differ"
    return f"{row['drop']:g}; {worst}; {100 * row['equal']:.0f} %{other}"


def _counted(row: Mapping[str, Any]) -> str:
    """What one cell says of instructions."""
    first, second = (counts["total"] for counts in row["counts"])
    by_class = row["counts"][0]["by_class"]
    products = [f"{by_class[name] / 1e6:.2f} {name}" for name in PRODUCTS if by_class.get(name, 0) > 1000]
    return f"{first / 1e6:.2f}; {100 * abs(second / first - 1):.2g} %; {', '.join(products)}"


def main() -> None:
    """Runs what is not in the file of rows yet, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", choices=[*MODELS, []])
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--rows", type=Path, default=Path("build/emulated/rows.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the tables of the rows that are there")
    options = parser.parse_args()
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    rows, fresh = _read(options.rows), set[Path]()
    for one in combinations(tuple(options.names) or MODELS) if not options.table else ():
        try:
            folder = artifact(one, options.rows.parent, fresh)
            wanted = one.key, files_of(folder)
            if any(
                (row["key"], row["files"]) == wanted and row["samples"] >= options.samples for row in rows
            ):
                continue
            row = measure(one, folder, options.samples)
        except EdgeoptError as failure:
            print(f"{one.key}: {failure.message}", file=sys.stderr, flush=True)
            continue
        rows = [*(kept for kept in rows if kept["key"] != one.key), row]
        with options.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{one.key}: {row['wall']:.0f} s", file=sys.stderr, flush=True)
    print(tables(rows))


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; of those with one key, the last."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return list({row["key"]: row for row in rows}.values())


if __name__ == "__main__":
    main()
