"""The few operators that models compute shapes, axes and indices with, in numpy.

They follow the ONNX operator specification for the cases that occur in shape arithmetic; anything else
is left to the shape inference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from edgeopt.graph.sizes import Tensor


class Unfoldable(Exception):
    """The node is not computed here."""


def fold(node: ir.Node, inputs: Sequence[Tensor | None], limit: int) -> list[np.ndarray]:
    """Computes a node's outputs.

    Args:
        node: The node.
        inputs: What is known of its inputs.
        limit: The largest number of elements of an output.

    Raises:
        Unfoldable: An input is unknown, the operator is none of these, or the output is too large.
    """
    if node.domain != "":
        raise Unfoldable
    if node.op_type in ("Shape", "Size"):
        return [_shape(node, inputs)]
    if node.op_type == "Constant":
        return [_constant(node, limit)]
    function = _FUNCTIONS.get(node.op_type)
    if function is None or any(tensor is not None and tensor.value is None for tensor in inputs):
        raise Unfoldable
    arrays = [None if tensor is None else tensor.value for tensor in inputs]
    if node.op_type in ("ConstantOfShape", "Expand", "Tile", "Range"):
        _refuse_large(node.op_type, arrays, limit)
    result = function(node, arrays)
    outputs = result if isinstance(result, list) else [result]
    if any(output.size > limit for output in outputs):
        raise Unfoldable
    return [np.asarray(output) for output in outputs]


def _shape(node: ir.Node, inputs: Sequence[Tensor | None]) -> np.ndarray:
    tensor = inputs[0]
    if tensor is None or tensor.shape is None:
        raise Unfoldable
    if node.op_type == "Size":
        return np.array(tensor.elements, np.int64)
    start, end = _attribute(node, "start", 0), _attribute(node, "end", None)
    return np.array(tensor.shape[start:end], np.int64)


def _constant(node: ir.Node, limit: int) -> np.ndarray:
    for name, attribute in node.attributes.items():
        if name == "value":
            tensor = attribute.as_tensor()
            if tensor.size > limit or tensor.dtype.bitwidth < 8 or tensor.dtype == ir.DataType.BFLOAT16:
                raise Unfoldable
            return tensor.numpy()
        if name in ("value_int", "value_ints"):
            return np.array(attribute.value, np.int64)
        if name in ("value_float", "value_floats"):
            return np.array(attribute.value, np.float32)
    raise Unfoldable


def _refuse_large(op_type: str, arrays: Sequence[Any], limit: int) -> None:
    """Refuses before memory is asked for: a shape from a file can be of any size."""
    if op_type == "Range":
        size = float((arrays[1] - arrays[0]) / arrays[2])
    elif op_type == "Tile":
        size = float(arrays[0].size * np.prod(arrays[1].astype(np.float64)))
    else:
        size = float(np.prod(arrays[-1].astype(np.float64)))
    if size > limit:
        raise Unfoldable


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value


def _axes(node: ir.Node, arrays: Sequence[Any]) -> tuple[int, ...] | None:
    given = arrays[1] if len(arrays) > 1 and arrays[1] is not None else _attribute(node, "axes", None)
    return None if given is None else tuple(int(axis) for axis in np.atleast_1d(given))


def _unsqueeze(node: ir.Node, arrays: Sequence[Any]) -> np.ndarray:
    axes = _axes(node, arrays)
    if axes is None:
        raise Unfoldable
    return np.expand_dims(arrays[0], axes)


def _slice(node: ir.Node, arrays: Sequence[Any]) -> np.ndarray:
    data = arrays[0]
    if len(arrays) > 2:
        starts, ends = arrays[1], arrays[2]
        axes = arrays[3] if len(arrays) > 3 and arrays[3] is not None else range(len(starts))
        steps = arrays[4] if len(arrays) > 4 and arrays[4] is not None else [1] * len(starts)
    else:
        starts, ends = _attribute(node, "starts", ()), _attribute(node, "ends", ())
        axes, steps = _attribute(node, "axes", range(len(starts))), [1] * len(starts)
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # An end before the first element, walking backwards, cannot be written as a Python slice.
        last = None if step < 0 and end < -data.shape[int(axis)] else int(end)
        index[int(axis)] = slice(int(start), last, int(step))
    result: np.ndarray = data[tuple(index)]
    return result


def _divide(node: ir.Node, arrays: Sequence[Any]) -> np.ndarray:
    one, other = arrays
    if np.issubdtype(one.dtype, np.integer):  # ONNX truncates towards zero
        return np.asarray(np.trunc(one / other)).astype(one.dtype)
    return np.asarray(one / other)


def _reshape(node: ir.Node, arrays: Sequence[Any]) -> np.ndarray:
    data, shape = arrays
    sizes = [
        data.shape[axis] if size == 0 and not _attribute(node, "allowzero", 0) else int(size)
        for axis, size in enumerate(shape)
    ]
    return np.asarray(data.reshape(sizes))


def _split(node: ir.Node, arrays: Sequence[Any]) -> list[np.ndarray]:
    given = arrays[1] if len(arrays) > 1 and arrays[1] is not None else _attribute(node, "split", None)
    axis = _attribute(node, "axis", 0)
    if given is None:
        return list(np.array_split(arrays[0], len(node.outputs), axis))
    return list(np.split(arrays[0], np.cumsum(given)[:-1], axis))


def _reduce(function: Callable[..., Any]) -> Callable[[ir.Node, Sequence[Any]], np.ndarray]:
    def reduce(node: ir.Node, arrays: Sequence[Any]) -> np.ndarray:
        keep = bool(_attribute(node, "keepdims", 1))
        return np.asarray(function(arrays[0], axis=_axes(node, arrays), keepdims=keep))

    return reduce


def _numpy(function: Callable[..., Any]) -> Callable[[ir.Node, Sequence[Any]], np.ndarray]:
    return lambda node, arrays: np.asarray(function(*arrays))


def _constant_of_shape(node: ir.Node, arrays: Sequence[Any]) -> np.ndarray:
    value = node.attributes.get("value")
    fill = np.zeros(1, np.float32) if value is None else value.as_tensor().numpy()
    return np.full(tuple(int(size) for size in arrays[0]), fill.reshape(()), fill.dtype)


_FUNCTIONS: dict[str, Callable[[ir.Node, Sequence[Any]], np.ndarray | list[np.ndarray]]] = {
    "Identity": lambda node, arrays: arrays[0],
    "Gather": lambda node, arrays: np.asarray(
        np.take(arrays[0], arrays[1], axis=_attribute(node, "axis", 0))
    ),
    "Unsqueeze": _unsqueeze,
    "Squeeze": lambda node, arrays: np.asarray(np.squeeze(arrays[0], _axes(node, arrays))),
    "Concat": lambda node, arrays: np.concatenate(arrays, axis=_attribute(node, "axis", 0)),
    "Cast": lambda node, arrays: arrays[0].astype(ir.DataType(_attribute(node, "to", 1)).numpy()),
    "Slice": _slice,
    "Reshape": _reshape,
    "Transpose": lambda node, arrays: np.transpose(arrays[0], _attribute(node, "perm", None)),
    "Split": _split,
    "Add": _numpy(np.add),
    "Sub": _numpy(np.subtract),
    "Mul": _numpy(np.multiply),
    "Div": _divide,
    "Neg": _numpy(np.negative),
    "Floor": _numpy(np.floor),
    "Ceil": _numpy(np.ceil),
    "Sqrt": _numpy(np.sqrt),
    "Equal": _numpy(np.equal),
    "Less": _numpy(np.less),
    "Greater": _numpy(np.greater),
    "Not": _numpy(np.logical_not),
    "And": _numpy(np.logical_and),
    "Or": _numpy(np.logical_or),
    "Where": _numpy(np.where),
    "Min": lambda node, arrays: np.minimum.reduce(arrays),
    "Max": lambda node, arrays: np.maximum.reduce(arrays),
    "ReduceProd": _reduce(np.prod),
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "Range": _numpy(np.arange),
    "Expand": lambda node, arrays: arrays[0] * np.ones(arrays[1], arrays[0].dtype),
    "Tile": _numpy(np.tile),
    "ConstantOfShape": _constant_of_shape,
}
