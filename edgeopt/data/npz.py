"""Reading ``.npz`` files lazily, in numpy's own format (NEP 1).

Stored members are mapped into memory; compressed ones are unpacked, those above ``IN_MEMORY`` into a
temporary file that is mapped. Python objects are refused.
"""

from __future__ import annotations

import struct
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

IN_MEMORY = 256 * 2**20
"""Compressed arrays above this many bytes are unpacked into a temporary file."""


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Opens the members of an ``.npz``: mapped where stored, else unpacked."""
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            with archive.open(entry) as stream:
                dtype, shape, fortran, offset = _header(stream)
                order: Literal["F", "C"] = "F" if fortran else "C"
                count = int(np.prod(shape, dtype=np.int64))
                if entry.compress_type == zipfile.ZIP_STORED and count > 0 and shape:
                    raw.seek(entry.header_offset + 26)  # lengths of name and extra field, in the local header
                    name_length, extra_length = struct.unpack("<HH", raw.read(4))
                    start = entry.header_offset + 30 + name_length + extra_length + offset
                    arrays[name] = np.memmap(path, dtype, "r", start, shape, order=order)
                elif count * dtype.itemsize <= IN_MEMORY:
                    data = np.frombuffer(stream.read(), dtype, count)
                    arrays[name] = data.reshape(shape, order=order)
                else:
                    spill = tempfile.TemporaryFile(prefix="edgeopt-")  # noqa: SIM115  # lives as long as its map
                    while block := stream.read(2**22):
                        spill.write(block)
                    spill.flush()
                    arrays[name] = np.memmap(spill, dtype, "r", 0, shape, order=order)
    return arrays


def _header(stream: Any) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """Reads the header of a member in numpy's format: dtype, shape, order, bytes read."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
    return dtype, shape, fortran, stream.tell()
