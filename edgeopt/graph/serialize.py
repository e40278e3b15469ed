"""Writing a model as ONNX: once, without what only its exporter needed, and without a second copy of weights.

Initializers come last in the file and go there straight from where they lie (memory, or a mapped file), so
writing takes no memory of their size. Types of initializers are not repeated as ``value_info``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from edgeopt.graph.names import ORIGINAL_NAMES
from edgeopt.graph.skeleton import describe
from edgeopt.graph.traversal import all_nodes, graphs

STREAMED = 2**14
"""Tensors of at least this many bytes are written from where they lie."""

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
"""Numbers of the fields in ``onnx.proto`` of ModelProto, GraphProto and TensorProto."""

_EXPORTERS = "pkg."
"""How torch's exporter marks what it notes on graphs; other metadata of a model are its author's."""

_CHUNK = 2**26
"""Bytes handed to the file at once."""


def strip(model: ir.Model) -> None:
    """Drops what exporters note: doc strings and metadata of nodes and values, in place.

    They are stack traces and class names, which can take more of a file than its weights. The user's names of
    nodes stay, and so do the model's own doc string and metadata, where authors keep labels and licences.
    """
    for noted in (model.metadata_props, *(graph.metadata_props for graph in graphs(model))):
        for key in [key for key in noted if key.startswith(_EXPORTERS)]:
            del noted[key]
    for graph in graphs(model):
        graph.doc_string = None
        for value in (*graph.inputs, *graph.initializers.values()):
            _strip_value(value)
    for node in all_nodes(model):
        node.doc_string = None
        if node.metadata_props:
            kept = node.metadata_props.get(ORIGINAL_NAMES)
            node.metadata_props.clear()
            if kept is not None:
                node.metadata_props[ORIGINAL_NAMES] = kept
        for value in node.outputs:
            _strip_value(value)


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """The constants of a model, in all its graphs."""
    for graph in graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value


def embed(model: ir.Model) -> None:
    """Takes constants out of external files, in place: large ones stay mapped, and none refers to a file.

    Raises:
        OSError: A file cannot be read.
    """
    for graph in graphs(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor):
                continue
            array = tensor.numpy()
            if tensor.nbytes < STREAMED:
                array = array.copy()
                tensor.release()
            value.const_value = ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The model as a proto; external tensors stay external.

    Raises:
        ValueError: It is larger than a proto can be.
    """
    proto, rest = _frame(model, streamed=False)
    assert not rest
    return proto


def save(model: ir.Model, path: Path) -> None:
    """Writes the model to one file; external tensors stay where they are.

    Raises:
        OSError: It cannot be written.
    """
    proto, streamed = _frame(model, streamed=True)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    heads = [_head(value) for value in streamed]
    sizes = [len(head) + tensor.nbytes for head, tensor in heads]
    total = len(graph) + sum(len(_tag(_INITIALIZER, size)) + size for size in sizes)
    with path.open("wb") as file:
        file.write(proto.SerializeToString())
        file.write(_tag(_GRAPH, total))
        file.write(graph)
        for (head, tensor), size in zip(heads, sizes, strict=True):
            file.write(_tag(_INITIALIZER, size))
            file.write(head)
            _write_numbers(tensor, file)


def _strip_value(value: ir.Value) -> None:
    value.doc_string = None
    if value.metadata_props:
        value.metadata_props.clear()


def _frame(model: ir.Model, streamed: bool) -> tuple[onnx.ModelProto, list[ir.Value]]:
    """The model as a proto, without the initializers of the main graph that are to be streamed."""
    proto = onnx.ModelProto()
    rest: list[ir.Value] = []
    graph = model.graph
    if model.device_configurations or _annotated(model):
        return ir.serde.serialize_model_into(proto, model), rest
    hollow = ir.Model(
        ir.Graph((), (), nodes=(), name=graph.name, doc_string=graph.doc_string),
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
        functions=tuple(model.functions.values()),
        metadata_props=dict(model.metadata_props),
    )
    hollow.graph.opset_imports.update(graph.opset_imports)
    hollow.graph.metadata_props.update(graph.metadata_props)
    ir.serde.serialize_model_into(proto, hollow)
    inner = proto.graph
    for value in graph.inputs:
        ir.serde.serialize_value_into(inner.input.add(), value)
    for node in graph:
        ir.serde.serialize_node_into(inner.node.add(), node, model_ir_version=model.ir_version)
        for value in node.outputs:
            if value.name and value.type is not None and not value.is_graph_output():
                describe(inner.value_info.add(), value)
    for value in graph.outputs:
        ir.serde.serialize_value_into(inner.output.add(), value)
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        if streamed and tensor.nbytes >= STREAMED and _is_flat(tensor):
            rest.append(value)
            continue
        copy = inner.initializer.add()
        ir.serde.serialize_tensor_into(copy, tensor)
        copy.name = value.name or ""
        copy.ClearField("doc_string")
        copy.ClearField("metadata_props")
    return proto, rest


def _annotated(model: ir.Model) -> bool:
    """Whether a value has quantization annotations, which the IR's own writer knows."""
    return any("quant_parameter_tensor_names" in value.meta for value in _values(model.graph))


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _is_flat(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor's numbers lie in memory or a file as ONNX's raw data want them."""
    if isinstance(tensor, ir.ExternalTensor) or sys.byteorder != "little":
        return False
    return tensor.dtype != ir.DataType.STRING and tensor.dtype.bitwidth >= 8


def _head(value: ir.Value) -> tuple[bytes, ir.TensorProtocol]:
    """A TensorProto up to and with the length of its raw data, and the tensor."""
    tensor = value.const_value
    assert tensor is not None
    proto = onnx.TensorProto(name=value.name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
    return proto.SerializeToString() + _tag(_RAW_DATA, tensor.nbytes), tensor


def _write_numbers(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    numbers = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)
    for start in range(0, numbers.size, _CHUNK):
        file.write(numbers[start : start + _CHUNK].data)


def _tag(field: int, size: int) -> bytes:
    """A length-delimited field's tag and length, as protobuf writes them."""
    return _varint(field << 3 | 2) + _varint(size)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
