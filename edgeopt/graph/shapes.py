"""Types and shapes of all values, as far as ONNX's own inference knows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx
import onnx_ir as ir

from edgeopt.graph.building import embedded
from edgeopt.graph.skeleton import SMALL, skeleton, type_of, without_weights
from edgeopt.graph.traversal import subgraphs

__all__ = ["dims", "infer_nodes", "infer_shapes", "merge", "static_dims", "unsettled", "without_weights"]

_Known = dict[str, onnx.TypeProto]


def infer_shapes(model: ir.Model) -> bool:
    """Fills in types and shapes in place, never replacing what is known by less.

    Returns:
        Whether the inference ran; where the model has an operator unknown to it, shapes stay as they were.
    """
    try:
        proto = onnx.shape_inference.infer_shapes(skeleton(model), data_prop=True)
    except Exception:  # the C++ checker raises several classes; a model without shapes is still a model
        return False
    _take_over(model.graph, proto.graph)
    return True


def infer_nodes(nodes: Sequence[ir.Node], model: ir.Model) -> None:
    """Fills in the types and shapes of what new nodes make, from those of what they read, in place.

    Args:
        nodes: Nodes that need not be part of a graph yet, makers before readers; their values have names.
        model: The model whose opsets hold.
    """
    for node in nodes:
        if all(value.type is not None and value.shape is not None for value in node.outputs if value.name):
            continue
        if node.domain not in ("", "ai.onnx") or subgraphs(node):
            continue
        for name, found in _inferred(node, model).items():
            for value in node.outputs:
                if value.name == name:
                    _refine(value, found)


def unsettled(values: Iterable[ir.Value], given: Iterable[ir.Value]) -> bool:
    """Whether a shape may still become known better: a size is open that is no symbolic size of an input."""
    own = {dim.value for value in given for dim in value.shape or () if not isinstance(dim, int)}
    for value in values:
        if value.shape is None:
            return True
        for dim in value.shape:
            if not isinstance(dim, int) and (dim.value is None or dim.value not in own):
                return True
    return False


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


def _take_over(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    """Reads what was inferred of a graph's values, and of those in its subgraphs."""
    known: _Known = {item.name: item.type for item in (*proto.value_info, *proto.output)}
    for node, twin in zip(graph, proto.node, strict=True):
        for value in node.outputs:
            if value.name and not _is_settled(value) and (found := known.get(value.name)) is not None:
                _refine(value, found)
        if inner := subgraphs(node):
            attributes = {item.name: item for item in twin.attribute}
            twins = [
                part
                for name in node.attributes
                for part in (
                    [attributes[name].g] if attributes[name].HasField("g") else attributes[name].graphs
                )
            ]
            for part, its in zip(inner, twins, strict=True):
                for value, described in zip(part.inputs, its.input, strict=False):
                    _refine(value, described.type)
                _take_over(part, its)


def _is_settled(value: ir.Value) -> bool:
    return value.type is not None and value.shape is not None and value.shape.is_static()


def _refine(value: ir.Value, found: onnx.TypeProto) -> None:
    """Adds what was inferred to what is known of a value."""
    if not found.HasField("tensor_type"):
        if found.WhichOneof("value") is not None:
            if value.type is None:
                value.type = ir.serde.deserialize_type_proto_for_type(found)
            value.shape = merge(value.shape, ir.serde.deserialize_type_proto_for_shape(found))
        return
    tensor = found.tensor_type
    if value.type is None and tensor.elem_type:
        value.type = ir.TensorType(ir.DataType(tensor.elem_type))
    if tensor.HasField("shape"):
        sizes = [
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim
        ]
        value.shape = merge(value.shape, ir.Shape(sizes))


def _inferred(node: ir.Node, model: ir.Model) -> _Known:
    """What ONNX infers of one node's outputs; nothing where an input's type is unknown."""
    version = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))
    types: dict[str, onnx.TypeProto] = {}
    numbers: dict[str, onnx.TensorProto] = {}
    for value in node.inputs:
        if value is None:
            continue
        described = type_of(value)
        if any(isinstance(dim, int) and dim < 1 for dim in value.shape or ()) and node.op_type == "Slice":
            return {}  # ONNX's inference would abort the process
        if described is None or not value.name:
            return {}
        types[value.name] = described
        tensor = value.const_value
        if tensor is not None and tensor.nbytes <= SMALL:
            numbers[value.name] = embedded(tensor, value.name)
    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
        found: _Known = onnx.shape_inference.infer_node_outputs(
            schema,
            ir.serde.serialize_node(node),
            types,
            numbers,
            opset_imports=[onnx.helper.make_opsetid("", version)],
        )
        return found
    except Exception:  # an operator or operands that the inference does not know: the shape stays open
        return {}
