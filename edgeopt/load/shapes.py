"""Fixing the sizes of a model's dynamic inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from edgeopt.errors import ModelError, nearest

Shapes = Mapping[str, Sequence[int | str]]
"""Per input its shape; an axis given by a name stays dynamic under that name."""


def fix_shapes(model: ir.Model, shapes: Shapes | None) -> ir.Model:
    """Binds inputs of a model to shapes, in place.

    A symbolic dimension that is bound at one input is bound wherever its name occurs; shapes of
    intermediate values that are expressions of it are forgotten, for shape inference to find anew.

    Raises:
        ModelError: There is no such input, or the shape contradicts the model.
    """
    if not shapes:
        return model
    inputs = {value.name or "": value for value in model.graph.inputs}
    bound: dict[str, int | str] = {}
    for name, wanted in shapes.items():
        if name not in inputs:
            raise ModelError(
                f"the model has no input {name!r}",
                nearest=nearest(name, inputs),
                hint=f"its inputs are {', '.join(inputs)}",
            )
        if any(isinstance(size, int) and size <= 0 for size in wanted):
            raise ModelError(f"the shape {list(wanted)} of the input {name!r} has a size below 1")
        _bind(inputs[name], wanted, bound)
    for graph in model.graphs():
        for value in [*graph.inputs, *graph.outputs, *(out for node in graph for out in node.outputs)]:
            _substitute(value, bound)
    return model


def _bind(value: ir.Value, wanted: Sequence[int | str], bound: dict[str, int | str]) -> None:
    if value.shape is None:
        value.shape = ir.Shape(list(wanted))
        return
    given = list(value.shape)
    fits = len(given) == len(wanted) and all(
        not isinstance(old, int) or old == new for old, new in zip(given, wanted, strict=True)
    )
    if not fits:
        raise ModelError(
            f"the input {value.name!r} has the shape {_text(given)} and cannot take {_text(list(wanted))}"
        )
    for old, new in zip(given, wanted, strict=True):
        if isinstance(old, int) or old.value is None:
            continue
        if bound.setdefault(old.value, new) != new:
            raise ModelError(
                f"the dimension {old.value!r} cannot be both {bound[old.value]} and {new}",
                where=f"input {value.name!r}",
            )
    value.shape = ir.Shape(list(wanted))


def _substitute(value: ir.Value, bound: Mapping[str, int | str]) -> None:
    if value.shape is None or all(isinstance(dim, int) for dim in value.shape):
        return
    sizes: list[int | str | None] = []
    for dim in value.shape:
        if isinstance(dim, int):
            sizes.append(dim)
        elif dim.value is not None and dim.value in bound:
            sizes.append(bound[dim.value])
        else:
            names = dim.free_symbols() if dim.value is not None else frozenset[str]()
            sizes.append(None if names & bound.keys() else dim.value)
    value.shape = ir.Shape(sizes)


def _text(shape: Sequence[object]) -> str:
    return "[" + ", ".join(str(getattr(size, "value", size) or "?") for size in shape) + "]"
