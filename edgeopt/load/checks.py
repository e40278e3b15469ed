"""What must hold of a model that was loaded, whatever it came from.

Non-finite weights: a NaN or infinity in an operand of a product or normalization (``WEIGHTS``) ruins
every output and is refused. In any other constant, such as the -inf of an attention mask or of a
padding value, it can be meant, and is let through.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeopt.errors import ModelError

WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "ConvInteger": (1,),
    "MatMul": (0, 1),
    "Gemm": (0, 1, 2),
    "LSTM": (1, 2, 3, 7),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
    "BatchNormalization": (1, 2, 3, 4),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "QuantizeLinear": (1,),
    "DequantizeLinear": (1,),
}
"""Per operator the inputs that must be finite where they are constant."""

_CHUNK = 2**20
"""Elements looked at at once: little enough to stay in a core's cache."""


def check(model: ir.Model, where: str | None = None) -> ir.Model:
    """Checks a model, and mends in place what can be mended without changing what it computes.

    Mended: nodes out of topological order are sorted; an input that has an initializer is a constant
    and no input (ONNX before IR version 4 listed all weights as inputs).

    Args:
        model: The model.
        where: What error messages call it.

    Raises:
        ModelError: Something is missing or corrupt.
    """
    _drop_constant_inputs(model)
    _check_interface(model, where)
    for graph in model.graphs():
        _sort(graph, where)
    _check_values(model, where)
    _check_external(model, where)
    _check_finite(model, where)
    return model


# ---- structure


def _drop_constant_inputs(model: ir.Model) -> None:
    graph = model.graph
    kept = [value for value in graph.inputs if value.name not in graph.initializers]
    if len(kept) != len(graph.inputs):
        graph.inputs[:] = kept
        model.ir_version = max(model.ir_version, 4)


def _check_interface(model: ir.Model, where: str | None) -> None:
    if not model.graph.inputs:
        raise ModelError("the model has no inputs", where=where)
    if not model.graph.outputs:
        raise ModelError("the model has no outputs", where=where)
    if not any(domain in model.opset_imports for domain in ("", "ai.onnx")):
        raise ModelError("the model imports no opset: it is truncated or corrupt", where=where)
    for value in [*model.graph.inputs, *model.graph.outputs]:
        if not value.name:
            raise ModelError("an input or output of the model has no name", where=where)


def _sort(graph: ir.Graph | ir.Function, where: str | None) -> None:
    seen: set[ir.Node] = set()
    own = set(graph)
    for node in graph:
        if any(producer in own and producer not in seen for producer in _producers(node)):
            break
        seen.add(node)
    else:
        return
    try:
        graph.sort()
    except ValueError as error:
        raise ModelError("the model's nodes form a cycle", where=where) from error


def _producers(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes that a node or one of its subgraphs reads from."""
    for value in node.inputs:
        if value is not None and (producer := value.producer()) is not None:
            yield producer
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            inner: Iterable[ir.Graph] = (attribute.as_graph(),)
        elif attribute.type == ir.AttributeType.GRAPHS:
            inner = attribute.as_graphs()
        else:
            continue
        for graph in inner:
            for child in graph:
                yield from _producers(child)


def _check_values(model: ir.Model, where: str | None) -> None:
    """Refuses nodes that read, and outputs that are, values nothing computes."""
    for graph in model.graphs():
        for node in graph:
            for value in node.inputs:
                if value is not None and _is_nothing(value):
                    raise ModelError(
                        f"the {node.op_type} node {node.name!r} reads {value.name!r}, which nothing computes",
                        where=where,
                    )
        for value in graph.outputs:
            if value is not None and _is_nothing(value):
                raise ModelError(f"nothing computes the output {value.name!r}", where=where)


def _is_nothing(value: ir.Value) -> bool:
    if value.producer() is not None or value.is_graph_input() or not value.name:
        return False
    return not value.is_initializer() or value.const_value is None


# ---- weights


def _initializers(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value


def _check_external(model: ir.Model, where: str | None) -> None:
    """Refuses weights whose external file is missing, too short or out of bounds."""
    sizes: dict[str, int] = {}
    for value, tensor in _initializers(model):
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        path = str(tensor.path)
        if path not in sizes:
            sizes[path] = _size(tensor, value.name or "", where)
        needed = (tensor.offset or 0) + tensor.nbytes
        if sizes[path] < needed:
            raise ModelError(
                f"the external data of the weight {value.name!r} end at byte {sizes[path]}, not at {needed}",
                where=path,
            )
        if tensor.length is not None and tensor.length < tensor.nbytes:
            raise ModelError(
                f"the weight {value.name!r} has {tensor.length} bytes of external data where its shape needs "
                f"{tensor.nbytes}",
                where=where,
            )


def _size(tensor: ir.ExternalTensor, name: str, where: str | None) -> int:
    path, base = Path(tensor.path), Path(tensor.base_dir or ".").resolve()
    if tensor.base_dir and not path.resolve().is_relative_to(base):
        raise ModelError(
            f"the external data of the weight {name!r} lie outside the model's folder, at {tensor.location}",
            where=where,
        )
    try:
        status = path.stat()
    except OSError as error:
        raise ModelError(
            f"the external data of the weight {name!r} are missing",
            where=str(path),
            hint="copy the file there",
        ) from error
    if tensor.base_dir and status.st_nlink > 1:
        # onnx_ir refuses to map such a file, since it may be a disguised file from elsewhere
        raise ModelError(
            f"the external data of the weight {name!r} are a file with several hard links",
            where=str(path),
            hint="copy the file",
        )
    return status.st_size


def _check_finite(model: ir.Model, where: str | None) -> None:
    for value, tensor in _initializers(model):
        if not tensor.dtype.is_floating_point() or not (reader := _product(value)):
            continue
        if (bad := _first_non_finite(tensor)) is not None:
            raise ModelError(
                f"the weight {value.name!r} of the {reader.op_type} node {reader.name!r} holds {bad}",
                where=where,
            )


def _product(value: ir.Value) -> ir.Node | None:
    for usage in value.uses():
        if usage.node.domain in ("", "ai.onnx") and usage.idx in WEIGHTS.get(usage.node.op_type, ()):
            return usage.node
    return None


def _first_non_finite(tensor: ir.TensorProtocol) -> str | None:
    """Looks through a tensor chunk by chunk; an external one is mapped for that time only."""
    for chunk in _chunks(tensor):
        with np.errstate(all="ignore"):
            total = np.add.reduce(chunk, dtype=np.float32 if chunk.dtype.itemsize < 4 else None)
        # A NaN or infinity stays in the sum, which is quicker than looking at each; so may finite numbers.
        if not np.isfinite(total) and not np.isfinite(chunk).all():
            return "NaN" if np.isnan(chunk).any() else "infinity"
    return None


def _chunks(tensor: ir.TensorProtocol) -> Iterator[np.ndarray]:
    if isinstance(tensor, ir.ExternalTensor) and tensor.size and tensor.dtype.bitwidth >= 8:
        kind = np.dtype(tensor.dtype.numpy())
        kind = kind.newbyteorder("<") if kind.kind == "f" else kind
        with Path(os.fspath(tensor.path)).open("rb") as file:
            file.seek(tensor.offset or 0)
            left = tensor.size
            while left:
                data = file.read(min(left, _CHUNK) * kind.itemsize)
                chunk = np.frombuffer(data, dtype=kind)
                if not chunk.size:
                    return
                left -= chunk.size
                yield chunk
        return
    flat = np.asarray(tensor.numpy()).reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        yield flat[start : start + _CHUNK]
