"""What rules build with: constants read and made, nodes made, readers of a value counted."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

LARGE = 2**24
"""New constants from this many bytes on are mapped from a file."""


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a constant: an initializer that no caller can override, or a Constant node's output."""
    tensor = tensor_of(value)
    return None if tensor is None else tensor.numpy()


def tensor_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of a constant, which may still lie in a file; ``None`` where the value is computed."""
    if value is None:
        return None
    if value.const_value is not None:
        return None if value.is_graph_input() else value.const_value
    maker = value.producer()
    if maker is None or maker.op_type != "Constant":
        return None
    return ir.convenience.get_const_tensor(value)


def embedded(tensor: ir.TensorProtocol, name: str) -> onnx.TensorProto:
    """A constant as a model without files holds it: the numbers of an external one are read."""
    if isinstance(tensor, ir.ExternalTensor):
        tensor = ir.Tensor(tensor.numpy(), dtype=tensor.dtype)
    proto: onnx.TensorProto = ir.serde.serialize_tensor(tensor)
    proto.name = name
    return proto


def initializer(name: str, array: np.ndarray) -> ir.Value:
    """A new constant; ``rewrite`` gives it a unique name and registers it with the graph.

    A large one is written to a nameless temporary file and mapped, so that folding the weights of a model
    larger than memory takes no more of it than one of them.
    """
    tensor = ir.Tensor(_mapped(np.asarray(array, order="C")), name=name)
    return ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )


def _mapped(array: np.ndarray) -> np.ndarray:
    if array.nbytes < LARGE:
        return array
    with tempfile.TemporaryFile(prefix="edgeopt-") as file:
        array.tofile(file)
        file.flush()
        return np.memmap(file, dtype=array.dtype, mode="r", shape=array.shape)


def node(
    operator: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, object] | None = None
) -> ir.Node:
    """A new node of ai.onnx with one output; ``rewrite`` names it."""
    given = {key: value for key, value in (attributes or {}).items() if value is not None}
    return ir.node(operator, inputs, given)


def another_reader(value: ir.Value | None, than: ir.Node) -> ir.Node | None:
    """Returns a node beside the given one that reads a value too, if there is one."""
    if value is None:
        return None
    return next((use.node for use in value.uses() if use.node is not than), None)


def sole_reader(value: ir.Value) -> ir.Node | None:
    """The only node that reads a value, once; ``None`` with several readers or where it is an output."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def opset(node: ir.Node) -> int:
    """The opset of ai.onnx in force where a node stands."""
    graph = node.graph
    return 1 if graph is None else graph.opset_imports.get("", graph.opset_imports.get("ai.onnx", 1))


def is_new_constant(value: ir.Value) -> bool:
    """Whether a rule made the constant and no graph holds it yet."""
    return value.const_value is not None and value.graph is None and value.producer() is None
