"""Types and shapes of all values, as far as ONNX's own inference knows them."""

from __future__ import annotations

import onnx
import onnx_ir as ir

SMALL = 1024
"""Initializers above this many bytes cannot matter for a shape and are not shown to the inference."""


def without_weights(model: ir.Model) -> onnx.ModelProto:
    """Returns the model as a proto in which large initializers have become inputs of their shape.

    ONNX's C++ tools take a serialized model and so cannot take one above 2 GB; what they are asked here
    does not depend on the numbers. The model itself is not changed.
    """
    clone = model.clone()
    for graph in clone.graphs():
        for name, value in list(graph.initializers.items()):
            tensor = value.const_value
            if tensor is None:
                continue
            value.type = ir.TensorType(tensor.dtype)
            value.shape = ir.Shape(tuple(tensor.shape.numpy()))
            if graph is clone.graph and tensor.nbytes > SMALL:
                del graph.initializers[name]
                value.const_value = None
                if not value.is_graph_input():
                    graph.inputs.append(value)
    proto: onnx.ModelProto = ir.to_proto(clone)
    return proto


def infer_shapes(model: ir.Model) -> bool:
    """Fills in types and shapes in place, never replacing what is known by less.

    Returns:
        Whether the inference ran; where the model has an operator unknown to it, shapes stay as they were.
    """
    try:
        proto = onnx.shape_inference.infer_shapes(without_weights(model), data_prop=True)
    except Exception:  # the C++ checker raises several classes; a model without shapes is still a model
        return False
    inferred = ir.from_proto(proto)
    for graph, twin in zip(model.graphs(), inferred.graphs(), strict=False):
        known = ir.convenience.create_value_mapping(twin, include_subgraphs=False)
        for value in _values(graph):
            if (other := known.get(value.name or "")) is None:
                continue
            if value.type is None:
                value.type = other.type
            value.shape = merge(value.shape, other.shape)
    return True


def merge(known: ir.Shape | None, other: ir.Shape | None) -> ir.Shape | None:
    """Joins two statements about one shape; where they contradict each other the first holds."""
    if known is None:
        return None if other is None else other.copy()
    if other is None or len(known) != len(other):
        return known
    dims = [_merge_dim(one, two) for one, two in zip(known, other, strict=True)]
    return known if dims == list(known) else ir.Shape(dims)


def dims(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """Returns per axis the size, the name of a symbolic size, or ``None``; ``None`` for an unknown rank."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def static_dims(value: ir.Value | None) -> tuple[int, ...] | None:
    """Returns the shape where every size is known, else ``None``."""
    known = dims(value)
    if known is None or not all(isinstance(dim, int) for dim in known):
        return None
    return tuple(dim for dim in known if isinstance(dim, int))


def _merge_dim(one: int | ir.SymbolicDim, two: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
    if isinstance(one, int):
        return one
    if isinstance(two, int):
        return two
    return two if one.value is None else one


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(output for node in graph for output in node.outputs if output.name)]
