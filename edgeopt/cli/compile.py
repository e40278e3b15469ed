"""``edgeopt compile``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgeopt.job import Job


@click.command()
@click.argument("model", required=False)
@click.option("--device", "-d", help="The device: a name of `edgeopt devices list`, or a profile's path.")
@click.option(
    "--data", help="A folder with calibration.npz and evaluation.npz, one file, or module:function."
)
@click.option("--metric", help="top1, top5, mae, psnr, cosine, spearman, or module:function.")
@click.option("--harness", help="module:function that runs the model where one call is not enough.")
@click.option("--target", "-t", help="The runtime; by default the device's first.")
@click.option("--format", "format_", default="", help="The artifact's format, such as onnx or ort.")
@click.option("--io", default="", help="Inputs and outputs of the file: float, or int8 (target tflite).")
@click.option("--max-drop", help="Budget on the accuracy drop, such as 1pp.")
@click.option("--min-fidelity", help="Budget on the fidelity, such as 15dB.")
@click.option("--max-size", help="Budget on the artifact's size, such as 3MiB.")
@click.option("--max-latency", help="Budget on the latency, such as 40ms.")
@click.option("--max-memory", help="Budget on the peak memory, such as 8MiB.")
@click.option("--shape", "shapes", multiple=True, metavar="NAME=1,3,224,224", help="Fix an input's shape.")
@click.option("--torch", "torch_", metavar="MODULE:BUILD", help="A function that returns a torch.nn.Module.")
@click.option("--weights", help="A .safetensors file for --torch.")
@click.option("--scheme", help="auto, static-int8, dynamic-int8, float16 or weight-only.")
@click.option("--keep-float", multiple=True, metavar="PATTERN", help="Nodes that stay in float.")
@click.option("--output", "-o", help="The artifact's folder; by default build/MODEL/DEVICE/TARGET.")
@click.option("--threads", default=1, show_default=True, help="Threads that the artifact will run with.")
@click.option("--limit", type=int, help="Judge on so many evaluation samples only.")
@click.option("--seed", default=0, show_default=True, help="The seed of everything random.")
@click.option(
    "--verify", type=click.Choice(["fast", "full", "off"]), default="fast", help="How rewrites are proved."
)
@click.option(
    "--emulate/--no-emulate",
    default=True,
    help="Compare precisions on the emulator, where it is set up, and ship the one with the least work.",
)
@click.option("--no-code", is_flag=True, help="Refuse data, metrics and harnesses that are code.")
@click.option("--strict", is_flag=True, help="Inconclusive verdicts fail, with exit code 6.")
@click.option("--force", is_flag=True, help="Overwrite an output folder that edgeopt did not write.")
@click.option(
    "--report", "reports", multiple=True, metavar="FORMAT=FILE", help="Write a report: html, json or md."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(**options: Any) -> int:
    """Turn MODEL into the best artifact for a device, and judge it.

    MODEL is an .onnx file, a .pt2 archive or a recipe. Without it edgeopt.yaml in the current folder is
    taken, and without that the built-in example.
    """
    from edgeopt import report
    from edgeopt.choosing import compile_chosen
    from edgeopt.cli.display import Terminal, show
    from edgeopt.cli.github import announce
    from edgeopt.cli.tables import write_json
    from edgeopt.compilation import compile_job
    from edgeopt.outcome import exit_code
    from edgeopt.report.json import body
    from edgeopt.report.screen import screen

    requests = [report.parse(request) for request in options["reports"]]
    watch = Terminal()
    outcomes = []
    for job in _jobs(options):
        outcome = (compile_chosen if options["emulate"] else compile_job)(job, watch=watch)
        outcomes.append(outcome)
        if not options["as_json"]:
            show(screen(outcome))
    report.write(outcomes, requests)
    announce(outcomes)
    if options["as_json"]:
        write_json(body(outcomes))
    return exit_code(outcomes)


def _jobs(options: dict[str, Any]) -> list[Job]:
    from edgeopt.errors import UserError
    from edgeopt.recipe import FILE_NAME
    from edgeopt.user_code import is_code

    model, torch = options["model"], options["torch_"]
    if torch is not None and not is_code(torch):
        raise UserError(f"--torch {torch!r} is not of the form package.module:function")
    if model is not None and torch is not None:
        raise UserError("give either MODEL or --torch, not both")
    if model is None and torch is None and Path(FILE_NAME).is_file():
        model = FILE_NAME
    if model is not None and model.endswith((".yaml", ".yml")):
        return _recipe_jobs(model, options)
    return [_single_job(model, torch, options)]


def _recipe_jobs(path: str, options: dict[str, Any]) -> list[Job]:
    """Jobs of a recipe; an option that a recipe decides is an error beside it, not ignored."""
    from edgeopt.errors import UserError
    from edgeopt.job import jobs
    from edgeopt.recipe import read_recipe

    decided = {
        "data": "data",
        "metric": "data.metric",
        "harness": "data.harness",
        "max_drop": "budget.accuracy_drop",
        "min_fidelity": "budget.fidelity",
        "max_size": "budget.size",
        "max_latency": "budget.latency",
        "max_memory": "budget.peak_memory",
        "shapes": "model.inputs",
        "weights": "model.weights",
        "scheme": "passes",
        "keep_float": "passes",
    }
    for name, key in decided.items():
        if options[name]:
            flag = {"shapes": "shape"}.get(name, name).replace("_", "-")
            raise UserError(
                f"--{flag} has no effect beside a recipe, which decides it",
                hint=f"edgeopt run {path} --set {key}=...",
            )
    settings = []
    if options["device"]:
        settings.append(f"devices=[{options['device']}]")
    if options["target"]:
        settings.append(f"output.targets=[{options['target']}]")
    if options["format_"]:
        settings.append(f"output.format={options['format_']}")
    if options["io"]:
        settings.append(f"output.io={options['io']}")
    found = jobs(
        read_recipe(Path(path), settings),
        force=options["force"],
        strict=options["strict"],
        limit=options["limit"],
        allow_code=not options["no_code"],
    )
    if options["output"]:
        if len(found) > 1:
            raise UserError(
                f"-o names one artifact's folder, and the recipe makes {len(found)}",
                hint="set output: {dir: ...} in the recipe",
            )
        from dataclasses import replace

        found = [replace(found[0], output=Path(options["output"]))]
    return found


def _single_job(model: str | None, torch: str | None, options: dict[str, Any]) -> Job:
    from edgeopt import example
    from edgeopt.cli.tables import parse_shapes
    from edgeopt.errors import UserError
    from edgeopt.job import describe

    data, metric, name = options["data"], options["metric"], None
    if model is None and torch is None:
        click.echo(f"no model given: compiling the built-in example, {example.DESCRIPTION}", err=True)
        model, name = str(example.MODEL), "example"
        data, metric = data or str(example.DATA), metric or example.METRIC
    if not options["device"]:
        raise UserError("no device given", hint="--device raspberry-pi-4; edgeopt devices list shows all")
    budgets = {
        quantity: options[option]
        for quantity, option in (
            ("size", "max_size"),
            ("latency", "max_latency"),
            ("peak_memory", "max_memory"),
            ("accuracy_drop", "max_drop"),
            ("fidelity", "min_fidelity"),
        )
        if options[option] is not None
    }
    return describe(
        torch or model,
        device=options["device"],
        target=options["target"],
        data=data,
        metric=metric,
        harness=options["harness"],
        budget=budgets,
        shapes=parse_shapes(options["shapes"]),
        weights=options["weights"],
        scheme=options["scheme"],
        keep_float=options["keep_float"],
        output=options["output"],
        format=options["format_"],
        io=options["io"],
        name=name,
        threads=options["threads"],
        limit=options["limit"],
        seed=options["seed"],
        verify=options["verify"],
        allow_code=not options["no_code"],
        strict=options["strict"],
        force=options["force"],
    )
