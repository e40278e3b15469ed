"""The TFLite file: a program written as a flatbuffer, and read back.

The schema is the one that ``ai-edge-litert`` carries (file identifier ``TFL3``, schema version 3). The
bytes depend on the program alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from edgeopt.errors import MissingExtra
from edgeopt.targets.tflite.program import Operation, Program, Tensor

IDENTIFIER = b"TFL3"
ALIGNMENT = 16
SMALL = 1024
"""Bytes up to which constants that repeat are written once."""
TYPES = {
    "float32": "FLOAT32",
    "float16": "FLOAT16",
    "float64": "FLOAT64",
    "int8": "INT8",
    "uint8": "UINT8",
    "int16": "INT16",
    "uint16": "UINT16",
    "int32": "INT32",
    "uint32": "UINT32",
    "int64": "INT64",
    "bool": "BOOL",
}


def schema() -> Any:
    """Loads the generated schema.

    Raises:
        MissingExtra: ``ai-edge-litert`` is not installed.
    """
    try:
        return importlib.import_module("ai_edge_litert.schema_py_generated")
    except ImportError as failure:
        raise MissingExtra("ai-edge-litert", "tflite", "writing TFLite files") from failure


def write(program: Program, description: str = "edgeopt") -> bytes:
    """Writes a program as a TFLite file; see ``packed``."""
    return bytes(packed(program, description))


def packed(program: Program, description: str = "edgeopt") -> memoryview:
    """A program as a TFLite file, in the memory where it was built.

    Raises:
        MissingExtra: ``ai-edge-litert`` is not installed.
    """
    api = schema()
    import flatbuffers  # type: ignore[import-untyped,unused-ignore]

    tensors = program.tensors()
    number = {id(tensor): index for index, tensor in enumerate(tensors)}
    buffers: list[Any] = [_buffer(api, None)]
    by_content: dict[bytes, int] = {}
    vectors: dict[bytes, int] = {}
    packed = [_tensor(api, tensor, buffers, by_content, vectors) for tensor in tensors]

    codes: dict[tuple[str, int], int] = {}
    operators = []
    for operation in program.operations:
        key = (operation.code, version(operation))
        index = codes.setdefault(key, len(codes))
        operators.append(_operator(api, operation, index, number))

    subgraph = api.SubGraphT()
    subgraph.name = "main"
    subgraph.tensors = packed
    subgraph.inputs = np.array([number[id(t)] for t in program.inputs], np.int32)
    subgraph.outputs = np.array([number[id(t)] for t in program.outputs], np.int32)
    subgraph.operators = operators

    model = api.ModelT()
    model.version = 3
    model.description = description
    model.subgraphs = [subgraph]
    model.buffers = buffers
    model.operatorCodes = []
    for code, level in codes:
        entry = api.OperatorCodeT()
        value = getattr(api.BuiltinOperator, code)
        entry.builtinCode = value
        entry.deprecatedBuiltinCode = min(value, 127)
        entry.version = level
        model.operatorCodes.append(entry)

    # A builder that is too small doubles, copying all the weights: these estimates are generous.
    weights = sum(tensor.data.nbytes + ALIGNMENT for tensor in tensors if tensor.data is not None)
    tables = sum(256 + 2 * len(tensor.name) + 12 * len(_scales(tensor)) for tensor in tensors)
    builder = flatbuffers.Builder(4096 + weights + tables + 256 * len(operators))
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return memoryview(builder.Bytes)[builder.Head() :]


def _scales(tensor: Tensor) -> np.ndarray:
    return np.zeros(0, np.float32) if tensor.scale is None else np.atleast_1d(tensor.scale)


def read(data: bytes) -> Program:
    """Reads a TFLite file of one subgraph back, options included.

    Raises:
        MissingExtra: ``ai-edge-litert`` is not installed.
    """
    api = schema()
    model = api.ModelT.InitFromPackedBuf(data, 0)
    names = {value: name for name, value in vars(api.BuiltinOperator).items() if not name.startswith("_")}
    types = {getattr(api.TensorType, theirs): ours for ours, theirs in TYPES.items()}
    subgraph = model.subgraphs[0]
    tensors = [_read_tensor(item, model.buffers, types) for item in subgraph.tensors]
    program = Program(
        inputs=[tensors[index] for index in subgraph.inputs],
        outputs=[tensors[index] for index in subgraph.outputs],
    )
    for item in subgraph.operators:
        code = model.operatorCodes[item.opcodeIndex]
        options = vars(item.builtinOptions) if item.builtinOptions is not None else {}
        program.operations.append(
            Operation(
                code=names[max(code.builtinCode, code.deprecatedBuiltinCode)],
                inputs=[tensors[index] if index >= 0 else None for index in item.inputs],
                outputs=[tensors[index] for index in item.outputs],
                table=type(item.builtinOptions).__name__[:-1] if item.builtinOptions is not None else "",
                options=dict(options),
            )
        )
    return program


def version(operation: Operation) -> int:
    """The version of an operator that a program needs, so that older runtimes refuse what they lack.

    The numbers are those of TFLite's operator versioning table for the forms that we write.
    """
    code, options = operation.code, operation.options
    first = operation.inputs[0]
    kind = first.dtype if first is not None else "float32"
    integer = any(t is not None and t.dtype == "int8" for t in (*operation.inputs, *operation.outputs))
    rank = len(operation.outputs[0].shape)
    if code == "CONV_2D":
        return 3 if integer else 1
    if code == "DEPTHWISE_CONV_2D":
        dilated = options.get("dilationWFactor", 1) != 1 or options.get("dilationHFactor", 1) != 1
        return 3 if integer else 2 if dilated else 1
    if code == "FULLY_CONNECTED":
        return 5 if options.get("keepNumDims") else 4 if integer else 1
    if code == "TRANSPOSE_CONV":
        return 4 if options.get("fusedActivationFunction") else 3
    if code in ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"):
        return 3 if options.get("halfPixelCenters") else 2 if integer else 1
    if code == "DEQUANTIZE":
        return 3 if kind == "float16" else 2
    if code == "QUANTIZE":
        return 1 if kind == "float32" else 2
    if code == "BROADCAST_TO":
        return 2
    if code == "TRANSPOSE":
        return 4 if rank > 4 else 2 if integer else 1
    if code == "STRIDED_SLICE":
        return 4 if rank > 4 else 2 if integer else 1
    return 2 if integer and code in _INT8_IS_TWO else 1


_INT8_IS_TWO = frozenset(
    [
        "ADD",
        "SUB",
        "MUL",
        "MAXIMUM",
        "MINIMUM",
        "PAD",
        "PADV2",
        "MIRROR_PAD",
        "CONCATENATION",
        "AVERAGE_POOL_2D",
        "MAX_POOL_2D",
        "SPLIT",
        "SPLIT_V",
        "SOFTMAX",
        "LOGISTIC",
        "TANH",
        "MEAN",
        "SUM",
        "LEAKY_RELU",
        "RELU",
        "RELU6",
        "GATHER",
        "SLICE",
        "PACK",
        "UNPACK",
        "BATCH_MATMUL",
        "ARG_MAX",
        "ARG_MIN",
        "L2_NORMALIZATION",
        "REDUCE_MAX",
        "REDUCE_MIN",
        "EQUAL",
        "NOT_EQUAL",
        "LESS",
        "LESS_EQUAL",
        "GREATER",
        "GREATER_EQUAL",
        "SPACE_TO_DEPTH",
        "DEPTH_TO_SPACE",
    ]
)


def _buffer(api: Any, data: memoryview | None) -> Any:
    """A buffer table whose bytes start at a multiple of 16, as kernels read them in place."""

    def pack(builder: Any) -> Any:
        vector = None
        if data is not None:
            builder.StartVector(1, len(data), ALIGNMENT)
            builder.head = builder.head - len(data)
            builder.Bytes[builder.head : builder.head + len(data)] = data
            vector = builder.EndVector()
        api.BufferStart(builder)
        if vector is not None:
            api.BufferAddData(builder, vector)
        return api.BufferEnd(builder)

    buffer = api.BufferT()
    buffer.Pack = pack
    return buffer


def _tensor(
    api: Any,
    tensor: Tensor,
    buffers: list[Any],
    by_content: dict[bytes, int],
    vectors: dict[bytes, int],
) -> Any:
    packed = api.TensorT()
    packed.name = tensor.name
    packed.shape = np.array(tensor.shape, np.int32)
    packed.hasRank = True
    packed.type = getattr(api.TensorType, TYPES[tensor.dtype])
    if tensor.data is not None:
        array = np.ascontiguousarray(tensor.data).astype(tensor.dtype, copy=False)
        # Small tables such as shapes and axes repeat; weights are worth neither the hash nor the wait.
        key = array.tobytes() if array.nbytes <= SMALL else None
        known = None if key is None else by_content.get(key)
        if known is None:
            known = len(buffers)
            buffers.append(_buffer(api, array.reshape(-1).view(np.uint8).data))
            if key is not None:
                by_content[key] = known
        packed.buffer = known
    if tensor.scale is not None and tensor.zero_point is not None:
        packed.quantization = _quantization(api, tensor.scale, tensor.zero_point, tensor.axis, vectors)
    return packed


def _quantization(
    api: Any, scale: np.ndarray, zero_point: np.ndarray, axis: int, vectors: dict[bytes, int]
) -> Any:
    """Quantization parameters; tables and vectors that repeat, zero points above all, are written once."""
    scales = np.atleast_1d(scale).astype(np.float32)
    zeros = np.atleast_1d(zero_point).astype(np.int64)

    def once(key: bytes, make: Callable[[], int]) -> int:
        if key not in vectors:
            vectors[key] = make()
        return vectors[key]

    def pack(builder: Any) -> int:
        def table() -> int:
            first, second = (
                once(kind + vector.tobytes(), lambda vector=vector: builder.CreateNumpyVector(vector))  # type: ignore[misc]
                for kind, vector in ((b"s", scales), (b"z", zeros))
            )
            api.QuantizationParametersStart(builder)
            api.QuantizationParametersAddScale(builder, first)
            api.QuantizationParametersAddZeroPoint(builder, second)
            api.QuantizationParametersAddQuantizedDimension(builder, axis)
            return int(api.QuantizationParametersEnd(builder))

        return once(b"t" + bytes([axis]) + scales.tobytes() + zeros.tobytes(), table)

    quantization = api.QuantizationParametersT()
    quantization.Pack = pack
    return quantization


def _read_tensor(item: Any, buffers: list[Any], types: dict[int, str]) -> Tensor:
    name = item.name.decode() if isinstance(item.name, bytes) else str(item.name)
    shape = tuple(int(size) for size in item.shape) if item.shape is not None else ()
    tensor = Tensor(name, shape, types[item.type])
    data = buffers[item.buffer].data
    if data is not None and len(data):
        tensor.data = np.frombuffer(bytes(data), tensor.dtype).reshape(shape)
    if item.quantization is not None and item.quantization.scale is not None:
        tensor.scale = np.array(item.quantization.scale, np.float32)
        tensor.zero_point = np.array(item.quantization.zeroPoint, np.int64)
        tensor.axis = item.quantization.quantizedDimension
    return tensor


def _operator(api: Any, operation: Operation, code: int, number: dict[int, int]) -> Any:
    packed = api.OperatorT()
    packed.opcodeIndex = code
    packed.inputs = np.array([-1 if t is None else number[id(t)] for t in operation.inputs], np.int32)
    packed.outputs = np.array([number[id(t)] for t in operation.outputs], np.int32)
    if operation.table:
        options = getattr(api, f"{operation.table}T")()
        for key, value in operation.options.items():
            setattr(options, key, value)
        packed.builtinOptions = options
        packed.builtinOptionsType = getattr(api.BuiltinOptions, operation.table)
    return packed
