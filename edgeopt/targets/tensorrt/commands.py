"""The files that build and run the engine on the board: ``build.sh`` and ``run.py``.

TensorRT 8 and 10 differ: bindings by number became tensors by name, and the workspace's flag changed with
8.4. ``run.py`` needs nothing but TensorRT, numpy and the CUDA runtime's library, and runs on Python 3.6.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from packaging.version import Version

from edgeopt.session import TensorSpec

FLAGS: dict[str, list[str]] = {"float32": [], "float16": ["--fp16"], "int8": ["--int8", "--fp16"]}
"""trtexec's flags per precision; an int8 engine may compute its float layers in float16."""


def build_script(inputs: Sequence[TensorSpec], precision: str, version: str) -> str:
    """Returns the shell script that builds ``model.engine`` with trtexec.

    Each symbolic dimension is a variable of the environment: a leading one, a batch, is 1 by default, any
    other must be set. ``MAX_NAME`` is the largest size that the engine shall take.

    Args:
        inputs: The model's inputs.
        precision: ``float32``, ``float16`` or ``int8``.
        version: TensorRT's version.
    """
    symbols = _symbols(inputs)
    lines = [
        "#!/bin/sh",
        f"# Builds model.engine for this board with TensorRT {version} ({precision}).",
        "set -eu",
        'cd "$(dirname "$0")"',
        'TRTEXEC="${TRTEXEC:-/usr/src/tensorrt/bin/trtexec}"',
    ]
    for name, leading in symbols.items():
        variable = _variable(name)
        default = ":-1" if leading else f":?set it to the usual size of {name}"
        lines.append(f'{variable}="${{{variable}{default}}}"')
        lines.append(f'MAX_{variable}="${{MAX_{variable}:-${variable}}}"')
    workspace = "--workspace=1024" if Version(version) < Version("8.4") else "--memPoolSize=workspace:1024"
    flags = ["--onnx=model.onnx", "--saveEngine=model.engine", workspace, *FLAGS[precision]]
    dynamic = [spec for spec in inputs if any(isinstance(dim, str) for dim in spec.shape)]
    if dynamic:
        for bound, text in (("min", "${%s}"), ("opt", "${%s}"), ("max", "${MAX_%s}")):
            shapes = [f"{spec.name}:{_shape(spec, text, symbols, bound == 'min')}" for spec in dynamic]
            flags.append(f'"--{bound}Shapes={",".join(shapes)}"')
    lines.append(" \\\n  ".join(['"$TRTEXEC"', *flags, '"$@"']))
    return "\n".join(lines) + "\n"


def _symbols(inputs: Sequence[TensorSpec]) -> dict[str, bool]:
    """Maps every symbolic dimension to whether it is the leading one wherever it occurs."""
    found: dict[str, bool] = {}
    for spec in inputs:
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str):
                name = _symbol(spec, axis)
                found[name] = found.get(name, True) and axis == 0
    return found


def _symbol(spec: TensorSpec, axis: int) -> str:
    dim = spec.shape[axis]
    return f"{spec.name}_{axis}" if dim == "?" else str(dim)


def _variable(name: str) -> str:
    return re.sub(r"\W", "_", name).upper()


def _shape(spec: TensorSpec, text: str, symbols: dict[str, bool], smallest: bool) -> str:
    """The shape as trtexec wants it; the smallest batch is 1."""
    dims = []
    for axis, dim in enumerate(spec.shape):
        name = _symbol(spec, axis)
        if isinstance(dim, int):
            dims.append(str(dim))
        else:
            dims.append("1" if smallest and symbols[name] else text % _variable(name))
    return "x".join(dims)


_HEAD = '''\
"""Runs model.engine once on zeros: python3 run.py"""
import ctypes

import numpy as np
import tensorrt as trt

cuda = ctypes.CDLL("libcudart.so")
cuda.cudaMalloc.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t]
cuda.cudaMemcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
TO_DEVICE, TO_HOST = 1, 2


def device_copy(array):
    """Allocates memory on the GPU and copies an array there."""
    pointer = ctypes.c_void_p()
    if cuda.cudaMalloc(ctypes.byref(pointer), max(array.nbytes, 1)):
        raise RuntimeError("the GPU has no memory left")
    cuda.cudaMemcpy(pointer, array.ctypes.data, array.nbytes, TO_DEVICE)
    return pointer.value


logger = trt.Logger(trt.Logger.WARNING)
with open("model.engine", "rb") as file:
    engine = trt.Runtime(logger).deserialize_cuda_engine(file.read())
context = engine.create_execution_context()
'''

_EIGHT = """
arrays, pointers = {}, [0] * engine.num_bindings
for index in range(engine.num_bindings):
    name, dtype = engine.get_binding_name(index), trt.nptype(engine.get_binding_dtype(index))
    if engine.binding_is_input(index):
        arrays[name] = np.zeros(feeds[name], dtype)
        context.set_binding_shape(index, arrays[name].shape)
for index in range(engine.num_bindings):
    name, dtype = engine.get_binding_name(index), trt.nptype(engine.get_binding_dtype(index))
    if name not in arrays:
        arrays[name] = np.zeros(tuple(context.get_binding_shape(index)), dtype)
    pointers[index] = device_copy(arrays[name])
if not context.execute_v2(pointers):
    raise RuntimeError("the engine fails to run")
for index in range(engine.num_bindings):
    name = engine.get_binding_name(index)
    if not engine.binding_is_input(index):
        cuda.cudaMemcpy(arrays[name].ctypes.data, pointers[index], arrays[name].nbytes, TO_HOST)
        print(name, arrays[name].shape, arrays[name].dtype)
"""

_TEN = """
names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
arrays, pointers = {}, {}
for name in names:
    if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
        arrays[name] = np.zeros(feeds[name], trt.nptype(engine.get_tensor_dtype(name)))
        context.set_input_shape(name, arrays[name].shape)
for name in names:
    if name not in arrays:
        dtype = trt.nptype(engine.get_tensor_dtype(name))
        arrays[name] = np.zeros(tuple(context.get_tensor_shape(name)), dtype)
    pointers[name] = device_copy(arrays[name])
    context.set_tensor_address(name, pointers[name])
if not context.execute_async_v3(0) or cuda.cudaDeviceSynchronize():
    raise RuntimeError("the engine fails to run")
for name in names:
    if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT:
        cuda.cudaMemcpy(arrays[name].ctypes.data, pointers[name], arrays[name].nbytes, TO_HOST)
        print(name, arrays[name].shape, arrays[name].dtype)
"""


def run_script(inputs: Sequence[TensorSpec], version: str) -> str:
    """Returns the Python program that loads ``model.engine`` and runs it on zeros.

    Args:
        inputs: The model's inputs.
        version: TensorRT's version.
    """
    feeds = []
    for spec in inputs:
        dims = ", ".join(str(dim if isinstance(dim, int) else 1) for dim in spec.shape)
        comma = "," if len(spec.shape) == 1 else ""
        feeds.append(f'    "{spec.name}": ({dims}{comma}),')
    table = "\n".join(["feeds = {  # the shape of every input", *feeds, "}"])
    return _HEAD + table + "\n" + (_TEN if Version(version) >= Version("10") else _EIGHT)
