"""Seeded inputs of a model or of a part cut out of it: shapes, types and plausible values.

Symbolic dimensions are bound by name. Values keep to the range that the operator which makes them can
produce, and integers that are used as indices stay inside the tensor that they index.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.graph import shapes

Binding = Mapping[str, int]
"""The size of every symbolic dimension, by name."""

SIZES: tuple[tuple[int, ...], ...] = ((3, 5, 7, 4, 6, 8, 9, 10, 11, 12), (33, 35, 37, 34, 36, 38, 39, 40))
"""Distinct sizes for symbolic dimensions: the small ones first, larger ones where windows do not fit."""

_INDEX_INPUTS = {"Gather": 1, "GatherElements": 1, "GatherND": 1, "ScatterND": 1, "ScatterElements": 1}
_PASSES_ON = {
    *("Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Identity", "Slice", "Expand"),
    *("Concat", "Where", "Add", "Clip", "Tile", "Split"),
}
_POSITIVE = {"Relu", "Abs", "Exp", "Sqrt", "ReduceL2", "ReduceL1", "ReduceSumSquare", "Softplus"}
_UNIT = {"Sigmoid", "HardSigmoid", "Softmax"}


def symbols(values: Iterable[ir.Value]) -> list[str]:
    """Lists the symbolic dimensions of the values; a nameless one is named after value and axis."""
    found: dict[str, None] = {}
    for value in values:
        for axis, dim in enumerate(shapes.dims(value) or ()):
            if not isinstance(dim, int):
                found[_symbol(value, axis, dim)] = None
    return list(found)


def bindings(values: Sequence[ir.Value]) -> list[Binding]:
    """Returns the bindings to prove with: distinct sizes, and 1; one empty binding without symbols."""
    names = symbols(values)
    if not names:
        return [{}]
    return [distinct(names, SIZES[0]), dict.fromkeys(names, 1)]


def distinct(names: Sequence[str], sizes: Sequence[int]) -> Binding:
    """Binds every name to a size of its own, as long as there are enough."""
    return {name: sizes[number % len(sizes)] for number, name in enumerate(names)}


def shape_of(value: ir.Value, binding: Binding) -> tuple[int, ...] | None:
    """The shape of a value under a binding; ``None`` where its rank is unknown."""
    known = shapes.dims(value)
    if known is None:
        return None
    return tuple(
        dim if isinstance(dim, int) else binding[_symbol(value, axis, dim)] for axis, dim in enumerate(known)
    )


def array(value: ir.Value, binding: Binding, seed: int, reach: float = 1) -> np.ndarray | None:
    """Draws a value, the same one for the same name, shape and seed.

    Args:
        value: The value.
        binding: The sizes of its symbolic dimensions.
        seed: The seed.
        reach: The standard deviation of floats.

    Returns:
        An array of the value's dtype and bound shape; ``None`` where type or rank is unknown, or of a
        kind that cannot be drawn (sequences, optionals, types numpy does not have).
    """
    shape = shape_of(value, binding)
    if shape is None or value.dtype is None or not isinstance(value.type, (ir.TensorType, type(None))):
        return None
    random = np.random.default_rng([seed, zlib.crc32((value.name or "").encode())])
    if value.dtype == ir.DataType.STRING:
        return random.integers(0, 9, shape).astype(str).astype(object)
    if value.dtype == ir.DataType.BOOL:
        return random.integers(0, 2, shape).astype(bool)
    dtype = value.dtype.numpy()
    if dtype.kind == "f":
        return _floats(value, shape, random, reach).astype(dtype)
    if dtype.kind in "iu" and value.dtype.bitwidth >= 8:
        low, high = _bounds(value, binding, dtype)
        return random.integers(low, high, shape).astype(dtype)
    return None


def _floats(value: ir.Value, shape: tuple[int, ...], random: np.random.Generator, reach: float) -> np.ndarray:
    node = value.producer()
    operator = node.op_type if node is not None and node.domain in ("", "ai.onnx") else ""
    drawn = np.asarray(random.standard_normal(shape, dtype=np.float32) * np.float32(reach))
    if operator in _POSITIVE:
        return np.asarray(np.abs(drawn))
    if operator in _UNIT:
        return np.asarray(1 / (1 + np.exp(-drawn)))
    if operator == "Tanh":
        return np.asarray(np.tanh(drawn))
    return np.asarray(drawn)


def _bounds(value: ir.Value, binding: Binding, dtype: np.dtype) -> tuple[int, int]:
    """The half-open range of an integer: that of the tensor it indexes, all of a small type, or [0, 8)."""
    rows = _indexed(value, binding)
    if rows is not None:
        return 0, max(1, rows)
    if dtype.itemsize == 1:
        info = np.iinfo(dtype)
        return int(info.min), int(info.max) + 1
    return 0, 8


def _indexed(value: ir.Value, binding: Binding) -> int | None:
    """The smallest axis that a value indexes, directly or through operators that pass values on."""
    smallest: int | None = None
    seen, todo = {value}, [value]
    while todo:
        for use in todo.pop().uses():
            node = use.node
            if _INDEX_INPUTS.get(node.op_type) == use.idx:
                data = node.inputs[0]
                known = None if data is None else shapes.dims(data)
                if data is None or not known:
                    continue
                axis = node.attributes.get_int("axis", 0)
                size = known[axis] if node.op_type not in ("GatherND", "ScatterND") else known[0]
                if not isinstance(size, int):
                    size = binding.get(_symbol(data, axis % len(known), size), 1)
                smallest = size if smallest is None else min(smallest, size)
            elif node.op_type in _PASSES_ON:
                for output in node.outputs:
                    if output not in seen:
                        seen.add(output)
                        todo.append(output)
    return smallest


def _symbol(value: ir.Value, axis: int, dim: str | None) -> str:
    return dim if dim is not None else f"{value.name}[{axis}]"
