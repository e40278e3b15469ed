"""A model as a proto without its large weights: what ONNX's C++ tools are asked about.

They take a serialized model and so cannot take one above 2 GB; what they are asked here does not depend on
the numbers of large weights, which become inputs of their shape.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from edgeopt.graph.building import embedded

SMALL = 1024
"""Initializers above this many bytes cannot matter for a shape and are not shown to the inference."""


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """The types, shapes and small constants of a model, without outputs' order or documentation."""
    proto = onnx.ModelProto(ir_version=max(4, model.ir_version))
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    graph = proto.graph
    graph.name = "skeleton"
    for value in model.graph.inputs:
        if not value.is_initializer():
            describe(graph.input.add(), value)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes > SMALL or value.is_graph_input():
            describe(graph.input.add(), value)
        else:
            graph.initializer.append(embedded(tensor, value.name or ""))
    for node in model.graph:
        ir.serde.serialize_node_into(graph.node.add(), node)
        for value in node.outputs:
            if value.type is not None and value.name and not value.is_graph_output():
                describe(graph.value_info.add(), value)
    for value in model.graph.outputs:
        describe(graph.output.add(), value)
    for function in model.functions.values():
        ir.serde.serialize_function_into(proto.functions.add(), function)
    return proto


def without_weights(model: ir.Model) -> onnx.ModelProto:
    """Returns the whole model as a proto in which large initializers have become inputs of their shape.

    The model itself is not changed.
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
            elif tensor.nbytes <= SMALL and isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
    proto: onnx.ModelProto = ir.to_proto(clone)
    return proto


def type_of(value: ir.Value) -> onnx.TypeProto | None:
    """A value's type and shape as ONNX writes them; ``None`` where the type is unknown."""
    if value.type is None and value.const_value is None:
        return None
    proto = onnx.ValueInfoProto()
    describe(proto, value)
    return proto.type


def describe(proto: onnx.ValueInfoProto, value: ir.Value) -> None:
    """Writes a value's name, type and shape; of tensors directly, which takes a third of the general way."""
    tensor, kind = value.const_value, value.type
    if tensor is not None:
        proto.name = value.name or ""
        described = proto.type.tensor_type
        described.elem_type = int(tensor.dtype)
        described.shape.SetInParent()
        for size in tensor.shape.numpy():
            described.shape.dim.add().dim_value = size
    elif isinstance(kind, ir.TensorType):
        proto.name = value.name or ""
        described = proto.type.tensor_type
        described.elem_type = int(kind.dtype)
        if value.shape is not None:
            described.shape.SetInParent()
            for dim in value.shape:
                item = described.shape.dim.add()
                if isinstance(dim, int):
                    item.dim_value = dim
                elif dim.value is not None:
                    item.dim_param = dim.value
    else:
        ir.serde.serialize_value_into(proto, value, name=value.name or "")
