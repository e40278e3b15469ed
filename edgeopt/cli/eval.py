"""``edgeopt eval``: the accuracy of an artifact or model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgeopt.data import DataSpec
    from edgeopt.evaluate import Judgement
    from edgeopt.evidence import Evidence
    from edgeopt.harness import Harness
    from edgeopt.runners import Runner
    from edgeopt.session import Session


@click.command()
@click.argument("model")
@click.option(
    "--data",
    required=True,
    help="A folder with evaluation.npz, one file, module:function, or a recipe's YAML with its data.",
)
@click.option("--metric", help="top1, top5, mae, psnr, cosine, spearman, or module:function.")
@click.option("--harness", help="module:function that runs the model where one call is not enough.")
@click.option("--against", metavar="MODEL", help="The model or artifact to compare with: the float original.")
@click.option("--limit", type=click.IntRange(min=1), help="Use so many samples only, evenly spread.")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    help="Samples a call; by default 16, and 1 for an artifact whose ranges are computed per call.",
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads.")
@click.option(
    "--on",
    "where",
    default="host",
    show_default=True,
    help="Where MODEL runs: host, emulator, ssh://user@board, adb:SERIAL.",
)
@click.option("--device", "-d", help="For the emulator: the device; by default the artifact's own.")
@click.option("--jobs", type=click.IntRange(min=1), help="For the emulator: processes; by default the cores.")
@click.option("--seed", default=0, show_default=True, help="The seed of the bootstrap.")
@click.option("--no-code", is_flag=True, help="Refuse data, metrics and harnesses that are code.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(**options: Any) -> int:
    """Measure the accuracy of MODEL, an .onnx file or an artifact's folder, with its 95 % interval.

    With --against the drop is paired: both see the same samples. Fidelity stands beside it. The model
    compared with always runs on the host.
    """
    from edgeopt.runners import find

    with find(options["where"]) as runner:
        return _judge(options, runner)


def _judge(options: dict[str, Any], runner: Runner) -> int:
    from edgeopt.cli.display import Terminal, console, show
    from edgeopt.cli.tables import write_json
    from edgeopt.data import open_data
    from edgeopt.errors import DataError, UserError
    from edgeopt.evaluate import judge
    from edgeopt.harness import SINGLE, Harness
    from edgeopt.metrics import find
    from edgeopt.runners.host import open_sessions

    code = not options["no_code"]
    spec, base = _spec(options)
    emulates = runner.how == "emulated"
    for name in ("device", "jobs"):
        if options[name] and not emulates:
            raise UserError(f"--{name} has an effect with --on emulator alone")
    if emulates:
        runner.take(options["model"], options["device"])  # type: ignore[attr-defined]
    sessions = runner.open(options["model"], threads=options["threads"])
    against = open_sessions(options["against"], threads=options["threads"]) if options["against"] else None
    metric = find(spec.metric, base=base, code=code) if spec.metric else None
    if metric is None and against is None:
        raise UserError(
            "there is nothing to measure: no metric and no model to compare with",
            hint="--metric top1, or --against MODEL for fidelity",
        )
    harness = Harness.load(spec.harness, base=base, code=code) if spec.harness else None
    single = sessions.get(SINGLE)
    bound = harness is None and single is not None
    data = open_data(
        spec,
        single.inputs if bound and single is not None else None,
        metric,
        outputs=single.outputs if bound and single is not None else (),
        base=base,
        code=code,
    )
    if data.evaluate is None:
        raise DataError("the data have no part to evaluate on", hint="evaluation.npz, or evaluate: in YAML")
    if emulates:
        count = min(len(data.evaluate), options["limit"] or len(data.evaluate))
        if harness is None:
            sessions = _spread(sessions, runner, options, count)
        else:
            sessions, harness = _share(sessions, runner, options, count, harness, against is not None)
    found = judge(
        against,
        sessions,
        data.evaluate,
        metric,
        harness=harness,
        limit=options["limit"],
        batch=options["batch"] or (1 if emulates else _batch(Path(options["model"]))),
        progress=Terminal().show_progress,
        where=runner.where,
        how=runner.how,
        there=runner.conditions(),
        digest=_digest(Path(options["model"])),
        seed=options["seed"],
    )
    notes = [*data.notes, *found.notes, *runner.notes]
    for opened in (sessions, against or {}):
        for session in opened.values():
            session.close()
    if options["as_json"]:
        write_json({**found.to_json(), "notes": notes})
        return 0
    if runner.where != "host":
        show(_stamp(found, runner))
    show(_screen(found, options["model"], options["against"]))
    stderr = console(stderr=True)
    for note in notes:
        stderr.print(note, style="yellow" if note.startswith("warning") else "dim")
    return 0


def _spread(
    sessions: dict[str, Session], runner: Runner, options: dict[str, Any], samples: int
) -> dict[str, Session]:
    """Says how long an emulated evaluation takes, and spreads it over processes where that pays."""
    from edgeopt.cli.display import console
    from edgeopt.runners.emulator import spread

    if len(sessions) != 1:
        return sessions
    session = next(iter(sessions.values()))
    seconds = spread.seconds_per_call(session)
    wanted = spread.processes(options["jobs"])
    count = wanted if seconds is None or seconds * samples > 2 * spread.START else 1
    if seconds is not None:
        console(stderr=True).print(spread.said(samples, seconds, count), style="dim")
    if count == 1:
        return sessions
    return spread.spread(runner, sessions, options["model"], count)  # type: ignore[arg-type]


def _share(
    sessions: dict[str, Session],
    runner: Runner,
    options: dict[str, Any],
    samples: int,
    harness: Harness,
    paired: bool,
) -> tuple[dict[str, Session], Harness]:
    """Spreads a harness over processes; how long it takes is said as soon as two samples have run."""
    from edgeopt.cli.display import console
    from edgeopt.runners.emulator import spread
    from edgeopt.runners.emulator.sharing import SharedHarness

    def tell(seconds: float, count: int) -> None:
        # Beside an original every call is made once more, with the original's own inputs, one after another.
        each = max(seconds, 2 * seconds / count) * count if paired else seconds
        console(stderr=True).print(spread.said(samples, each, count), style="dim")

    count = spread.processes(options["jobs"])
    shared = spread.spread(runner, sessions, options["model"], count)  # type: ignore[arg-type]
    return shared, SharedHarness(harness, count, tell)


def _batch(path: Path) -> int:
    """Samples a call: 1 where ranges are computed per call, as they will be on the device."""
    from edgeopt.artifact import is_artifact, open_artifact
    from edgeopt.evaluate import BATCH

    if not is_artifact(path):
        return BATCH
    parts = open_artifact(path).parts.values()
    return 1 if any(part.get("precision") == "dynamic-int8" for part in parts) else BATCH


def _spec(options: dict[str, Any]) -> tuple[DataSpec, Path]:
    """What is said about the data, and the folder that relative paths start from."""
    from edgeopt import schema
    from edgeopt.data import DataSpec
    from edgeopt.errors import DataError

    base = Path()
    if options["data"].endswith((".yaml", ".yml")):
        path = Path(options["data"])
        content = schema.load(path, DataError)
        if isinstance(content, dict) and "data" in content:
            content = content["data"]
        if isinstance(content, str):
            content = {"path": content}
        spec, base = schema.validate(content, DataSpec, DataError, path), path.parent
    else:
        spec = DataSpec(path=options["data"])
    given = {key: options[key] for key in ("metric", "harness") if options[key]}
    return spec.model_copy(update=given), base


def _digest(path: Path) -> str:
    """SHA-256 of a model's file or of an artifact's manifest."""
    import hashlib

    file = path / "manifest.json" if path.is_dir() else path
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _stamp(found: Judgement, runner: Runner) -> str:
    """Where the figures of MODEL are from, and how they came about."""
    evidence = found.artifact or found.fidelity
    by = f", {runner.conditions()['emulator']}" if runner.how == "emulated" else ""
    runtime = f", {evidence.runtime}" if evidence is not None and evidence.runtime else ""
    return f"{runner.how} on {runner.where}{by}{runtime}"


def _screen(found: Judgement, model: str, against: str | None) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("", "value", "95 % interval", "samples", ""):
        table.add_column(name, justify="left" if name in ("", "95 % interval") else "right", overflow="fold")
    rows: list[tuple[str, Evidence | None, str]] = [
        (found.artifact.quantity if found.artifact else "", found.artifact, model),
        (found.original.quantity if found.original else "", found.original, against or ""),
        ("drop", found.drop, "paired"),
        ("fidelity", found.fidelity, "signal-to-noise of the outputs"),
        ("agreement", found.agreement, "same class named"),
    ]
    for name, evidence, remark in rows:
        if evidence is None:
            continue
        interval = ""
        if evidence.interval is not None:
            interval = " to ".join(_number(side, evidence.unit) for side in evidence.interval)
        value = f"{_number(evidence.value, evidence.unit)} {evidence.unit}".rstrip()
        table.add_row(name, value, interval, str(evidence.n), remark)
    return table


def _number(value: float, unit: str) -> str:
    return f"{value:.4f}" if unit == "" else f"{value:.2f}"
