"""``edgeopt emulator``: the ARM userland that ``--on emulator`` runs models in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgeopt.runners.emulator.place import Place

_folder = click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where it lies; by default $EDGEOPT_EMULATOR, or `emulator` in edgeopt's cache.",
)


@click.group()
def command() -> None:
    """Set up and look after the emulator of ARM boards.

    It needs neither root nor containers: a small ARM system, the runtimes and QEMU are fetched through this
    machine's own apt and pip or uv, into a private folder.
    """


@command.command()
@_folder
@click.option("--armv7", is_flag=True, help="32-bit ARM with tflite-runtime, too.")
@click.option("--bundle", type=click.Path(path_type=Path), help="Take it from this file, without a network.")
@click.option(
    "--sources",
    type=click.Path(path_type=Path),
    help="A file of apt sources that have ARM packages, where the machine's own have none.",
)
@click.option(
    "--debian-mirror",
    "mirror",
    help="The address of a mirror of Debian, where the machine's own sources name none (Ubuntu).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def setup(
    folder: Path | None,
    armv7: bool,
    bundle: Path | None,
    sources: Path | None,
    mirror: str | None,
    as_json: bool,
) -> None:
    """Fetch what is not there yet; what is there stays, so it can be interrupted."""
    from edgeopt.cli.display import Terminal, console
    from edgeopt.runners.emulator import bundle as bundles
    from edgeopt.runners.emulator.place import check_host, find_place
    from edgeopt.runners.emulator.setup import setup as fetch

    place, watch, notes = find_place(folder), Terminal(), []
    if bundle is not None:
        check_host()
        bundles.read(place, bundle, watch)
    else:
        notes = fetch(place, armv7=armv7, sources=sources, mirror=mirror, watch=watch)
    stderr = console(stderr=True)
    for note in notes:
        stderr.print(note, style="yellow")
    _show(place, as_json, notes)


@command.command()
@_folder
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(folder: Path | None, as_json: bool) -> int:
    """Show what is there; exits with 4 where models cannot run."""
    from edgeopt.runners.emulator.place import find_place

    place = find_place(folder)
    _show(place, as_json, [])
    return 0 if place.has("aarch64") else 4


@command.command()
@_folder
def remove(folder: Path | None) -> None:
    """Delete it."""
    import shutil

    from edgeopt.errors import UserError
    from edgeopt.runners.emulator.place import find_place
    from edgeopt.runners.emulator.setup import locked
    from edgeopt.units import format_size

    place = find_place(folder)
    if not place.folder.is_dir():
        click.echo(f"{place.folder}: there is none")
        return
    known = {"boards", "downloads", "lock", *place.parts()}
    foreign = [path.name for path in place.folder.iterdir() if path.name not in known]
    if any(not name.startswith(".new-") for name in foreign):
        raise UserError("the folder holds files that are not the emulator's", where=str(place.folder))
    with locked(place):
        size = place.size()
        shutil.rmtree(place.folder)
    click.echo(f"freed {format_size(size)}")


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@_folder
def bundle(file: Path, folder: Path | None) -> None:
    """Write what is there into FILE, for machines without a network: `emulator setup --bundle FILE`."""
    from edgeopt.cli.display import Terminal
    from edgeopt.runners.emulator.bundle import write
    from edgeopt.runners.emulator.place import find_place
    from edgeopt.units import format_size

    write(find_place(folder), file, Terminal())
    click.echo(f"{file}: {format_size(file.stat().st_size)}")


def _show(place: Place, as_json: bool, notes: list[str]) -> None:
    from edgeopt.cli.tables import write_json
    from edgeopt.units import format_size

    parts = place.parts()
    ready = {arch: place.has(arch) for arch in ("aarch64", "armv7")}
    if as_json:
        body: dict[str, Any] = {"folder": str(place.folder), "bytes": place.size(), "ready": ready}
        write_json({**body, "counts": place.counter is not None, "parts": parts, "notes": notes})
        return
    if not parts:
        click.echo(f"{place.folder}: not set up\n  try: edgeopt emulator setup")
        return
    click.echo(f"{place.folder}: {format_size(place.size())}")
    held = parts.get("qemu")
    if held is not None:
        cores = sorted(core for core in held["cores"].get("aarch64", []) if core != "max")
        click.echo(f"  QEMU {held['version']}, from {held['origin']}: {', '.join(cores)}")
    for arch, is_ready in ready.items():
        if is_ready:
            runtimes = parts[f"{arch}-runtimes"]["runtimes"]
            named = ", ".join(f"{name} {version}" for name, version in runtimes.items())
            click.echo(f"  {arch}: Python {parts[f'{arch}-system']['python']}, {named}")
    counts = "yes" if place.counter is not None else "no: edgeopt emulator setup says why"
    click.echo(f"  counts instructions: {counts}")
