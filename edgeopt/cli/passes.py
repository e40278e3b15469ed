"""``edgeopt passes``: the passes there are and their options."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgeopt.passes.base import Options


@click.group()
def command() -> None:
    """List and show passes."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_passes(as_json: bool) -> None:
    """List the known passes and plans."""
    from edgeopt import passes
    from edgeopt.cli.tables import table, write_json

    found = [describe(passes.find(name)) for name in passes.names()]
    if as_json:
        write_json({"passes": found})
        return
    header = ["pass", "kind", "stage", "keeps", "does"]
    rows = [[item[key] for key in ("name", "kind", "stage", "keeps", "summary")] for item in found]
    click.echo(table(header, rows, left=range(5), gives=4))


@command.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(name: str, as_json: bool) -> None:
    """Show what a pass does and its options with their defaults."""
    from edgeopt import passes
    from edgeopt.cli.tables import write_json

    found = describe(passes.find(name))
    if as_json:
        write_json(found)
        return
    click.echo(f"{found['name']}: {found['summary']}")
    click.echo(f"  {found['kind']}, stage {found['stage']}, keeps {found['keeps']}")
    if found["reads"]:
        click.echo(f"  reads {', '.join(found['reads'])}")
    if found["description"]:
        click.echo()
        click.echo(found["description"])
    if found["options"]:
        click.echo()
        click.echo("options")
    for option in found["options"]:
        click.echo(f"  {option['name']}: {option['type']} = {option['default']}")
        if option["help"]:
            click.echo(f"      {option['help']}")


def describe(kind: type[Options]) -> dict[str, Any]:
    """Describes a pass or plan as plain JSON data, from its class and docstring."""
    import dataclasses
    import inspect

    from edgeopt.passes.base import Plan

    text = inspect.getdoc(kind) or ""
    body, helps = _split(text)
    summary, _, description = body.partition("\n")
    options = []
    for field in dataclasses.fields(kind):
        default: Any = field.default
        factory: Any = field.default_factory
        if factory is not dataclasses.MISSING:
            default = factory()
        elif default is dataclasses.MISSING:
            default = "required"
        options.append(
            {
                "name": field.name,
                "type": field.type if isinstance(field.type, str) else field.type.__name__,
                "default": default,
                "help": helps.get(field.name, ""),
            }
        )
    try:
        reads = sorted(kind().reads)
    except TypeError:  # an option has no default, so there is no pass to ask
        reads = []
    return {
        "name": kind.name,
        "kind": "plan" if issubclass(kind, Plan) else "pass",
        "stage": kind.stage,
        "keeps": kind.keeps,
        "version": kind.version,
        "reads": reads,
        "summary": summary.strip(),
        "description": description.strip(),
        "options": options,
    }


def _split(text: str) -> tuple[str, dict[str, str]]:
    """Takes the section ``Attributes`` or ``Args`` out of a docstring: its body and the options' help."""
    parts = re.split(r"^(?:Attributes|Args|Options):\s*$", text, maxsplit=1, flags=re.MULTILINE)
    if len(parts) == 1:
        return text, {}
    section, _, after = parts[1].partition("\n\n")
    helps: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        match = re.match(r"^ {4}(\w+)(?: \([^)]*\))?: (.*)$", line)
        if match:
            name = match[1]
            helps[name] = match[2].strip()
        elif name and line.strip():
            helps[name] += " " + line.strip()
    return f"{parts[0].rstrip()}\n\n{after.strip()}".strip(), helps
