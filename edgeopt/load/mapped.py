"""Reading an ONNX file without reading its weights: they are mapped where they lie in it.

A walk over the fields of the file (https://protobuf.dev/programming-guides/encoding) finds the raw data of
large initializers of the main graph; everything else is a small message that protobuf reads.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

WORTH = 2**23
"""Smaller files are read at once: that is quicker."""

_LARGE = 2**14
"""Initializers of at least this many bytes are mapped."""

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
"""Numbers of the fields in ``onnx.proto`` of ModelProto, GraphProto and TensorProto."""

_PLAIN = {
    *(ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16),
    *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
    *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
}
"""Types whose raw data numpy can look at as they are."""


class NotMappable(Exception):
    """The file is not one that can be taken apart here; it has to be read as a whole."""


def read(path: Path) -> tuple[onnx.ModelProto, dict[str, tuple[int, memoryview]]]:
    """Reads a model but for its large weights.

    Returns:
        The model, where those weights are tensors without data; and by name their ``data_type`` and bytes.

    Raises:
        NotMappable: It is no ONNX file of the usual form.
        OSError: It cannot be read.
    """
    if sys.byteorder != "little":
        raise NotMappable
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    found: dict[str, tuple[int, memoryview]] = {}
    light: list[bytes | memoryview] = []
    graphs = 0
    try:
        for number, start, content, end in _fields(data, 0, len(data)):
            if number != _GRAPH:
                light.append(data[start:end])
                continue
            graphs += 1
            inner = b"".join(_without_weights(data, content, end, found))
            light.append(_tagged(_GRAPH, inner))
        if graphs != 1:
            raise NotMappable
        return onnx.ModelProto.FromString(b"".join(light)), found
    except (IndexError, DecodeError) as error:
        raise NotMappable from error


def tensor(name: str, data_type: int, data: memoryview, shape: Sequence[int]) -> ir.TensorProtocol:
    """A tensor over mapped bytes.

    Raises:
        NotMappable: The bytes are not as many as the shape says.
    """
    dtype = ir.DataType(data_type).numpy()
    if len(data) != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
        raise NotMappable
    return ir.Tensor(np.frombuffer(data, dtype).reshape(tuple(shape)), name=name)


def _without_weights(
    data: memoryview, start: int, end: int, found: dict[str, tuple[int, memoryview]]
) -> Iterator[bytes | memoryview]:
    """The fields of a graph, large initializers without their raw data."""
    kept = start
    for number, begin, content, stop in _fields(data, start, end):
        if number != _INITIALIZER or stop - content < _LARGE:
            continue
        rest: list[memoryview] = []
        raw: memoryview | None = None
        for inner, first, inside, last in _fields(data, content, stop):
            if inner == _RAW_DATA:
                raw = data[inside:last]
            else:
                rest.append(data[first:last])
        light = b"".join(rest)
        if raw is None or len(raw) < _LARGE:
            continue
        proto = onnx.TensorProto.FromString(light)
        if proto.data_type not in _PLAIN or not proto.name or proto.name in found:
            continue
        found[proto.name] = (proto.data_type, raw)
        yield data[kept:begin]
        yield _tagged(_INITIALIZER, light)
        kept = stop
    yield data[kept:end]


def _fields(data: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Per field of a message its number, where it starts, where its content starts and where that ends."""
    place = start
    while place < end:
        begin = place
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == 2:
            size, place = _varint(data, place)
            content, place = place, place + size
        elif kind == 0:
            content = place
            _, place = _varint(data, place)
        elif kind in (1, 5):
            content, place = place, place + (8 if kind == 1 else 4)
        else:
            raise NotMappable
        if place > end:
            raise NotMappable
        yield tag >> 3, begin, content, place


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    byte = data[place]
    if byte < 128:
        return byte, place + 1
    number, shift = byte & 127, 7
    while byte > 127:
        place += 1
        byte = data[place]
        number |= (byte & 127) << shift
        shift += 7
        if shift > 70:
            raise NotMappable
    return number, place + 1


def _tagged(field: int, content: bytes) -> bytes:
    head = bytearray([field << 3 | 2])
    size = len(content)
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    head.append(size)
    return bytes(head) + content
