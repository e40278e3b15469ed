"""Conv, ConvTranspose, Gemm and MatMul as one thing: a weight, a bias, and channels that can be scaled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeopt.graph.change import NoMatch
from edgeopt.graph.rewriting import another_reader, constant, initializer, opset
from edgeopt.graph.shapes import dims


@dataclass(frozen=True)
class Linear:
    """A node that is linear in its first input, with constant weight and bias.

    Attributes:
        node: The node.
        weight: As the node has it: Conv [M, C/group, k...], ConvTranspose [C, M/group, k...], Gemm and
            MatMul [K, N] (Gemm with transB [N, K]).
        bias: float64 [channels], zeros where the node has none; scaled by Gemm's beta already.
        channels: How many output channels there are.
    """

    node: ir.Node
    weight: np.ndarray
    bias: np.ndarray
    channels: int

    def scaled(self, scale: np.ndarray, shift: np.ndarray) -> ir.Node | NoMatch:
        """The node that computes ``scale`` times its output plus ``shift``, both [channels]."""
        weight = self.weight.astype(np.float64)
        if np.all(scale == 1):
            factor: np.ndarray = np.ones(())
        elif self.node.op_type == "Conv":
            factor = scale.reshape(-1, *[1] * (weight.ndim - 1))
        elif self.node.op_type == "ConvTranspose":
            groups = self.node.attributes.get_int("group", 1)
            rows = np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0)
            factor = rows.reshape(weight.shape[0], weight.shape[1], *[1] * (weight.ndim - 2))
        elif self.node.attributes.get_int("transB", 0):
            factor = scale.reshape(-1, 1)
        else:
            factor = scale
        return self.with_numbers(None if np.all(scale == 1) else weight * factor, self.bias * scale + shift)

    def with_numbers(
        self, weight: np.ndarray | None, bias: np.ndarray, data: ir.Value | None = None
    ) -> ir.Node | NoMatch:
        """The node with another weight (``None`` for the same tensor), bias and, if given, first input."""
        name, dtype = self.node.inputs[1], self.weight.dtype
        assert name is not None
        limit = np.finfo(dtype).max
        if (weight is not None and np.abs(weight).max(initial=0) > limit) or np.abs(bias).max() > limit:
            return NoMatch("the folded numbers would overflow")
        kept = name if weight is None else initializer(f"{name.name}", weight.astype(dtype))
        shift = initializer(f"{self.node.name}.bias", bias.astype(dtype))
        attributes = {key: item for key, item in self.node.attributes.items() if key != "beta"}
        operator = "Gemm" if self.node.op_type == "MatMul" else self.node.op_type
        return ir.Node("", operator, [data or self.node.inputs[0], kept, shift], list(attributes.values()))


def linear(node: ir.Node) -> Linear | NoMatch:
    """Reads a node as a linear one, or says why it is none whose numbers may be replaced."""
    value = node.inputs[1]
    weight = constant(value)
    if weight is None or value is None:
        return NoMatch("its weight is computed")
    if weight.dtype.kind != "f":
        return NoMatch(f"its weight is {weight.dtype}")
    if other := another_reader(value, than=node):
        return NoMatch(f"the weight {value.name!r} is also read by {other.name!r}")
    transposed = node.attributes.get_int("transB", 0)
    if node.op_type == "Conv":
        channels = weight.shape[0]
    elif node.op_type == "ConvTranspose":
        channels = weight.shape[1] * node.attributes.get_int("group", 1)
    else:
        if weight.ndim != 2:
            return NoMatch("the weight is no matrix")
        if node.op_type == "MatMul" and len(dims(node.inputs[0]) or ()) != 2:
            return NoMatch("only a product of matrices can take a bias")
        if node.op_type == "MatMul" and opset(node) < 7:
            return NoMatch(f"Gemm with a bias of its own shape needs opset 7, the model has {opset(node)}")
        channels = weight.shape[0] if transposed else weight.shape[1]
    bias = np.zeros(channels)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        given = constant(node.inputs[2])
        if given is None:
            return NoMatch("its bias is computed")
        if given.size not in (1, channels):
            return NoMatch(f"its bias has the shape {list(given.shape)}")
        if given.size == channels and given.shape and given.shape[-1] != channels:
            return NoMatch(f"its bias has the shape {list(given.shape)}")
        beta = node.attributes.get_float("beta", 1.0)
        bias = bias + given.astype(np.float64).reshape(-1) * beta
    return Linear(node, weight, bias, channels)
