"""``edgeopt bisect``: the rewrite that broke a model, or where two models part."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgeopt.bisecting import Layer, Parting


@click.command()
@click.argument("model")
@click.argument("other", required=False)
@click.option("--pass", "steps", multiple=True, metavar="NAME", help="Only this pass, in this order.")
@click.option("--data", metavar="PATH", help="With OTHER: real inputs; seeded ones otherwise.")
@click.option("--samples", type=click.IntRange(min=1), default=8, show_default=True, help="With OTHER.")
@click.option("--tolerance", type=float, default=1e-4, show_default=True, help="What counts as a difference.")
@click.option("--seed", type=int, default=0, show_default=True, help="The seed of the inputs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    model: str,
    other: str | None,
    steps: tuple[str, ...],
    data: str | None,
    samples: int,
    tolerance: float,
    seed: int,
    as_json: bool,
) -> None:
    """Find the first rewrite of the exact passes that changes what MODEL computes.

    Proofs are off meanwhile. The difference is that of the outputs on seeded inputs, relative to the
    largest magnitude of each.

    With OTHER, a model or artifact made from MODEL: find the first layer whose values differ, the layer
    that adds most noise, and the passes that rewrote them.
    """
    from edgeopt.bisecting import bisect
    from edgeopt.cli.tables import write_json
    from edgeopt.errors import UserError
    from edgeopt.load import load
    from edgeopt.optimization import STANDARD

    if other is not None:
        if steps:
            raise UserError("--pass says which passes of one model to look through, and two were given")
        _two(model, other, data, samples, tolerance, seed, as_json)
        return
    if data is not None:
        raise UserError("--data is for two models", hint="edgeopt bisect ORIGINAL ARTIFACT --data PATH")
    found = bisect(load(model), steps or STANDARD, tolerance, seed)
    if as_json:
        write_json(asdict(found))
    elif not found.number:
        click.echo(f"none of {found.total} rewrites: the outputs differ by {found.error:.1e} at most")
    else:
        click.echo(f"rewrite {found.number} of {found.total}: {found.reason}")
        if found.rewrite is not None:
            click.echo(f"  {found.step}: {found.rewrite.rule} at {found.rewrite.site}")


def _two(
    one: str, other: str, data: str | None, samples: int, tolerance: float, seed: int, as_json: bool
) -> None:
    from edgeopt.bisecting import part
    from edgeopt.cli.models import open_model, sample_inputs
    from edgeopt.cli.tables import write_json
    from edgeopt.errors import ModelError

    models = [open_model(Path(one)), open_model(Path(other))]
    if models[0] is None or models[1] is None:
        compiled = one if models[0] is None else other
        raise ModelError(
            f"the artifact {compiled!r} is compiled, so its layers cannot be looked at",
            hint="edgeopt diff compares the outputs",
        )
    inputs = sample_inputs(models[0], data, samples, seed)
    found = part(models[0], models[1], inputs, tolerance, _ledger(Path(other)))
    if as_json:
        write_json({**asdict(found), "culprit": found.culprit, "samples": len(inputs)})
    else:
        _print(found, tolerance, f"{len(inputs)} {'seeded' if data is None else 'given'} samples")


def _ledger(path: Path) -> list[dict[str, Any]]:
    """The steps of an artifact's ledger; none where there is no ledger."""
    from edgeopt.errors import ModelError

    file = path / "ledger.json"
    if not file.is_file():
        return []
    try:
        steps: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["steps"]
    except (ValueError, KeyError, TypeError) as failure:
        raise ModelError("the ledger cannot be read", where=str(file)) from failure
    return steps


def _print(found: Parting, tolerance: float, samples: str) -> None:
    click.echo(f"compared {found.compared} values on {samples}")
    if found.first is None or found.costliest is None:
        click.echo(f"  none differs by more than {tolerance:g} of its largest magnitude")
        return
    _print_layer("first to differ", found.first)
    _print_layer("adds most noise", found.costliest)
    if found.culprit:
        left = found.losses[found.culprit]
        click.echo(f"  most was lost in the pass {found.culprit}, which left {left:.1f} dB")


def _print_layer(title: str, layer: Layer) -> None:
    tensor = layer.tensor
    name = " + ".join(tensor.original) or tensor.tensor
    click.echo(
        f"  {title}: {name} ({tensor.op_type}), {tensor.snr:.1f} dB, "
        f"max |d| {tensor.relative:.1e} of its largest, adds {layer.added:.1e} of its energy"
    )
    for touch in layer.touched:
        click.echo(f"      {touch.step}: {touch.rule} at {touch.site}")
