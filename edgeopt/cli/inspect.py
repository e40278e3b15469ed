"""``edgeopt inspect``: what a model is made of and what each layer costs."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgeopt.inspection import Inspection, Layer


@click.command()
@click.argument("model")
@click.option("--device", metavar="NAME|FILE", help="Predict time and memory there, and say what cannot run.")
@click.option("--target", metavar="RUNTIME", help="The device's runtime, by default its first.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--shape", "shapes", multiple=True, metavar="NAME=1,3,224,224", help="The shape of an input.")
@click.option("--layers", default="15", show_default=True, metavar="N|all", help="How many layers to show.")
@click.option("--nodes", metavar="GLOB", help="Only nodes of such a name, or one that contains it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    model: str,
    device: str | None,
    target: str | None,
    threads: int,
    shapes: tuple[str, ...],
    layers: str,
    nodes: str | None,
    as_json: bool,
) -> None:
    """Show a model's operators, parameters, arithmetic and memory, and the cost of every layer.

    MODEL is a model file or an artifact's folder.

    Layers are listed from the most to the least expensive; with --layers all, in the model's order.
    """
    from pathlib import Path

    from edgeopt.cli.models import open_model
    from edgeopt.cli.tables import parse_shapes, write_json
    from edgeopt.errors import ModelError, UserError, nearest
    from edgeopt.inspection import inspect
    from edgeopt.platform import load_platform

    if layers != "all" and not layers.isdigit():
        raise UserError(f"--layers {layers!r} is neither a number nor 'all'")
    platform = load_platform(device, target) if device else None
    path = Path(model)
    opened = open_model(path)
    if opened is None:
        raise ModelError(f"the artifact {model!r} is compiled and cannot be looked into")
    found = inspect(
        opened,
        platform,
        parse_shapes(shapes),
        threads=threads,
        file_bytes=path.stat().st_size if path.is_file() else None,
    )
    chosen = [layer for layer in found.layers if nodes is None or _matches(layer, nodes)]
    if nodes is not None and not chosen:
        names = [layer.cost.name for layer in found.layers]
        raise UserError(f"no node matches {nodes!r}", nearest=nearest(nodes, names))
    if as_json:
        write_json({**found.to_json(), "layers": _json_layers(found, chosen)})
        return
    _print(found, chosen, None if layers == "all" or nodes else int(layers))


def _matches(layer: Layer, pattern: str) -> bool:
    names = (layer.cost.name, *layer.original)
    return any(fnmatchcase(name, pattern) or pattern in name for name in names)


def _json_layers(found: Inspection, chosen: list[Layer]) -> list[object]:
    every = found.to_json()["layers"]
    return [data for layer, data in zip(found.layers, every, strict=True) if layer in chosen]


def _print(found: Inspection, chosen: list[Layer], limit: int | None) -> None:
    from edgeopt.cli.tables import shorten, table
    from edgeopt.units import format_count, format_size

    for title, values in (("inputs", found.inputs), ("outputs", found.outputs)):
        described = ", ".join(f"{name} {text}" for name, text in values.items())
        click.echo(f"{title:17} {shorten(described, 82)}")
    operators = ", ".join(f"{count} {name}" for name, count in found.operators.items())
    click.echo(f"{'operators':17} {shorten(operators, 82)}")
    click.echo(f"{'parameters':17} {format_count(found.parameters)} in {format_size(found.bytes)}")
    click.echo(f"{'arithmetic':17} {format_count(found.macs)} multiply-accumulates")
    peak = found.peak
    how = "the least that any order needs" if peak.optimal else "the best order found"
    if peak.given != peak.bytes:
        how += f"; {format_size(peak.given)} in the order given"
    click.echo(f"{'peak activations':17} {format_size(peak.bytes)}, {how}")
    _print_prediction(found)
    if found.assumed:
        names = ", ".join(found.assumed)
        click.echo(f"{'taken as 1':17} {shorten(names, 52)} (give sizes with --shape)")
    for name in found.unbounded:
        click.echo(f"{'loop':17} {shorten(name, 40)} runs as often as its data say; counted once")
    if found.unknown:
        click.echo(f"{'unknown shapes':17} {len(found.unknown)}: {shorten(', '.join(found.unknown), 60)}")
    runs = [layer for layer in chosen if layer.cost.kernel != "free"]
    shown = runs
    if limit is not None:
        shown = sorted(runs, key=_weight, reverse=True)[:limit]
    timed = found.latency is not None
    header = ["layer", "operator", "kernel", "output", "MACs", "params", "moved", *(["ms*"] if timed else [])]
    rows = [_row(layer, timed) for layer in shown]
    click.echo()
    click.echo(table(header, rows, left=(0, 1, 2, 3)))
    if len(shown) < len(runs):
        click.echo(f"and {len(runs) - len(shown)} more: --layers all")
    if timed:
        click.echo("* predicted")


def _print_prediction(found: Inspection) -> None:
    from edgeopt.cli.tables import shorten
    from edgeopt.units import format_size, format_time

    if found.latency is not None and found.latency.interval is not None:
        low, high = (format_time(bound) for bound in found.latency.interval)
        threads = found.latency.conditions.get("threads")
        click.echo(
            f"{'latency':17} {format_time(found.latency.value)} predicted for {found.latency.where}, "
            f"{threads} thread{'s' if threads != 1 else ''} (95 %: {low} to {high})"
        )
    if found.memory is not None and found.memory.interval is not None:
        low, high = (format_size(bound) for bound in found.memory.interval)
        click.echo(
            f"{'peak memory':17} {format_size(found.memory.value)} predicted, runtime included "
            f"(95 %: {low} to {high})"
        )
    if found.problems:
        click.echo(f"{'cannot run':17} {len(found.problems)} nodes")
        for problem in found.problems[:10]:
            name = shorten(problem.node, 40)
            click.echo(f"  {name} ({problem.op_type}): {shorten(problem.reason, 50)}")
        if len(found.problems) > 10:
            click.echo(f"  and {len(found.problems) - 10} more: --json")


def _weight(layer: Layer) -> tuple[float, int, int]:
    return (layer.seconds or 0.0, layer.cost.macs * layer.cost.repeats, layer.cost.operations)


def _row(layer: Layer, timed: bool) -> list[str]:
    from edgeopt.units import format_count, format_size

    cost = layer.cost
    shape = "?" if cost.shape is None else "x".join(map(str, cost.shape)) or "scalar"
    name = layer.original[0] if layer.original else cost.name
    if len(layer.original) > 1:
        name += f" +{len(layer.original) - 1}"
    if cost.repeats > 1:
        name += f" ({cost.repeats} times)"
    row = [
        name,
        cost.op_type,
        "fused" if cost.fused else f"{cost.kernel}{'' if cost.dtype == 'float32' else f' {cost.dtype}'}",
        shape,
        format_count(cost.macs * cost.repeats) if cost.macs else "",
        format_count(cost.parameters) if cost.parameters else "",
        format_size((cost.read_bytes + cost.written_bytes) * cost.repeats),
    ]
    if timed:
        row.append(f"{(layer.seconds or 0.0) * 1e3:.3g}")
    return row
