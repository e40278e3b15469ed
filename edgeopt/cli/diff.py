"""``edgeopt diff``: where two models or artifacts differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from edgeopt.diff import Difference, Structure, TensorDifference
    from edgeopt.session import Session


@click.command()
@click.argument("one")
@click.argument("other")
@click.option("--data", metavar="PATH", help="Real inputs; seeded ones otherwise.")
@click.option("--samples", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--layers", default="15", show_default=True, metavar="N|all", help="How many layers to show.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(one: str, other: str, data: str | None, samples: int, layers: str, as_json: bool) -> None:
    """Show where two models or artifacts differ: in structure, and tensor by tensor.

    ONE counts as right. Each is a model file or an artifact's folder. Signal over noise is in decibels,
    200 where equal. Layers are listed from the worst on; with --layers all, in the order of ONE.
    """
    from edgeopt.cli.models import open_model, sample_inputs
    from edgeopt.cli.tables import write_json
    from edgeopt.diff import diff, diff_sessions
    from edgeopt.errors import ModelError, UserError

    if layers != "all" and not layers.isdigit():
        raise UserError(f"--layers {layers!r} is neither a number nor 'all'")
    models = [open_model(Path(one)), open_model(Path(other))]
    known = next((model for model in models if model is not None), None)
    if known is None:
        raise ModelError("neither of the two can be looked into: both are compiled artifacts")
    inputs = sample_inputs(known, data, samples)
    if models[0] is not None and models[1] is not None:
        found = diff(models[0], models[1], inputs, seeded=data is None)
    else:
        with _session(Path(one)) as first, _session(Path(other)) as second:
            found = diff_sessions(first, second, inputs, seeded=data is None)
    if as_json:
        write_json(found.to_json())
        return
    _print(found, None if layers == "all" else int(layers))


def _session(path: Path) -> Session:
    """Opens what stands at a path for running: an artifact by its target, a model in reference mode."""
    from edgeopt.artifact import is_artifact, open_artifact
    from edgeopt.errors import ModelError

    if not (path.is_dir() and is_artifact(path)):
        return _reference(path)
    sessions = open_artifact(path).open()
    if len(sessions) != 1:
        raise ModelError(f"the artifact {str(path)!r} has several parts: {', '.join(sessions)}")
    return next(iter(sessions.values()))


def _reference(path: Path) -> Session:
    from edgeopt.graph.execute import Executor
    from edgeopt.load import load
    from edgeopt.session import Session, signature

    model = load(str(path))

    class Reference(Session):
        """A model in reference mode."""

        inputs = signature(model.graph.inputs)
        outputs = signature(model.graph.outputs)
        executor = Executor(model)

        def run(self, feeds: object) -> dict[str, np.ndarray]:
            return self.executor.run(feeds)  # type: ignore[arg-type]

        def close(self) -> None:
            self.executor.close()

    return Reference()


def _print(found: Difference, limit: int | None) -> None:
    from edgeopt.cli.tables import shorten, table

    if found.structure is not None:
        _print_structure(found.structure)
    kind = "seeded" if found.seeded else "given"
    click.echo(f"compared {len(found.tensors)} tensors on {found.samples} {kind} samples")
    for name, snr in found.outputs.items():
        click.echo(f"  output {shorten(name, 50)}: {_decibels(snr)}")
    for title, tensor in (("first to differ", found.first), ("worst", found.worst)):
        if tensor is not None:
            name = shorten(_name(tensor), 50)
            click.echo(
                f"  {title}: {name} ({tensor.op_type}), {_decibels(tensor.snr)}, max |d| {tensor.largest:.3g}"
            )
    if found.first is None:
        click.echo("  no tensor differs by more than rounding")
        return
    shown: Sequence[TensorDifference] = found.tensors
    if limit is not None:
        shown = sorted(found.tensors, key=lambda tensor: tensor.snr)[:limit]
    rows = [
        [
            _name(tensor),
            tensor.op_type,
            _decibels(tensor.snr),
            f"{tensor.largest:.3g}",
            f"{tensor.relative:.2%}",
        ]
        for tensor in shown
    ]
    click.echo()
    click.echo(table(["layer", "operator", "signal/noise", "max |d|", "relative"], rows, left=(0, 1)))
    if len(shown) < len(found.tensors):
        click.echo(f"and {len(found.tensors) - len(shown)} more: --layers all")


def _print_structure(structure: Structure) -> None:
    from edgeopt.cli.tables import shorten

    if structure.same:
        click.echo("the graphs are the same")
        return
    for line in structure.interface:
        click.echo(line)
    operators = ", ".join(f"{count:+d} {name}" for name, count in structure.operators.items())
    lists = (
        ("operators", [operators] if operators else []),
        ("nodes gone", structure.removed),
        ("nodes new", structure.added),
        ("constants changed", structure.initializers),
        ("constants gone", structure.removed_initializers),
        ("constants new", structure.added_initializers),
    )
    for title, names in lists:
        if names:
            count = "" if title == "operators" else f"{len(names)}: "
            click.echo(f"{title:18} {count}{shorten(', '.join(names), 70)}")


def _name(tensor: TensorDifference) -> str:
    return " + ".join(tensor.original) or tensor.tensor


def _decibels(snr: float) -> str:
    return "equal" if snr >= 200 else f"{snr:.1f} dB"
