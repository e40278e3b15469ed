"""ONNX files, and what is mistaken for them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from edgeopt.errors import ModelError
from edgeopt.load import mapped as maps

_BITS = {
    onnx.TensorProto.FLOAT: 32,
    onnx.TensorProto.DOUBLE: 64,
    onnx.TensorProto.FLOAT16: 16,
    onnx.TensorProto.BFLOAT16: 16,
    onnx.TensorProto.BOOL: 8,
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.UINT4: 4,
    onnx.TensorProto.INT8: 8,
    onnx.TensorProto.UINT8: 8,
    onnx.TensorProto.INT16: 16,
    onnx.TensorProto.UINT16: 16,
    onnx.TensorProto.INT32: 32,
    onnx.TensorProto.UINT32: 32,
    onnx.TensorProto.INT64: 64,
    onnx.TensorProto.UINT64: 64,
    onnx.TensorProto.COMPLEX64: 64,
    onnx.TensorProto.COMPLEX128: 128,
    onnx.TensorProto.FLOAT8E4M3FN: 8,
    onnx.TensorProto.FLOAT8E4M3FNUZ: 8,
    onnx.TensorProto.FLOAT8E5M2: 8,
    onnx.TensorProto.FLOAT8E5M2FNUZ: 8,
}
"""Width of the element types whose raw bytes can be counted."""


def from_path(path: Path, mapped: bool = False) -> ir.Model:
    """Loads an ONNX file; external data are left in their files.

    Args:
        path: The file.
        mapped: Leave large weights in the file too and map them: it must stay as it is while the model lives.

    Raises:
        ModelError: It is not an ONNX model, or not a whole one.
    """
    try:
        if mapped and path.stat().st_size >= maps.WORTH and (model := _mapped(path)) is not None:
            return model
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"the model cannot be read: {error.strerror}", where=str(path)) from error
    return from_bytes(data, name=str(path), folder=path.absolute().parent)


def _mapped(path: Path) -> ir.Model | None:
    """Loads a large file with its weights mapped; ``None`` where it is of another form."""
    try:
        proto, weights = maps.read(path)
        model = from_proto(proto, name=str(path), folder=path.absolute().parent)
        for name, (data_type, data) in weights.items():
            value = model.graph.initializers[name]
            assert value.const_value is not None
            value.const_value = maps.tensor(name, data_type, data, value.const_value.shape.numpy())
    except maps.NotMappable:
        return None
    return model


def from_bytes(data: bytes, *, name: str, folder: Path | None = None) -> ir.Model:
    """Reads a serialized ONNX model.

    Args:
        data: The serialized ``ModelProto``.
        name: What error messages call it.
        folder: Where its external data lie.

    Raises:
        ModelError: It is not an ONNX model, or not a whole one.
    """
    if other := _mistaken(data):
        what, hint = other
        raise ModelError(f"this is no ONNX model but {what}", where=name, hint=hint)
    try:
        proto = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        if not any(byte < 9 or 13 < byte < 32 or byte > 126 for byte in data[:512]):
            raise ModelError("this is no ONNX model but a text file", where=name) from error
        raise ModelError("this is no ONNX model, or a truncated one", where=name) from error
    return from_proto(proto, name=name, folder=folder)


def from_proto(proto: onnx.ModelProto, *, name: str, folder: Path | None = None) -> ir.Model:
    """Turns a ``ModelProto`` into the IR, which goes on using its tensors.

    Raises:
        ModelError: It is not a whole model.
    """
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise ModelError("the model holds no graph: it is truncated or no ONNX model", where=name)
    _check_tensors(proto, name)
    _check_computed_once(proto, name)
    log = logging.getLogger("onnx_ir.serde")
    level = log.level
    log.setLevel(logging.CRITICAL)  # what it warns of is an error of ours, raised by check()
    try:
        model: ir.Model = ir.from_proto(proto)
    except Exception as error:  # the reader raises a chain of its own errors, the first of them says why
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        text = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise ModelError(f"the model is corrupt: {text}", where=name) from error
    finally:
        log.setLevel(level)
    if folder is not None:
        ir.external_data.set_base_dir(model.graph, folder)
    return model


def _mistaken(data: bytes) -> tuple[str, str | None] | None:
    """Recognizes other files by their first bytes, and says what to do with them."""
    if not data:
        return "an empty file", None
    if data[4:8] == b"TFL3":
        return "a TFLite model", "start from the ONNX or torch model that it was made from"
    if data[4:8] == b"ORTM":
        return "a model in onnxruntime's ORT format", "start from the ONNX model that it was made from"
    if data.startswith(b"PK\x03\x04"):
        if b".npy" in data[:64]:
            return "an archive of NumPy arrays", "give it as --data"
        return "a zip archive", "name it .pt2 if it comes from torch.export.save"
    if data.startswith(b"\x89HDF"):
        return "an HDF5 file", "export the model to ONNX first"
    if data.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS", "git lfs pull"
    if data[:1] == b"\x80" and data[1:2] in b"\x02\x03\x04\x05":
        return (
            "a Python pickle",
            "export the model with torch.export.save, or give --torch package.module:build",
        )
    return None


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _check_tensors(proto: onnx.ModelProto, name: str) -> None:
    """Refuses weights that are shorter or longer than their shapes say."""
    for graph in _graphs(proto.graph):
        if graph.sparse_initializer:
            raise ModelError(
                f"the weight {graph.sparse_initializer[0].values.name!r} is a sparse tensor", where=name
            )
        for tensor in graph.initializer:
            external = tensor.data_location == onnx.TensorProto.EXTERNAL
            bits = _BITS.get(tensor.data_type)
            if external or bits is None or not tensor.HasField("raw_data"):
                continue
            expected = (math.prod(tensor.dims) * bits + 7) // 8
            if len(tensor.raw_data) != expected:
                raise ModelError(
                    f"the weight {tensor.name!r} holds {len(tensor.raw_data)} bytes where its shape "
                    f"{list(tensor.dims)} needs {expected}",
                    where=name,
                )


def _check_computed_once(proto: onnx.ModelProto, name: str) -> None:
    """Refuses a value that two nodes of one graph compute: who reads it cannot be known."""
    for graph in _graphs(proto.graph):
        seen: dict[str, str] = {value.name: "the graph's inputs" for value in graph.input}
        for node in graph.node:
            for output in node.output:
                if output and output in seen:
                    raise ModelError(
                        f"the value {output!r} is computed twice, by {seen[output]} and by the "
                        f"{node.op_type} node {node.name!r}",
                        where=name,
                    )
                seen[output] = f"the {node.op_type} node {node.name!r}"
