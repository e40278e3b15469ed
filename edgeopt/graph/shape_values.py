"""Integers that a graph computes from shapes, as far as they are known before it runs.

A value such as ``Concat(Gather(Shape(x), 0), [12], [64])`` is known as ``["batch", 12, 64]``: integers,
the names of symbolic dimensions, and ``None`` where nothing is known. Each is a numpy array of objects,
so that the operators that move shapes about are numpy's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.graph.building import tensor_of
from edgeopt.graph.shapes import dims

LIMIT = 64
"""Larger tensors are no shapes."""

Known = np.ndarray
"""An array of objects: int, float or bool where known, str for a symbolic dimension, or ``None``."""


_MEMO: ContextVar[dict[ir.Value, Known | None] | None] = ContextVar("known", default=None)


@contextmanager
def remembered() -> Iterator[None]:
    """While this lasts, what was found of a value is found again without looking.

    An exact rewrite changes no value's numbers, so what is known stays true; that nothing is known may
    change, and is looked at again the next time.
    """
    token = _MEMO.set({})
    try:
        yield
    finally:
        _MEMO.reset(token)


def known(value: ir.Value | None) -> Known | None:
    """What is known of a value's numbers; ``None`` where it is not computed from shapes and constants."""
    if value is None:
        return None
    memo = _MEMO.get()
    return _look_up(value, {} if memo is None else memo)


def _look_up(value: ir.Value, memo: dict[ir.Value, Known | None]) -> Known | None:
    if value not in memo:
        memo[value] = None  # a value that depends on itself is not known
        memo[value] = _known(value, memo)
    return memo[value]


def integers(value: ir.Value | None) -> list[int] | None:
    """The numbers of a value, where all are known integers."""
    found = known(value)
    if found is None or not all(isinstance(item, int) for item in found.reshape(-1)):
        return None
    return [int(item) for item in found.reshape(-1)]


def _known(value: ir.Value, memo: dict[ir.Value, Known | None]) -> Known | None:
    if value.is_graph_input():
        return None
    if value.shape is not None and math.prod(size for size in value.shape.dims if type(size) is int) > LIMIT:
        return None
    node = value.producer()
    if node is None or node.op_type == "Constant":
        tensor = tensor_of(value)
        if tensor is None or tensor.size > LIMIT or tensor.dtype == ir.DataType.STRING:
            return None
        numbers = tensor.numpy()
        return None if numbers.dtype.kind not in "iubf" else _objects(numbers.tolist())
    if node.domain not in ("", "ai.onnx") or (evaluate := _OPERATORS.get(node.op_type)) is None:
        return None
    if node.op_type in ("Shape", "Size"):
        return evaluate(node, [])
    inputs = [None if item is None else _look_up(item, memo) for item in node.inputs]
    if any(item is not None and found is None for item, found in zip(node.inputs, inputs, strict=True)):
        return None
    try:
        result = evaluate(node, inputs)
    except (ValueError, TypeError, IndexError, ZeroDivisionError):
        return None  # the operands do not fit: ONNX's own inference will have said so
    return None if result is None or result.size > LIMIT else result


def _objects(data: Any) -> Known:
    return np.array(data, dtype=object)


def _shape(node: ir.Node, _: list[Any]) -> Known | None:
    shape = dims(node.inputs[0])
    if shape is None:
        return None
    return _objects(list(shape[node.attributes.get_int("start", 0) : node.attributes.get_int("end", None)]))


def _size(node: ir.Node, _: list[Any]) -> Known | None:
    shape = dims(node.inputs[0])
    if shape is None or not all(isinstance(size, int) for size in shape):
        return None
    return _objects(math.prod(size for size in shape if isinstance(size, int)))


def _axes(node: ir.Node, inputs: list[Any]) -> list[int] | None:
    if len(inputs) > 1 and inputs[1] is not None:
        return [int(axis) for axis in inputs[1].reshape(-1)]
    given = node.attributes.get_ints("axes", None)
    return None if given is None else list(given)


def _gather(node: ir.Node, inputs: list[Any]) -> Known:
    axis = node.attributes.get_int("axis", 0)
    return _objects(np.take(inputs[0], inputs[1].astype(np.int64), axis=axis))


def _slice(node: ir.Node, inputs: list[Any]) -> Known | None:
    if len(inputs) < 3:
        return None
    starts, ends = ([int(item) for item in part] for part in inputs[1:3])
    axes = [int(item) for item in inputs[3]] if len(inputs) > 3 and inputs[3] is not None else None
    steps = [int(item) for item in inputs[4]] if len(inputs) > 4 and inputs[4] is not None else None
    axes = axes or list(range(len(starts)))
    cuts = [slice(None)] * inputs[0].ndim
    for place, axis in enumerate(axes):
        step = steps[place] if steps else 1
        if step < 0:
            return None
        cuts[axis] = slice(starts[place], ends[place], step)
    result: Known = inputs[0][tuple(cuts)]
    return result


def _unsqueeze(node: ir.Node, inputs: list[Any]) -> Known | None:
    axes = _axes(node, inputs)
    return None if axes is None else np.expand_dims(inputs[0], tuple(axes))


def _squeeze(node: ir.Node, inputs: list[Any]) -> Known:
    axes = _axes(node, inputs)
    return np.asarray(np.squeeze(inputs[0], None if axes is None else tuple(axes)))


def _concat(node: ir.Node, inputs: list[Any]) -> Known:
    return np.asarray(np.concatenate(inputs, axis=node.attributes.get_int("axis", 0)))


def _reshape(_: ir.Node, inputs: list[Any]) -> Known:
    return np.asarray(np.reshape(inputs[0], [int(item) for item in inputs[1]]))


def _cast(node: ir.Node, inputs: list[Any]) -> Known | None:
    dtype = ir.DataType(node.attributes.get_int("to", 0))
    if dtype in (ir.DataType.INT64, ir.DataType.INT32):
        return _elementwise(lambda item: item if isinstance(item, str) else int(item))(node, inputs)
    if dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return _elementwise(lambda item: item if isinstance(item, str) else float(item))(node, inputs)
    return None


def _constant_of_shape(node: ir.Node, inputs: list[Any]) -> Known | None:
    shape = [int(item) for item in inputs[0]]
    if math.prod(shape) > LIMIT:
        return None
    given = node.attributes.get("value")
    fill = 0.0 if given is None else given.as_tensor().numpy().reshape(-1)[0].item()
    return np.full(shape, fill, dtype=object)


def _elementwise(function: Callable[..., Any]) -> Callable[[ir.Node, list[Any]], Known]:
    def apply(_: ir.Node, inputs: list[Any]) -> Known:
        arrays = np.broadcast_arrays(*inputs)
        values = [
            None if None in items else function(*items)
            for items in zip(*(array.reshape(-1) for array in arrays), strict=True)
        ]
        result = np.empty(len(values), dtype=object)
        result[:] = values
        return result.reshape(arrays[0].shape)

    return apply


def _add(one: Any, two: Any) -> Any:
    if isinstance(one, str) or isinstance(two, str):
        return one if two == 0 else two if one == 0 else None
    return one + two


def _subtract(one: Any, two: Any) -> Any:
    if isinstance(one, str) or isinstance(two, str):
        return one if two == 0 else 0 if one == two else None
    return one - two


def _multiply(one: Any, two: Any) -> Any:
    if isinstance(one, str) or isinstance(two, str):
        return one if two == 1 else two if one == 1 else 0 if 0 in (one, two) else None
    return one * two


def _divide(one: Any, two: Any) -> Any:
    if isinstance(one, str) or isinstance(two, str):
        return one if two == 1 else None
    if isinstance(one, float) or isinstance(two, float):
        return one / two
    return math.trunc(one / two)


def _equal(one: Any, two: Any) -> Any:
    if isinstance(one, str) and isinstance(two, str):
        return True if one == two else None
    if isinstance(one, str) or isinstance(two, str):
        number = two if isinstance(one, str) else one
        return False if number < 0 else None  # a size is never negative
    return one == two


def _where(condition: Any, one: Any, two: Any) -> Any:
    return one if condition is True else two


def _either(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def apply(one: Any, two: Any) -> Any:
        if isinstance(one, str) or isinstance(two, str):
            return one if one == two else None
        return function(one, two)

    return apply


def _rounded(function: Callable[[float], int]) -> Callable[[Any], Any]:
    return lambda item: item if isinstance(item, str) else float(function(item))


def _identity(_: ir.Node, inputs: list[Any]) -> Known:
    result: Known = inputs[0]
    return result


_OPERATORS: dict[str, Callable[[ir.Node, list[Any]], Known | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Identity": _identity,
    "Gather": _gather,
    "Slice": _slice,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Concat": _concat,
    "Reshape": _reshape,
    "Cast": _cast,
    "ConstantOfShape": _constant_of_shape,
    "Add": _elementwise(_add),
    "Sub": _elementwise(_subtract),
    "Mul": _elementwise(_multiply),
    "Div": _elementwise(_divide),
    "Equal": _elementwise(_equal),
    "Where": _elementwise(_where),
    "Max": _elementwise(_either(max)),
    "Min": _elementwise(_either(min)),
    "Floor": _elementwise(_rounded(math.floor)),
    "Ceil": _elementwise(_rounded(math.ceil)),
}

SHAPE_OPERATORS = frozenset(_OPERATORS)
"""Operators whose results may be known."""
