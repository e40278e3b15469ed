"""``edgeopt cache``: the store of steps."""

from __future__ import annotations

import click


@click.group()
def command() -> None:
    """Show or clear the store of steps."""


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(as_json: bool) -> None:
    """Show where the store lies and what it takes."""
    from edgeopt.cli.tables import write_json
    from edgeopt.steps import Store
    from edgeopt.units import format_size

    store = Store()
    entries, size = sum(1 for _ in store.entries()), store.size()
    if as_json:
        write_json({"folder": str(store.folder), "entries": entries, "bytes": size})
    else:
        click.echo(f"{store.folder}: {entries} entries, {format_size(size)}")


@command.command()
def clear() -> None:
    """Delete every stored step and judgement."""
    from edgeopt.steps import Store
    from edgeopt.units import format_size

    store = Store()
    size = store.size()
    store.clear()
    click.echo(f"freed {format_size(size)}")
