"""``edgeopt bench``: latency and memory, measured or predicted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeopt.cli import vectors

if TYPE_CHECKING:
    from edgeopt.evidence import Evidence
    from edgeopt.platform import Platform
    from edgeopt.runners import Runner


@click.command()
@click.argument("model")
@click.option(
    "--on",
    "where",
    default="host",
    show_default=True,
    help="host, emulator, predict, ssh://user@board or adb:SERIAL.",
)
@click.option(
    "--device", "-d", help="For predict and emulator: a name of `edgeopt devices list`, or a profile's path."
)
@click.option("--against", metavar="OTHER", help="A model or artifact to compare with, interleaved.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads.")
@click.option("--runs", type=click.IntRange(min=5), help="Timed calls; by default about five seconds' worth.")
@click.option("--shape", "shapes", multiple=True, metavar="NAME=1,3,224,224", help="Fix an input's shape.")
@click.option("--layers", is_flag=True, help="For the emulator: count every layer, approximately.")
@click.option("--seed", default=0, show_default=True, help="The seed of inputs, order and bootstrap.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(**options: Any) -> int:
    """Measure the latency and memory of MODEL, an .onnx file or an artifact's folder.

    On the host or a board it is warmed up until steady and interleaved with OTHER in random order; OTHER
    against itself gives the noise floor. A board times its calls itself and keeps nothing afterwards. Host
    figures never judge a device: for that, measure on a board, or predict. The emulator counts instructions,
    memory traffic and cache misses, and gives no latency.
    """
    from edgeopt.cli import counting
    from edgeopt.cli.tables import write_json
    from edgeopt.runners import find

    show = _print
    if options["where"] == "predict":
        body = _predict(options)
    elif re.match("emulator(:|$)", options["where"]):
        with find(options["where"]) as runner:
            body, show = counting.count(options, runner), counting.show  # type: ignore[arg-type]
    else:
        with find(options["where"]) as runner:
            body = _measure(options, runner)
    if options["as_json"]:
        write_json({key: value for key, value in body.items() if not key.startswith("_")})
    else:
        show(body)
    return 0


def _measure(options: dict[str, Any], runner: Runner) -> dict[str, Any]:
    from dataclasses import replace

    from edgeopt import benchmark, footprint
    from edgeopt.cli.display import Terminal
    from edgeopt.cli.tables import parse_shapes
    from edgeopt.data import SeededSamples
    from edgeopt.errors import UserError

    threads, shapes = options["threads"], parse_shapes(options["shapes"])
    named = {"model": options["model"]}
    if options["against"]:
        named["against"] = options["against"]
    opened = {key: runner.open(path, threads=threads) for key, path in named.items()}
    parts = list(opened["model"])
    if any(list(sessions) != parts for sessions in opened.values()):
        raise UserError("the two have different parts and cannot be compared", where=", ".join(parts))
    unknown = set(shapes) - {spec.name for part in opened["model"].values() for spec in part.inputs}
    body: dict[str, Any] = {"where": runner.where, "parts": {}, "notes": []}
    if runner.where == "host":
        body["note"] = "host, not device"
    else:
        body["golden"] = {
            key: vectors.check(Path(path), opened[key], body["notes"]) for key, path in named.items()
        }
    figures: dict[tuple[str, str], Evidence] = {}
    for part in parts:
        first = opened["model"][part]
        own = {spec.name for spec in first.inputs} | unknown
        samples = SeededSamples(
            first.inputs, 1, options["seed"], {name: shapes[name] for name in shapes if name in own}
        )
        feeds = next(samples.feeds())
        result = benchmark.measure(
            {key: runner.timer(sessions[part], feeds) for key, sessions in opened.items()},
            "against" if "against" in opened else None,
            runs=options["runs"],
            seed=options["seed"],
            progress=Terminal().show_progress,
        )
        given = {name: list(shape) for name, shape in samples.shapes.items()}
        for key, timing in result.timings.items():
            figures[part, key] = benchmark.latency(
                timing,
                where=runner.where,
                runtime=getattr(opened[key][part], "runtime", ""),
                conditions={"threads": threads, "batch": 1, "shapes": given},
            )
        entry: dict[str, Any] = {}
        body["parts"][part] = entry
        if "model" in result.comparisons:
            compared = result.comparisons["model"]
            entry |= {
                "ratio": compared.ratio,
                "interval": compared.interval,
                "noise": result.noise,
                "verdict": compared.verdict,
            }
        body["notes"] += result.notes
    there, seen = runner.conditions(), runner.detail()  # what held while all of it was timed
    for (part, key), figure in figures.items():
        body["parts"][part][key] = replace(
            figure, conditions={**figure.conditions, **there}, detail={**figure.detail, **seen}
        ).to_json()
    body["memory"] = {}
    for key, path in named.items():
        found = runner.footprint(path, threads=threads, shapes=shapes)
        body["memory"][key] = footprint.peak_memory(
            found,
            where=runner.where,
            runtime=getattr(opened[key][parts[0]], "runtime", ""),
            conditions={"threads": threads, **(there if runner.where != "host" else {})},
        ).to_json()
    body["notes"] += runner.notes
    body["_named"] = named
    return body


def _predict(options: dict[str, Any]) -> dict[str, Any]:
    from edgeopt import predict
    from edgeopt.cli.tables import parse_shapes
    from edgeopt.errors import ModelError
    from edgeopt.load import load

    shapes = parse_shapes(options["shapes"])
    named = {key: options[key] for key in ("model", "against") if options[key]}
    files = {key: _files(Path(path)) for key, path in named.items()}
    platform = _platform(options, Path(options["model"]))
    if any(list(found) != list(files["model"]) for found in files.values()):
        raise ModelError("the two have different parts and cannot be compared")
    body: dict[str, Any] = {"where": platform.device.name, "parts": {}, "memory": {}, "notes": []}
    if (uncovered := predict.coverage(platform)) is not None:
        body["notes"].append(uncovered)
    for part in files["model"]:
        entry = body["parts"].setdefault(part, {})
        for key, found in files.items():
            path = found[part]
            model = load(path)
            given = {value.name for value in model.graph.inputs}
            own = {name: sizes for name, sizes in shapes.items() if name in given}
            entry[key] = predict.predict(model, platform, options["threads"], own).latency.to_json()
            label = key if len(found) == 1 else f"{key}/{part}"
            size = path.stat().st_size
            body["memory"][label] = predict.peak_memory(size, model, platform, own).to_json()
            named[label] = named[key] if len(found) == 1 else f"{named[key]} {part}"
    body["_named"] = named
    return body


def _files(path: Path) -> dict[str, Path]:
    """The ONNX file of every part of a model or artifact."""
    from edgeopt.artifact import is_artifact, open_artifact
    from edgeopt.errors import ModelError

    if not path.is_dir() or not is_artifact(path):
        return {"model": path}
    files = {name: path / part["model"] for name, part in open_artifact(path).parts.items()}
    if any(file.suffix != ".onnx" for file in files.values()):
        raise ModelError(
            "a prediction reads ONNX, and the artifact is of another format",
            where=", ".join(file.name for file in files.values()),
        )
    return files


def _platform(options: dict[str, Any], path: Path) -> Platform:
    """The device asked for, or the one that an artifact was made for."""
    from edgeopt.artifact import is_artifact, open_artifact
    from edgeopt.errors import UserError
    from edgeopt.platform import load_platform

    if path.is_dir() and is_artifact(path):
        manifest = open_artifact(path).manifest
        return load_platform(options["device"] or manifest["device"], manifest["target"])
    if not options["device"]:
        raise UserError("a prediction needs a device", hint="--device raspberry-pi-4")
    return load_platform(options["device"])


def _print(body: dict[str, Any]) -> None:
    from rich.table import Table

    from edgeopt import units
    from edgeopt.cli.display import console

    out = console()
    first = next(iter(body["parts"].values()))["model"]
    measured = first["how"] == "measured"
    title = body.get("note") or f"{first['how']} {'on' if measured else 'for'} {body['where']}"
    columns = (
        ("latency", "p50", "p90", "p99", "95 % interval", "runs")
        if measured
        else (
            "latency",
            "median",
            "95 % interval",
        )
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    several = len(body["parts"]) > 1
    for part, entry in body["parts"].items():
        for key, found in entry.items():
            if key not in ("model", "against"):
                continue
            name = body["_named"][key]
            lower, upper = found["interval"] or (found["value"], found["value"])
            row = [f"{name} {part}" if several else name]
            if measured:
                row += [units.format_time(found["detail"][rank]) for rank in ("p50", "p90", "p99")]
            else:
                row.append(units.format_time(found["value"]))
            row.append(f"{units.format_time(lower)} to {units.format_time(upper)}")
            if measured:
                row.append(str(found["n"]))
            table.add_row(*row)
    out.print(title, style="bold")
    out.print(table)
    for part, entry in body["parts"].items():
        if "verdict" in entry:
            lower, upper = entry["interval"]
            label = f"{part}: " if several else ""
            out.print(
                f"{label}{entry['verdict']}: {entry['ratio']:.3f} of the time "
                f"({lower:.3f} to {upper:.3f}), noise floor {100 * entry['noise']:.1f} %"
            )
    for key, found in body.get("memory", {}).items():
        detail = found["detail"]
        if not measured:
            lower, upper = found["interval"] or (found["value"], found["value"])
            out.print(
                f"{body['_named'][key]}: peak memory {units.format_size(found['value'])} of the process "
                f"({units.format_size(lower)} to {units.format_size(upper)})"
            )
            continue
        out.print(
            f"{body['_named'][key]}: peak memory {units.format_size(found['value'])} of a fresh process "
            f"({units.format_size(detail['before_load'])} before loading), load "
            f"{units.format_time(detail['load_time'])}, first call {units.format_time(detail['first_call'])}"
        )
    for line in vectors.lines(body.get("golden", {}), body["_named"]):
        out.print(line)
    stderr = console(stderr=True)
    for note in body["notes"]:
        stderr.print(note, style="yellow")
