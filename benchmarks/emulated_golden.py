"""Golden vectors on this host and on every distinct emulated core; sets the tolerance of each precision.

``python -m benchmarks.emulated_golden [--rows FILE] [--table] [--write] [NAME]...`` compiles models in
every precision that each runtime has, and runs their golden vectors, whose expected outputs come from the
reference execution of the graph, on the host and on every pair of an emulated core and the processor that
its board shows, of all device profiles: 64-bit boards with onnxruntime and LiteRT, 32-bit ones with
tflite-runtime. It prints how far outputs lie from the expected ones, relative to the largest expected value
(the figure that ``golden.check`` judges), by runtime, precision and place, and the tolerance that this
implies: ``MARGIN`` times the worst, rounded up to a short number. ``--write`` sets these tolerances in
``runtimes/``.

The vectors of one artifact are few and the cores of one kind the same, so the margin covers what was not
seen: other models, and versions of a runtime whose kernels sum in another order.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.emulated_accuracy import CONVOLUTIONAL, MODELS, Combination, artifact
from edgeopt import golden
from edgeopt.artifact import open_artifact
from edgeopt.errors import EdgeoptError
from edgeopt.platform import load_device, load_platform, profile_names
from edgeopt.runners.emulator import Emulator
from edgeopt.runners.emulator.place import find_place
from edgeopt.session import Session

MARGIN = 2.0
PRECISIONS = {
    "onnxruntime": ("float32", "static-int8", "dynamic-int8", "float16", "weight-only"),
    "tflite": ("float32", "static-int8", "float16"),
}
PRODUCTS = ("agnews_text_transformer", "cct_vit_cifar10")
"""Models with matrix products: ranges per call and weights alone are for these."""

FLOOR = {"float32": 1e-4, "float16": 1e-3, "static-int8": 0.05, "dynamic-int8": 0.05}
"""Tolerances are not set below these: the bound that contract 4 sets for float files, the last bit of
float16, and six steps of an 8-bit output (6/127). Integer kernels that round otherwise are right all the
same, and models deeper than those tried here pass more of it on."""


def artifacts(names: tuple[str, ...], work: Path) -> Iterator[tuple[str, str, str, Path]]:
    """Model, precision, runtime and folder of everything that is to be checked."""
    fresh = set[Path]()
    for target, precisions in PRECISIONS.items():
        for precision in precisions:
            for model in names:
                if target == "tflite" and model not in CONVOLUTIONAL:
                    continue
                if precision in ("dynamic-int8", "weight-only") and model not in PRODUCTS:
                    continue
                cores = ("cortex-a72", "cortex-a76") if precision == "static-int8" else ("cortex-a72",)
                for core in cores[: 1 if target == "tflite" else None]:
                    try:
                        folder = artifact(Combination(model, precision, target, core), work, fresh)
                    except EdgeoptError as failure:
                        print(f"{model} {precision} {target}: {failure.message}", file=sys.stderr)
                        continue
                    yield model, precision, target, folder


def places() -> dict[str, str]:
    """A device for every distinct board: emulated core, processor shown, architecture."""
    found: dict[str, str] = {}
    for name in profile_names("devices"):
        device = load_device(name)
        if device.cpu.arch == "x86_64":
            continue
        if device.cpu.arch == "armv7" and not find_place().has("armv7"):
            continue
        runner = Emulator(f"emulator:{name}")
        label = f"{runner.core.arch} {runner.core.cpu} shown as {runner.core.shown}"
        found.setdefault(label, name)
    return found


def measure(label: str, device: str, made: list[tuple[str, str, str, Path]]) -> Iterator[dict[str, Any]]:
    """Checks all artifacts on one board, in one process."""
    with Emulator(f"emulator:{device}") as runner:
        for model, precision, target, folder in made:
            if runner.core.arch == "armv7" and target != "tflite":
                continue
            try:
                sessions = runner.open(folder)
                yield row(label, model, precision, target, folder, sessions)
            except EdgeoptError as failure:  # the process is gone, the next artifact gets a new one
                print(f"{label}: {folder.name}: {failure.message}", file=sys.stderr)
                continue
            for session in sessions.values():
                session.close()


def row(
    label: str, model: str, precision: str, target: str, folder: Path, sessions: dict[str, Session]
) -> dict[str, Any]:
    """How far the outputs of one artifact lie from its golden vectors in one place."""
    worst = 0.0
    for name, part in open_artifact(folder).parts.items():
        checked = golden.check(folder, part, sessions[name])
        assert checked is not None
        worst = max(worst, checked["deviation"])
    limit = load_platform("cortex-a72", target).rules.tolerance[precision].relative
    return {
        "where": label, "model": model, "precision": precision, "target": target, "folder": folder.name,
        "deviation": worst, "passed": worst <= limit,
    }  # fmt: skip


def implied(worst: float, precision: str) -> float:
    """``MARGIN`` times the worst, rounded up to a short number."""
    wanted = max(MARGIN * worst, FLOOR.get(precision, 0.0), 1e-6)
    power = 10.0 ** math.floor(math.log10(wanted))
    digits = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)
    return next(digit * power for digit in digits if digit * power >= wanted * (1 - 1e-9))


def table(rows: list[dict[str, Any]]) -> tuple[str, dict[tuple[str, str], tuple[float, float, str]]]:
    """The table, and per runtime and precision its tolerance, the worst deviation, and where it was seen."""
    lines = [
        "| runtime | precision | artifacts | host | worst 64-bit core | worst 32-bit core | passed "
        "| tolerance |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    found: dict[tuple[str, str], tuple[float, float, str]] = {}
    for target, precisions in PRECISIONS.items():
        for precision in precisions:
            own = [entry for entry in rows if (entry["target"], entry["precision"]) == (target, precision)]
            if not own:
                continue
            worst = max(own, key=lambda entry: entry["deviation"])
            tolerance = implied(worst["deviation"], precision)
            found[target, precision] = tolerance, worst["deviation"], f"{worst['model']} on {worst['where']}"
            figures = [_worst(own, kind) for kind in ("host", "aarch64", "armv7")]
            passed = sum(entry["deviation"] <= tolerance for entry in own)
            lines.append(
                f"| {target} | {precision} | {len({entry['folder'] for entry in own})} "
                f"| {' | '.join(figures)} | {passed} of {len(own)} | {tolerance:g} |"
            )
    return "\n".join(lines), found


def _worst(rows: list[dict[str, Any]], kind: str) -> str:
    values = [entry["deviation"] for entry in rows if entry["where"].startswith(kind)]
    return f"{max(values):.2g}" if values else ""


def write(found: dict[tuple[str, str], tuple[float, float, str]], boards: int) -> None:
    """Sets tolerances and where they come from in ``runtimes/``."""
    folder = Path(__file__).resolve().parents[1] / "runtimes"
    for (target, precision), (tolerance, worst, where) in found.items():
        path = folder / f"{target}.yaml"
        source = (
            f"python -m benchmarks.emulated_golden: {worst:.2g} at most on this host and {boards} emulated "
            f"boards ({where}), times {MARGIN:g}"
        )
        if tolerance == FLOOR.get(precision):
            source += f", and not below {tolerance:g}"
        text = re.sub(
            rf"^( +{precision}: )\{{relative: .*\}}$",
            rf'\g<1>{{relative: {tolerance:.1e}, source: "{source}"}}',
            path.read_text(encoding="utf-8"),
            flags=re.MULTILINE,
        )
        path.write_text(text, encoding="utf-8")


def main() -> None:
    """Checks everything that is not in the file of rows yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", choices=[*MODELS, []])
    parser.add_argument("--rows", type=Path, default=Path("build/emulated/golden.jsonl"))
    parser.add_argument(
        "--table", action="store_true", help="only print the table of the rows that are there"
    )
    parser.add_argument("--write", action="store_true", help="set the tolerances in runtimes/")
    options = parser.parse_args()
    options.rows.parent.mkdir(parents=True, exist_ok=True)
    lines = options.rows.read_text(encoding="utf-8").splitlines() if options.rows.is_file() else []
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    done = {(entry["where"], entry["folder"]) for entry in rows}
    made: list[tuple[str, str, str, Path]] = []
    boards: dict[str, str] = {}
    if not options.table:
        made = list(artifacts(tuple(options.names) or MODELS, options.rows.parent))
        boards = places()
    with options.rows.open("a", encoding="utf-8") as file:

        def keep(entry: dict[str, Any]) -> None:
            rows.append(entry)
            file.write(json.dumps(entry) + "\n")
            file.flush()

        for model, precision, target, folder in made:
            if ("host", folder.name) not in done:
                keep(row("host", model, precision, target, folder, open_artifact(folder).open()))
        for label, device in boards.items():
            missing = [entry for entry in made if (label, entry[3].name) not in done]
            if missing:
                for entry in measure(label, device, missing):
                    keep(entry)
            print(f"{label}: done", file=sys.stderr, flush=True)
    text, found = table(rows)
    where = sorted({entry["where"] for entry in rows} - {"host"})
    print("\n".join(["boards:", *(f"  {label}" for label in where), "", text]))
    if options.write:
        write(found, len(where))


if __name__ == "__main__":
    main()
