"""``edgeopt devices``: the device profiles there are, and those written from real boards."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def command() -> None:
    """List, show, check and write device profiles."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_devices(as_json: bool) -> None:
    """List the known devices."""
    from edgeopt.cli.tables import table, write_json
    from edgeopt.platform import load_device, profile_names
    from edgeopt.units import format_size

    devices = [load_device(name) for name in profile_names("devices")]
    if as_json:
        write_json({"devices": [device.model_dump(mode="json", by_alias=True) for device in devices]})
        return
    rows = [
        [
            device.name,
            " + ".join(
                f"{cluster.cores} x {cluster.core} {cluster.clock / 1e9:g} GHz"
                for cluster in device.cpu.clusters
            ),
            format_size(device.memory.ram),
            ", ".join(device.runtimes),
        ]
        for device in devices
    ]
    if rows:
        longest = max(len(row[1]) for row in rows if "+" not in row[1])
        rows = [[row[0], _first(row[1], longest), *row[2:]] for row in rows]
    click.echo(table(["device", "processor", "memory", "runtimes"], rows, left=(0, 1, 3), gives=3))


def _first(clusters: str, width: int) -> str:
    """The fastest cluster, and how many more there are, where not all fit."""
    if len(clusters) <= width:
        return clusters
    first, *rest = clusters.split(" + ")
    return f"{first} + {len(rest)} more"


@command.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(name: str, as_json: bool) -> None:
    """Show one profile: what is known of a device and where it comes from."""
    from edgeopt.cli.tables import write_json
    from edgeopt.platform import load_device, load_platform
    from edgeopt.predict import coverage
    from edgeopt.units import format_size

    device = load_device(name)
    if as_json:
        write_json(device.model_dump(mode="json", by_alias=True))
        return
    click.echo(f"{device.name}: {device.description}" if device.description else device.name)
    lines = [("chip", device.soc)] if device.soc else []
    for cluster in device.cpu.clusters:
        caches = ", ".join(
            f"{level} {format_size(size)}"
            for level, size in (("L1d", cluster.l1d), ("L2", cluster.l2), ("L3", cluster.l3))
            if size
        )
        text = f"{cluster.cores} x {cluster.core} at {cluster.clock / 1e9:g} GHz, {' '.join(cluster.isa)}"
        lines.append(("processor", f"{text}; {caches}" if caches else text))
    lines.append(
        ("memory", f"{format_size(device.memory.ram)}, a copy moves {device.memory.bandwidth / 1e9:g} GB/s")
    )
    lines += [("runtime", f"{runtime} {version}") for runtime, version in device.runtimes.items()]
    for accelerator in device.accelerators:
        lines.append(("accelerator", f"{accelerator.name} ({', '.join(accelerator.precisions)})"))
    if device.emulate is not None:
        differs = "; ".join(device.emulate.differs)
        lines.append(("emulated as", device.emulate.cpu + (f", but {differs}" if differs else "")))
    if (uncovered := coverage(load_platform(device))) is not None:
        lines.append(("prediction", uncovered))
    for title, text in lines:
        click.echo(f"  {title:12} {text}")
    click.echo("sources")
    for figure, source in device.sources.items():
        click.echo(f"  {figure:18} {source}")


@command.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def lint(files: tuple[Path, ...], as_json: bool) -> int:
    """Check profiles: every figure has a source and nothing contradicts anything else.

    Without FILES all known profiles are checked. Exits with 2 where something is wrong.
    """
    from dataclasses import asdict

    from edgeopt.cli.tables import write_json
    from edgeopt.lint import lint as check
    from edgeopt.platform import profile_names

    paths = files or tuple(profile_names("devices").values())
    findings = [finding for path in paths for finding in check(path)]
    if as_json:
        write_json({"profiles": len(paths), "findings": [asdict(finding) for finding in findings]})
        return 2 if findings else 0
    for finding in findings:
        click.echo(f"{finding.where}: {finding.message}")
        if finding.nearest:
            click.echo(f"  nearest: {', '.join(finding.nearest)}")
        if finding.hint:
            click.echo(f"  try: {finding.hint}")
    count = f"{len(paths)} profile{'s' if len(paths) != 1 else ''}"
    click.echo(f"{count} checked, {len(findings)} finding{'s' if len(findings) != 1 else ''}")
    return 2 if findings else 0


@command.command()
@click.argument("board")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="The file; by default BOARD-NAME.yaml.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def probe(board: str, output: Path | None, force: bool, as_json: bool) -> int:
    """Write a profile from the real BOARD, ssh://user@board or adb:SERIAL, and check it.

    Nothing stays on the board. Exits with 2 where the check finds something to correct by hand.
    """
    from dataclasses import asdict

    from edgeopt.cli.tables import write_json
    from edgeopt.errors import OutputError, UserError
    from edgeopt.lint import lint as check
    from edgeopt.runners import find
    from edgeopt.runners.board import Board
    from edgeopt.runners.profile import profile

    with find(board) as runner:
        if not isinstance(runner, Board) or runner.how != "measured":
            raise UserError(f"{board!r} is no real board", hint="ssh://user@board or adb:SERIAL")
        path = output or Path(f"{runner.where}.yaml")
        if path.exists() and not force:
            raise OutputError(f"the file {str(path)!r} exists", hint="name another with -o, or give --force")
        text = profile(runner.probe(), path.stem)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as failure:
        raise OutputError(f"cannot write {str(path)!r}: {failure.strerror}") from failure
    findings = check(path)
    if as_json:
        write_json({"profile": str(path), "findings": [asdict(finding) for finding in findings]})
        return 2 if findings else 0
    click.echo(f"{path}: {len(findings)} finding{'s' if len(findings) != 1 else ''}")
    for finding in findings:
        click.echo(f"{finding.where}: {finding.message}")
    return 2 if findings else 0


@command.command()
@click.argument("board")
def clean(board: str) -> None:
    """Delete what was kept on the BOARD, ssh://user@board or adb:SERIAL, by ?userland=keep."""
    from edgeopt.errors import UserError
    from edgeopt.runners import find
    from edgeopt.runners.board import Board

    with find(board) as runner:
        if not isinstance(runner, Board) or runner.how != "measured":
            raise UserError(f"{board!r} is no real board", hint="ssh://user@board or adb:SERIAL")
        removed = runner.clean()
    click.echo("the userlands that were kept are deleted" if removed else "nothing was kept there")
