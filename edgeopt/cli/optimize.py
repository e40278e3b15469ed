"""``edgeopt optimize``: exact passes only."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeopt import __version__
from edgeopt.errors import OutputError

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgeopt.graph.change import Change
    from edgeopt.passes.base import Pass

WRITTEN_BY = "edgeopt.written_by"
"""The metadata key that tells our files from others."""

ONE_FILE = 1_900_000_000
"""Models with more bytes of weights than this get an external data file: protobuf ends at 2 GiB."""


@click.command()
@click.argument("model")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The ONNX file to write; above 2 GB the weights go beside it.",
)
@click.option(
    "--pass", "steps", multiple=True, metavar="NAME", help="Run this pass, in this order; all by default."
)
@click.option(
    "--verify",
    type=click.Choice(["fast", "full", "off"]),
    default="fast",
    show_default=True,
    help="Prove every rewrite by itself, compare whole models too, or prove nothing.",
)
@click.option("--opset", type=int, help="Raise the model to this opset first; it keeps its own by default.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.option("--force", is_flag=True, help="Overwrite an output that edgeopt did not write.")
def command(
    model: str,
    output: Path,
    steps: tuple[str, ...],
    verify: Any,
    opset: int | None,
    as_json: bool,
    force: bool,
) -> None:
    """Simplify and fuse MODEL without changing what it computes."""
    from edgeopt.graph.names import all_nodes
    from edgeopt.load import load
    from edgeopt.optimization import STANDARD, exact_passes, optimized
    from edgeopt.units import format_size

    names = steps or STANDARD
    exact_passes(names, opset)
    check_output(output, force)
    loaded = load(model, mapped=True)
    before = sum(1 for _ in all_nodes(loaded))

    def tell(item: Pass, change: Change) -> None:
        if not as_json:
            click.echo(f"  {item.name:<18} {change.summary}")
            for note in change.notes:
                click.echo(f"  {'':<18} note: {note}", err=True)

    result, changes = optimized(loaded, steps=names, opset=opset, verify=verify, told=tell)
    after = sum(1 for _ in all_nodes(result))
    written = write(result, output)
    if as_json:
        report = {
            "model": model,
            "output": os.fspath(output),
            "files": [os.fspath(path) for path in written],
            "bytes": sum(path.stat().st_size for path in written),
            "nodes": {"before": before, "after": after},
            "passes": [{"name": item.name, **change.to_json()} for item, change in changes],
        }
        click.echo(json.dumps(report, indent=2))
    else:
        size = sum(path.stat().st_size for path in written)
        click.echo(f"{before} -> {after} nodes, {format_size(size)} in {output}")


def check_output(output: Path, force: bool) -> None:
    """Refuses an output that cannot be, or must not be, written, before any work is done.

    Raises:
        OutputError: The folder is missing or not writable, or the file is not ours.
    """
    folder = output.parent
    if not folder.is_dir():
        raise OutputError(f"there is no folder {str(folder)!r} to write to")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"the folder {str(folder)!r} cannot be written to")
    if output.is_dir():
        raise OutputError(f"the output {str(output)!r} is a folder")
    if output.exists() and not force and not _is_ours(output):
        raise OutputError(f"the output {str(output)!r} exists and edgeopt did not write it", hint="--force")


def write(model: ir.Model, output: Path) -> list[Path]:
    """Writes a model under a temporary name and renames it when it is whole; weights above 2 GB beside it.

    Raises:
        OutputError: It cannot be written, as when the disk is full.
    """
    import onnx_ir as ir

    from edgeopt.graph.serialize import embed, save, tensors

    model.metadata_props[WRITTEN_BY] = f"edgeopt {__version__}"
    data = f"{output.name}.data" if sum(item.nbytes for item in tensors(model)) > ONE_FILE else None
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    except OSError as failure:
        raise OutputError(f"cannot write to {str(output.parent)!r}: {failure.strerror}") from None
    try:
        if data is None:
            embed(model)
            save(model, folder / output.name)
        else:
            ir.save(model, folder / output.name, external_data=data)
        names = [name for name in (data, output.name) if name is not None]
        for name in names:
            (folder / name).replace(output.parent / name)
    except OSError as failure:
        raise OutputError(f"cannot write {str(output)!r}: {failure.strerror or failure}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return [output.parent / name for name in reversed(names)]


def _is_ours(path: Path) -> bool:
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # whatever it holds, it is no model of ours
        return False
    return any(entry.key == WRITTEN_BY for entry in model.metadata_props)
