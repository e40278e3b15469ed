"""ONNX's types and torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.errors import ModelError
from edgeopt.graph.autograd.operators import Tensor, require_torch

_NAMES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.DOUBLE: "float64",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.BOOL: "bool",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "uint8",
    ir.DataType.INT16: "int16",
    ir.DataType.INT32: "int32",
    ir.DataType.INT64: "int64",
    # torch computes too little in these; the next wider type holds every number of them but uint64's
    ir.DataType.UINT16: "int32",
    ir.DataType.UINT32: "int64",
    ir.DataType.UINT64: "int64",
    ir.DataType.INT4: "int8",
    ir.DataType.UINT4: "uint8",
    ir.DataType.INT2: "int8",
    ir.DataType.UINT2: "uint8",
}


def torch_dtype(kind: int | ir.DataType | None) -> Any:
    """Returns the torch type that carries an ONNX type, ``None`` where there is none."""
    name = None if kind is None else _NAMES.get(ir.DataType(kind))
    return None if name is None else getattr(require_torch(), name)


def to_torch(array: Any, name: str, dtype: Any = None) -> Tensor:
    """Makes a tensor of a numpy array, an IR tensor or a tensor; floats take ``dtype`` where given.

    Raises:
        ModelError: torch has no such type.
    """
    torch = require_torch()
    if isinstance(array, torch.Tensor):
        return array.to(dtype) if dtype is not None and array.is_floating_point() else array
    if isinstance(array, ir.TensorProtocol):
        kind = array.dtype
        array = array.numpy()
    else:
        array = np.asarray(array)
        try:
            kind = ir.DataType.from_numpy(array.dtype)
        except TypeError as error:
            raise ModelError(f"{name!r} holds {array.dtype}, which torch cannot") from error
    carrier = torch_dtype(kind)
    if carrier is None:
        raise ModelError(f"{name!r} holds {kind.name.lower()}, which torch cannot")
    if kind == ir.DataType.BFLOAT16:
        array = array.astype(np.float32)
    elif kind.is_integer():
        array = array.astype(str(carrier).removeprefix("torch."))
    if not array.flags.writeable or not array.flags.c_contiguous:
        array = np.array(array, order="C")  # torch must not write into what the model maps
    tensor = torch.from_numpy(array)
    wanted = dtype if dtype is not None and carrier.is_floating_point else carrier
    return tensor.to(wanted)
