"""The frontends: whatever a user has becomes one ``onnx_ir.Model``.

    load("model.onnx")                      an ONNX file; external data stay in their files
    load("model.pt2")                       a torch.export archive
    load("package.module:build")            a function that returns a torch.nn.Module
    load(module, example=(tensor,))         a torch.nn.Module itself
    load(proto), load(data), load(model)    onnx.ModelProto, its bytes, onnx_ir.Model

What comes out is whole: every node reads a value that exists, nodes stand in topological order,
weights are there and finite, inputs are what a caller must feed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from edgeopt import user_code
from edgeopt.errors import ModelError, UserError
from edgeopt.load.checks import check
from edgeopt.load.operators import UnknownOperator, refuse_unknown_operators, unknown_operators
from edgeopt.load.shapes import Shapes, fix_shapes

__all__ = ["Shapes", "UnknownOperator", "fix_shapes", "load", "refuse_unknown_operators", "unknown_operators"]


def load(
    source: Any,
    *,
    weights: str | Path | None = None,
    shapes: Shapes | None = None,
    example: Any = None,
    allow_code: bool = True,
    base: Path | None = None,
    mapped: bool = False,
) -> ir.Model:
    """Loads a model from any source and checks it.

    Args:
        source: The path of an ``.onnx`` or ``.pt2`` file, ``package.module:build`` (a function of no
            arguments that returns a ``torch.nn.Module``, or the module and its example inputs), or an
            ``onnx.ModelProto``, its bytes, an ``onnx_ir.Model`` (which is not changed), or a
            ``torch.nn.Module``.
        weights: A ``.safetensors`` file for the torch module.
        shapes: Per input its shape: a size per axis, or a name for an axis that stays dynamic.
        example: Example inputs of a torch module: an array or tensor, a sequence, or a mapping by the
            names of its arguments. Without them they are made from ``shapes``.
        allow_code: Whether ``package.module:build`` may run, and ``.pt2`` archives, which can hold pickled
            code, may be opened.
        base: The folder where code is looked for first, such as the recipe's.
        mapped: Leave the weights of a large ``.onnx`` file where they are and map them. It is quick and takes
            no memory; the file must not be written into while the model lives.

    Returns:
        A model of its own. Weights in external files are memory-mapped when they are read.

    Raises:
        ModelError: There is no such model, or it is corrupt or incomplete.
        UserError: An argument does not fit the source.
        MissingExtra: torch is needed and not installed.
    """
    if isinstance(source, (str, Path)):
        text = str(source)
        if not Path(text).exists() and user_code.is_code(text):
            return _from_function(text, weights, shapes, example, allow_code, base)
        return _from_file(Path(text), weights, shapes, allow_code, mapped)
    if _is_torch_module(source):
        from edgeopt.load.torch_module import export_module

        return check(export_module(source, example=example, shapes=shapes, weights=weights))
    _no_weights(weights)
    if isinstance(source, ir.Model):
        model = source.clone()
    elif isinstance(source, onnx.ModelProto):
        from edgeopt.load.onnx_file import from_proto

        model = from_proto(source, name="the model")
    elif isinstance(source, (bytes, bytearray, memoryview)):
        from edgeopt.load.onnx_file import from_bytes

        model = from_bytes(bytes(source), name="the model")
    else:
        raise UserError(
            f"a {type(source).__name__} is no model",
            hint="a path, package.module:build, onnx.ModelProto, onnx_ir.Model or torch.nn.Module",
        )
    return fix_shapes(check(model), shapes)


def _from_file(
    path: Path, weights: str | Path | None, shapes: Shapes | None, allow_code: bool, mapped: bool
) -> ir.Model:
    _no_weights(weights)
    if not path.exists():
        raise ModelError("there is no such model file", where=str(path), hint=_neighbours(path))
    if path.is_dir():
        raise ModelError("the model is a folder, not a file", where=str(path))
    if path.suffix == ".pt2":
        if not allow_code:
            raise UserError(
                "a .pt2 archive can hold pickled code, and running code is not allowed here",
                where=str(path),
                hint="drop --no-code, or export it to ONNX",
            )
        from edgeopt.load.torch_module import export_archive

        return fix_shapes(check(export_archive(path), where=str(path)), shapes)
    from edgeopt.load.onnx_file import from_path

    return fix_shapes(check(from_path(path, mapped), where=str(path)), shapes)


def _from_function(
    text: str,
    weights: str | Path | None,
    shapes: Shapes | None,
    example: Any,
    allow_code: bool,
    base: Path | None,
) -> ir.Model:
    if not allow_code:
        raise UserError(f"{text} is code, and running code is not allowed here", hint="drop --no-code")
    from edgeopt.load.torch_module import build, export_module

    module, own = build(text, base=base)
    return check(
        export_module(module, example=own if example is None else example, shapes=shapes, weights=weights)
    )


def _no_weights(weights: str | Path | None) -> None:
    if weights is not None:
        raise UserError(
            "weights can be given only for a torch module", hint="--torch package.module:build --weights FILE"
        )


def _is_torch_module(source: Any) -> bool:
    """Whether it is a torch.nn.Module, found without importing torch."""
    return any(
        kind.__module__ == "torch.nn.modules.module" and kind.__name__ == "Module"
        for kind in type(source).__mro__
    )


def _neighbours(path: Path) -> str | None:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist either"
    found: Sequence[str] = sorted(item.name for item in folder.iterdir() if item.suffix in (".onnx", ".pt2"))
    return f"one of {', '.join(found[:5])}" if found else None
