"""``edgeopt explain``: what every pass did, which rules did not fire and why, and which layers lose most."""

from __future__ import annotations

import json
from collections import defaultdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgeopt.graph.change import Change

WORST = 10
"""How many layers are ranked without ``--all``."""

FEW = 3
"""How many sites are named where a reason holds at many."""


@click.command()
@click.argument("subject", metavar="ARTIFACT|MODEL")
@click.option("--nodes", default="*", metavar="PATTERN", help="Only at nodes whose name matches.")
@click.option("--all", "every", is_flag=True, help="Name every site.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(subject: str, nodes: str, every: bool, as_json: bool) -> None:
    """Show what each pass did, and why the rules that might have fired did not.

    Of an artifact, its ledger is read; on a model, the exact passes run, and nothing is written. Where an
    artifact was quantized with data, its layers are ranked by what quantization costs them.
    """
    from edgeopt.cli.tables import write_json

    found = [
        (name, _at(change, nodes))
        for name, change in (_of_artifact(Path(subject)) if Path(subject).is_dir() else _of_model(subject))
    ]
    if as_json:
        write_json({"passes": [{"name": name, **change.to_json()} for name, change in found]})
        return
    for name, change in found:
        click.echo(f"{name}: {change.summary or 'nothing to do'}")
        _print("did", _by_reason((item.rule, "", item.site) for item in change.rewrites), every)
        _print("left", _by_reason((item.rule, item.reason, item.site) for item in change.skipped), every)
        _print_layers(change.details, nodes, every)
        for note in change.notes:
            click.echo(f"  note: {note}")


def _print_layers(details: Mapping[str, Any], pattern: str, every: bool) -> None:
    """Prints what quantization costs layer by layer, the worst first."""
    alone, signals = dict(details.get("ranking", ())), dict(details.get("signals", ()))
    found = [name for name in (alone or signals) if fnmatchcase(name, pattern)]
    if not found:
        return
    click.echo("  signal to noise in dB, worst first: at the outputs with this layer alone quantized,")
    click.echo("  and at its own output with all of them")
    shown = found if every else found[:WORST]
    for name in shown:
        figures = [f"{part[name]:7.1f}" if name in part else "      -" for part in (alone, signals)]
        click.echo(f"    {' '.join(figures)}  {name}")
    if len(found) > len(shown):
        click.echo(f"      and {len(found) - len(shown)} more (--all)")
    groups = [
        (layers, decibels)
        for layers, decibels in details.get("groups", ())
        if any(fnmatchcase(name, pattern) for name in layers)
    ]
    if groups:
        click.echo("  and with a group of layers alone quantized (a residual branch, a block, neighbours)")
    for layers, decibels in groups if every else groups[:WORST]:
        click.echo(f"    {decibels:7.1f}          {_group_name(layers)}")
    if len(groups) > WORST and not every:
        click.echo(f"      and {len(groups) - WORST} more (--all)")


def _group_name(layers: Sequence[str]) -> str:
    """A group on one line."""
    return (
        " + ".join(layers) if len(layers) <= FEW else f"{layers[0]} ... {layers[-1]} ({len(layers)} layers)"
    )


def _of_artifact(folder: Path) -> list[tuple[str, Change]]:
    from edgeopt.errors import ModelError
    from edgeopt.graph.change import Change

    try:
        ledger = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))
        return [(step["pass"], Change.from_json(step["change"])) for step in ledger["steps"]]
    except (OSError, ValueError, KeyError, TypeError) as failure:
        raise ModelError(
            f"{str(folder)!r} is no artifact with a ledger", hint="edgeopt explain MODEL.onnx"
        ) from failure


def _of_model(path: str) -> list[tuple[str, Change]]:
    from edgeopt.load import load
    from edgeopt.optimization import optimized

    _, changes = optimized(load(path))
    return [(item.name, change) for item, change in changes]


def _at(change: Change, pattern: str) -> Change:
    """The change at the nodes that match."""
    change.rewrites = [
        item
        for item in change.rewrites
        if any(fnmatchcase(name, pattern) for name in (item.site, *item.replaced))
    ]
    change.skipped = [item for item in change.skipped if fnmatchcase(item.site, pattern)]
    return change


def _by_reason(items: Any) -> dict[tuple[str, str], list[str]]:
    grouped: dict[tuple[str, str], list[str]] = defaultdict(list)
    for rule, reason, site in items:
        grouped[rule, reason].append(site)
    return grouped


def _print(verb: str, grouped: dict[tuple[str, str], list[str]], every: bool) -> None:
    for (rule, reason), sites in grouped.items():
        shown = sites if every else sites[:FEW]
        more = f" and {len(sites) - len(shown)} more" if len(sites) > len(shown) else ""
        click.echo(f"  {verb} {rule}{f': {reason}' if reason else ''}")
        if any(shown):
            click.echo(f"      at {', '.join(shown)}{more}")
