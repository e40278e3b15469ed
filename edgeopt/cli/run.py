"""``edgeopt run``: all models and devices of a recipe; the verb for CI."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("recipe", required=False)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Replace a value of the recipe.")
@click.option("--limit", type=int, help="Judge on so many evaluation samples only.")
@click.option(
    "--emulate/--no-emulate", default=True, help="Compare precisions on the emulator, where it is set up."
)
@click.option("--no-code", is_flag=True, help="Refuse data, metrics and harnesses that are code.")
@click.option("--strict", is_flag=True, help="Inconclusive verdicts fail, with exit code 6.")
@click.option("--force", is_flag=True, help="Overwrite output folders that edgeopt did not write.")
@click.option("--report", "reports", multiple=True, metavar="FORMAT=FILE", help="Write a report: json or md.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    recipe: str | None,
    settings: tuple[str, ...],
    limit: int | None,
    emulate: bool,
    no_code: bool,
    strict: bool,
    force: bool,
    reports: tuple[str, ...],
    as_json: bool,
) -> int:
    """Compile and judge all models and devices of RECIPE (by default edgeopt.yaml).

    A job that fails does not stop the others; the reports tell all of them.
    """
    from edgeopt import report
    from edgeopt.choosing import compile_chosen
    from edgeopt.cli import fail
    from edgeopt.cli.display import Terminal, show
    from edgeopt.cli.github import announce
    from edgeopt.cli.tables import write_json
    from edgeopt.compilation import compile_job
    from edgeopt.errors import EdgeoptError, RecipeError
    from edgeopt.job import jobs
    from edgeopt.outcome import exit_code
    from edgeopt.recipe import FILE_NAME, read_recipe
    from edgeopt.report.json import body
    from edgeopt.report.screen import screen

    if recipe is None and not Path(FILE_NAME).is_file():
        raise RecipeError(
            f"no recipe given, and there is no {FILE_NAME} here", hint="edgeopt run RECIPE.yaml"
        )
    requests = [report.parse(request) for request in reports]
    file = read_recipe(Path(recipe or FILE_NAME), settings)
    found = jobs(file, force=force, strict=strict, limit=limit, allow_code=not no_code)
    outcomes, failures = [], []
    watch = Terminal()
    for job in found:
        try:
            outcome = (compile_chosen if emulate else compile_job)(job, watch=watch)
        except EdgeoptError as error:
            fail(f"{job.name} on {job.platform.device.name}, {job.target.name}: {error}")
            failures.append(error)
            continue
        outcomes.append(outcome)
        if not as_json:
            show(screen(outcome))
    report.write(outcomes, requests)
    announce(outcomes)
    if as_json:
        write_json(body(outcomes))
    if failures:
        return max(error.exit_code for error in failures)
    return exit_code(outcomes)
