"""PyTorch: modules, functions that build them, and ``torch.export`` archives.

All go through torch's exporter to ONNX. Its result is cleaned: nodes get the names of the modules that
they come from (``/layer1/0/conv1/Conv``), what the exporter noted about itself is dropped, names that
it gave twice are told apart (``torch.onnx`` has written an output named like an inner value). Then
the exported model is run beside the torch module on the example inputs.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt import user_code
from edgeopt.errors import MissingExtra, ModelError, UserError, nearest
from edgeopt.load.shapes import Shapes

TOLERANCE = 1e-3
"""Largest max|Δ| over max|expected| between the exported model and the torch module, per output."""

_DYNAMIC_SIZES = (2, 32)
"""Sizes of made inputs along a dynamic first axis, the batch, and along any other."""

_log = logging.getLogger(__name__)


def build(text: str, *, base: Path | None = None) -> tuple[Any, Any]:
    """Calls ``package.module:build``, found as ``edgeopt.user_code`` finds code.

    Args:
        text: The name.
        base: The folder of the recipe, searched first.

    Returns:
        The module, and its example inputs or ``None``.

    Raises:
        UserError: There is no such function, it fails, or it returns something else.
    """
    torch = _torch(f"building {text}")
    function = user_code.load(text, base=base)
    try:
        built = function()
    except Exception as error:  # the user's own code may raise anything
        raise UserError(f"{text} fails: {type(error).__name__}: {_first_line(error)}") from error
    if isinstance(built, tuple) and len(built) == 2 and isinstance(built[0], torch.nn.Module):
        return built
    if isinstance(built, torch.nn.Module):
        return built, None
    raise UserError(
        f"{text} returns a {type(built).__name__}",
        hint="return a torch.nn.Module, or the module and its example inputs",
    )


def export_module(
    module: Any, *, example: Any, shapes: Shapes | None, weights: str | Path | None
) -> ir.Model:
    """Exports a ``torch.nn.Module`` in evaluation mode; the module is left as it was.

    Args:
        module: The module.
        example: Example inputs: one, a sequence, or a mapping by argument. ``None`` makes seeded
            standard normal ones from ``shapes``.
        shapes: Per argument its shape; an axis given by a name stays dynamic.
        weights: A ``.safetensors`` file to load into it first.

    Raises:
        UserError: There are neither example inputs nor shapes, or they do not fit the module.
        ModelError: The weights do not fit, or torch cannot export the module.
    """
    torch = _torch("exporting a torch module")
    if weights is not None:
        _load_weights(module, Path(weights))
    names = list(inspect.signature(module.forward).parameters)
    for name in shapes or {}:
        if name not in names:
            raise ModelError(
                f"the module's forward has no argument {name!r}",
                nearest=nearest(name, names),
                hint=f"its arguments are {', '.join(names)}",
            )
    arguments = _arguments(torch, module, names, example, shapes)
    training = [inner for inner in module.modules() if inner.training]
    module.eval()
    try:
        model = _export(torch, module, arguments, _dynamic(names, len(arguments), shapes))
        _compare(torch, model, module, arguments)
    finally:
        for inner in training:
            inner.training = True
    return model


def export_archive(path: Path) -> ir.Model:
    """Exports a ``torch.export`` archive; an axis is dynamic where it was exported so.

    Raises:
        ModelError: It is no such archive, or torch cannot export it.
    """
    torch = _torch(f"reading {path.name}")
    try:
        with _quiet():
            program = torch.export.load(str(path))
    except Exception as error:  # a zip, JSON, pickle or torch error, by what is broken
        raise ModelError(
            f"this is no torch.export archive, or a truncated one: {_first_line(error)}", where=str(path)
        ) from error
    arguments, keywords = program.example_inputs or (None, None)
    if arguments is None or keywords:
        raise ModelError(
            "the archive holds no positional example inputs",
            where=str(path),
            hint="export it again with torch.export.export(module, args)",
        )
    model = _export(torch, program, tuple(arguments), None)
    _compare(torch, model, program.module(), tuple(arguments))
    return model


# ---- inputs and weights


def _arguments(
    torch: Any, module: Any, names: Sequence[str], example: Any, shapes: Shapes | None
) -> tuple[Any, ...]:
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    if example is None:
        if not shapes:
            raise UserError(
                "a torch module needs example inputs or the shapes of its inputs",
                hint="return (module, inputs) from the function, or give --shape NAME=1,3,224,224",
            )
        generator = torch.Generator().manual_seed(0)
        sizes = {
            name: [
                size if isinstance(size, int) else _DYNAMIC_SIZES[axis > 0] for axis, size in enumerate(shape)
            ]
            for name, shape in shapes.items()
        }
        made = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
        return tuple(made[name].to(device) for name in names if name in made)
    if isinstance(example, Mapping):
        if unknown := [name for name in example if name not in names]:
            raise UserError(
                f"the module's forward has no argument {unknown[0]!r}", nearest=nearest(unknown[0], names)
            )
        example = [example[name] for name in names if name in example]
    elif not isinstance(example, (tuple, list)):
        example = [example]
    given = [
        torch.as_tensor(item).to(device) if isinstance(item, (np.ndarray, torch.Tensor)) else item
        for item in example
    ]
    for place, name in enumerate(names[: len(given)]):
        if shapes and name in shapes and isinstance(given[place], torch.Tensor):
            given[place] = _resized(torch, name, given[place], shapes[name])
    return tuple(given)


def _resized(torch: Any, name: str, tensor: Any, shape: Sequence[int | str]) -> Any:
    """Repeats and cuts an example until it has the sizes that were asked for."""
    if len(shape) != tensor.dim():
        raise ModelError(
            f"the input {name!r} has the shape {list(tensor.shape)} and cannot take {list(shape)}"
        )
    for axis, size in enumerate(shape):
        if isinstance(size, int) and size != tensor.shape[axis]:
            index = torch.arange(size, device=tensor.device) % tensor.shape[axis]
            tensor = tensor.index_select(axis, index)
    return tensor


def _dynamic(names: Sequence[str], count: int, shapes: Shapes | None) -> tuple[Any, ...] | None:
    """Per argument its dynamic axes, as torch.onnx.export takes them."""
    axes = [
        {axis: size for axis, size in enumerate((shapes or {}).get(name, ())) if isinstance(size, str)}
        for name in names[:count]
    ]
    return tuple(item or None for item in axes) if any(axes) else None


def _load_weights(module: Any, path: Path) -> None:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise MissingExtra("safetensors", "torch", f"reading {path.name}") from error
    if not path.is_file():
        raise ModelError("there is no such weights file", where=str(path))
    try:
        given = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError("this is no safetensors file, or a truncated one", where=str(path)) from error
    wanted = module.state_dict()
    unexpected = [name for name in given if name not in wanted]
    # the count of training steps: inference never reads it, and many files leave it out
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        name = (missing or unexpected)[0]
        what = f"lacks {name!r} of the module" if missing else f"holds {name!r}, which the module lacks"
        more = f" ({len(missing)} missing and {len(unexpected)} unexpected in all)"
        raise ModelError(
            f"the weights file {what}{more}",
            where=str(path),
            nearest=nearest(name, unexpected if missing else wanted),
        )
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            raise ModelError(
                f"the weight {name!r} has the shape {list(tensor.shape)} where the module has "
                f"{list(wanted[name].shape)}",
                where=str(path),
            )
    module.load_state_dict(given, strict=False)


# ---- export


def _torch(purpose: str) -> Any:
    for package in ("torch", "onnxscript"):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise MissingExtra(package, "torch", purpose) from error
    return importlib.import_module("torch")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch's own reports of its progress off the screen."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _export(torch: Any, source: Any, arguments: tuple[Any, ...], dynamic: tuple[Any, ...] | None) -> ir.Model:
    _log.info("exporting the torch module to ONNX")
    try:
        with _quiet():
            program = torch.onnx.export(source, arguments, dynamo=True, verbose=False, dynamic_shapes=dynamic)
    except Exception as error:  # torch.export and torch.onnx raise errors of many kinds
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ModelError(
            f"torch cannot export the module: {_first_line(cause)}",
            hint="export it with torch.export.export yourself to see torch's full report",
        ) from error
    return clean(program.model)


def clean(model: ir.Model) -> ir.Model:
    """Cleans a model that torch exported, in place: names, metadata, weights free of torch."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)
        for node in graph:
            node.name = _node_name(node)
            node.doc_string = None
            node.metadata_props.clear()
        for value in [*graph.inputs, *graph.outputs, *(out for node in graph for out in node.outputs)]:
            value.metadata_props.clear()
        graph.metadata_props.clear()
    model.metadata_props.clear()
    _tell_apart(model)
    _name_batch(model)
    return model


def _node_name(node: ir.Node) -> str:
    """Names a node by the torch module it comes from: ``/layer1/0/conv1/Conv``."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    except (ValueError, SyntaxError):
        scopes = []
    module = str(scopes[-2]) if len(scopes) >= 2 else ""
    for value in node.inputs[1:]:
        # a convolution that took up its normalization is still the convolution
        if value is not None and value.is_initializer() and (value.name or "").endswith(".weight"):
            module = str(value.name).removesuffix(".weight")
            break
    return "/" + "/".join(part for part in [*module.split("."), node.op_type] if part)


def _tell_apart(model: ir.Model) -> None:
    """Renames values and nodes whose names are taken; inputs, outputs and weights keep theirs."""
    fixed = {id(value) for value in [*model.graph.inputs, *model.graph.outputs]}
    taken: set[str | None] = {value.name for value in [*model.graph.inputs, *model.graph.outputs]}
    nodes: set[str | None] = set()
    for graph in model.graphs():
        fixed |= {id(value) for value in graph.initializers.values()}
        taken |= set(graph.initializers)
    for node in model.graph.all_nodes():
        node.name = _free(node.name or node.op_type, nodes)
        nodes.add(node.name)
        for value in node.outputs:
            if id(value) not in fixed:
                value.name = _free(value.name or node.name, taken)
                taken.add(value.name)


def _free(name: str, taken: set[str | None]) -> str:
    if name not in taken:
        return name
    count = 1
    while f"{name}_{count}" in taken:
        count += 1
    return f"{name}_{count}"


def _name_batch(model: ir.Model) -> None:
    """Calls the symbol that is the first axis of every input ``batch``, where torch named it ``s77``."""
    first = {value.shape[0] if value.shape else None for value in model.graph.inputs}
    (symbol,) = first if len(first) == 1 else (None,)
    if not isinstance(symbol, ir.SymbolicDim) or not (symbol.value or "").startswith("s"):
        return
    if not str(symbol.value)[1:].isdigit():
        return
    for graph in model.graphs():
        for value in [*graph.inputs, *graph.outputs, *(out for node in graph for out in node.outputs)]:
            if value.shape is not None and symbol in value.shape:
                value.shape = ir.Shape(["batch" if dim == symbol else dim for dim in value.shape])


# ---- comparison


def _compare(torch: Any, model: ir.Model, module: Any, arguments: tuple[Any, ...]) -> None:
    """Runs both on the example inputs.

    Raises:
        ModelError: The exported model does not run, or computes something else.
    """
    from torch.utils import _pytree as tree

    with torch.no_grad(), _quiet():
        expected = [item for item in tree.tree_leaves(module(*arguments)) if isinstance(item, torch.Tensor)]
    given = [item for item in tree.tree_leaves(arguments) if isinstance(item, torch.Tensor)]
    arrays = [item.detach().cpu().numpy() for item in given]
    if len(arrays) != len(model.graph.inputs):
        raise ModelError(
            f"the exported model has {len(model.graph.inputs)} inputs, the example {len(arrays)} tensors"
        )
    feeds = {str(value.name): array for value, array in zip(model.graph.inputs, arrays, strict=True)}
    outputs = _run(model, feeds)
    if len(outputs) != len(expected):
        raise ModelError(f"the exported model has {len(outputs)} outputs where torch has {len(expected)}")
    for value, ours, theirs in zip(model.graph.outputs, outputs, expected, strict=True):
        reference = theirs.detach().cpu().to(torch.float64).numpy()
        error = float(np.max(np.abs(ours.astype(np.float64) - reference), initial=0.0))
        scale = float(np.max(np.abs(reference), initial=0.0))
        if ours.shape != reference.shape or not error <= TOLERANCE * max(scale, 1e-6):
            raise ModelError(
                f"the exported model's output {value.name!r} differs from torch's by {error:.3g} "
                f"(the largest value is {scale:.3g})",
                hint="export the model to ONNX yourself",
            )


def _run(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="model.data")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            outputs: list[np.ndarray] = session.run(None, dict(feeds))
        except Exception as error:  # onnxruntime raises a class of its own per status code
            raise ModelError(f"onnxruntime cannot run the exported model: {_first_line(error)}") from error
    return outputs


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
