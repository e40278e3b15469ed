"""Parts of a graph: what nodes read, in which order they run, and how to run them alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from edgeopt.errors import RuntimeFailure
from edgeopt.graph.building import embedded, tensor_of
from edgeopt.graph.execute import first_line, lend
from edgeopt.graph.traversal import graphs_of, read_by

__all__ = ["evaluate", "feeds_of", "graphs_of", "is_plain", "open_session", "ordered", "part", "read_by"]

INLINE = 1024
"""Constants up to this many bytes become part of a cut-out model; larger ones are fed where they lie."""


def ordered(wanted: Sequence[ir.Value], available: Sequence[ir.Node]) -> list[ir.Node]:
    """Those of the nodes that the wanted values need, makers before readers."""
    allowed = set(available)
    done: dict[ir.Node, None] = {}
    stack = [(value.producer(), False) for value in reversed(wanted)]
    while stack:
        node, ready = stack.pop()
        if node is None or node in done or node not in allowed:
            continue
        if ready:
            done[node] = None
        else:
            stack.append((node, True))
            stack.extend((value.producer(), False) for value in reversed(read_by(node)))
    return list(done)


def part(
    wanted: Sequence[ir.Value], available: Sequence[ir.Node], model: ir.Model
) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """Cuts out what computes some values.

    Args:
        wanted: The outputs; those that no available node makes are left to the caller.
        available: The nodes that may be part of it.
        model: The model that they stand in.

    Returns:
        The part as a model of its own, whose inputs are the values that no available node makes and
        the large constants; and these constants by name, for feeding.
    """
    nodes = ordered(wanted, available)
    made = {output for node in nodes for output in node.outputs}
    graph = onnx.GraphProto(name="part")
    for node in nodes:
        ir.serde.serialize_node_into(graph.node.add(), node)
    fed: dict[str, ir.TensorProtocol] = {}
    for value in dict.fromkeys(value for node in nodes for value in read_by(node)):
        if value in made:
            continue
        name, tensor = value.name or "", tensor_of(value)
        if tensor is None:
            graph.input.append(_info(name, value.dtype, None if value.shape is None else len(value.shape)))
        elif tensor.nbytes > INLINE and is_plain(tensor.dtype):
            fed[name] = tensor
            graph.input.append(_info(name, tensor.dtype, len(tensor.shape)))
        else:
            graph.initializer.append(embedded(tensor, name))
    graph.output.extend(onnx.ValueInfoProto(name=v.name or "") for v in dict.fromkeys(wanted) if v in made)
    proto = onnx.ModelProto(graph=graph, ir_version=max(4, model.ir_version))
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    return proto, fed


def feeds_of(fed: Mapping[str, ir.TensorProtocol]) -> dict[str, np.ndarray]:
    """The numbers of constants; those in files stay there until they are read."""
    return {name: np.require(tensor.numpy(), requirements=["C", "ALIGNED"]) for name, tensor in fed.items()}


def open_session(
    proto: onnx.ModelProto, constants: Mapping[str, np.ndarray] | None = None, *, optimize: bool = False
) -> onnxruntime.InferenceSession:
    """Opens a part in onnxruntime's reference mode, with as little preparation as possible.

    Args:
        proto: The part.
        constants: Further initializers; in reference mode they are read where they lie, so the caller keeps
            them as long as the session.
        optimize: Let onnxruntime optimize it, which is not its reference mode.

    Raises:
        Exception: What onnxruntime raises; it has a class per status code, without a base of their own.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    given = constants or {}
    if optimize:  # it may not find a lent constant that it wants to replace
        proto.graph.initializer.extend(onnx.numpy_helper.from_array(given[name], name) for name in given)
    else:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        lend(proto, given, options)
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def evaluate(
    wanted: Sequence[ir.Value], available: Sequence[ir.Node], model: ir.Model
) -> dict[ir.Value, np.ndarray]:
    """Computes values that depend on constants alone.

    Raises:
        RuntimeFailure: onnxruntime cannot compute them.
    """
    proto, fed = part(wanted, available, model)
    made = [output.name for output in proto.graph.output]
    try:
        results = open_session(proto).run(made, feeds_of(fed))
    except Exception as failure:
        raise RuntimeFailure(f"the constants cannot be computed: {first_line(failure)}") from failure
    by_name = dict(zip(made, results, strict=True))
    return {value: np.asarray(by_name[value.name]) for value in wanted if value.name in by_name}


def is_plain(dtype: ir.DataType) -> bool:
    """Whether onnxruntime takes and returns the type as numpy arrays."""
    return dtype in _PLAIN


def _info(name: str, dtype: ir.DataType | None, rank: int | None) -> onnx.ValueInfoProto:
    element = onnx.TensorProto.FLOAT if dtype is None else int(dtype)
    return onnx.helper.make_tensor_value_info(name, element, None if rank is None else [None] * rank)


_PLAIN = {
    *(ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BOOL),
    *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
    *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
}
