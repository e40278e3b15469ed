"""``edgeopt bisect``: the rewrite that broke a model."""

from __future__ import annotations

from dataclasses import asdict

import click


@click.command()
@click.argument("model")
@click.option("--pass", "steps", multiple=True, metavar="NAME", help="Only this pass, in this order.")
@click.option("--tolerance", type=float, default=1e-4, show_default=True, help="What counts as a difference.")
@click.option("--seed", type=int, default=0, show_default=True, help="The seed of the inputs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(model: str, steps: tuple[str, ...], tolerance: float, seed: int, as_json: bool) -> None:
    """Find the first rewrite of the exact passes that changes what MODEL computes.

    Proofs are off meanwhile. The difference is that of the outputs on seeded inputs, relative to the
    largest magnitude of each.
    """
    from edgeopt.bisecting import bisect
    from edgeopt.cli.tables import write_json
    from edgeopt.load import load
    from edgeopt.optimization import STANDARD

    found = bisect(load(model), steps or STANDARD, tolerance, seed)
    if as_json:
        write_json(asdict(found))
    elif not found.number:
        click.echo(f"none of {found.total} rewrites: the outputs differ by {found.error:.1e} at most")
    else:
        click.echo(f"rewrite {found.number} of {found.total}: {found.reason}")
        if found.rewrite is not None:
            click.echo(f"  {found.step}: {found.rewrite.rule} at {found.rewrite.site}")
