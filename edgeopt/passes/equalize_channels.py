"""Make the channels between convolutions alike in range, which changes no output in float.

Where a product's output reaches other products only through operators f with f(s x) = s f(x) for every
s > 0 (ReLU, leaky ReLU, max and average pooling), the channel i can be divided by any s_i > 0 in the first
product's weights and bias and multiplied by it in the second's weights. Choosing

    s_i = sqrt(r1_i / r2_i),   r1_i = max|W1[i]|,   r2_i = max|W2[:, i]|

gives each channel the same range on both sides, so that one scale per tensor serves all of them. Chains of
such pairs are gone through until nothing moves. From Nagel et al., Data-Free Quantization Through Weight
Equalization and Bias Correction, ICCV 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.graph.change import Change, NoMatch, Rewrite, Skipped
from edgeopt.graph.names import name_nodes, original_names
from edgeopt.graph.placement import is_constant
from edgeopt.passes.base import Context, Keeps, Pass, Stage

HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
"""Operators that keep channels apart and commute with multiplication by a positive number."""

ROUNDS = 20
SETTLED = 1e-3
"""The rounds end when no factor differs from 1 by more than this."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A product and all products that read its channels."""

    first: ir.Node
    seconds: tuple[ir.Node, ...]


@dataclass(frozen=True)
class EqualizeChannels(Pass):
    """Equalize the ranges of channels across convolutions; exact in float."""

    name: ClassVar[str] = "equalize-channels"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "exact"

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Rescales the weights and biases of all pairs."""
        name_nodes(model)
        change = Change()
        pairs: list[Pair] = []
        for node in model.graph:
            if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
                continue
            site = (original_names(node) or (node.name or "",))[0]
            found = find_pair(node)
            if isinstance(found, NoMatch):
                change.skipped.append(Skipped(self.name, site, found.reason))
            elif context.allow(self.name, site):
                pairs.append(found)
                change.rewrites.append(Rewrite(self.name, site, original_names(node)))
        arrays = equalize(pairs)
        for value, array in arrays.items():
            value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
        change.summary = f"{len(pairs)} layers equalized" if pairs else "no layers to equalize"
        return change


def find_pair(node: ir.Node) -> Pair | NoMatch:
    """Finds the products that read a convolution's channels, or says why it has none."""
    if reason := _obstacle(node):
        return NoMatch(reason)
    seconds: list[ir.Node] = []
    todo = [node.outputs[0]]
    while todo:
        value = todo.pop()
        if value.is_graph_output():
            return NoMatch(f"{value.name!r} is an output of the model")
        for use in value.uses():
            reader = use.node
            if reader.graph is not node.graph:
                return NoMatch(f"{value.name!r} is read in a subgraph")
            if reader.op_type in HOMOGENEOUS and use.idx == 0 and len(reader.outputs) == 1:
                todo.append(reader.outputs[0])
            elif reader.op_type == "Conv" and use.idx == 0:
                if reason := _obstacle(reader):
                    return NoMatch(reason)
                seconds.append(reader)
            else:
                return NoMatch(f"its channels reach {reader.op_type} {reader.name!r}")
    return Pair(node, tuple(seconds)) if seconds else NoMatch("nothing reads it")


def _obstacle(node: ir.Node) -> str:
    for value in node.inputs[1:]:
        if value is None:
            continue
        if not is_constant(value) or value.dtype != ir.DataType.FLOAT:
            return f"the weight {value.name!r} of {node.name!r} is no float constant"
        if len(value.uses()) > 1 or value.is_graph_output():
            return f"the weight {value.name!r} is read by several nodes"
    return ""


def equalize(pairs: list[Pair]) -> dict[ir.Value, np.ndarray]:
    """Computes the rescaled weights and biases of all pairs, in float64."""
    arrays: dict[ir.Value, np.ndarray] = {}

    def array(value: ir.Value | None) -> np.ndarray:
        assert value is not None and value.const_value is not None
        if value not in arrays:
            arrays[value] = value.const_value.numpy().astype(np.float64)
        return arrays[value]

    for _ in range(ROUNDS):
        moved = 0.0
        for pair in pairs:
            weight = array(pair.first.inputs[1])
            channels = weight.shape[0]
            ranges = np.abs(weight).reshape(channels, -1).max(1, initial=0.0)
            read = np.max(
                [
                    np.abs(_by_input(array(node.inputs[1]), _groups(node))).max((1, 2))
                    for node in pair.seconds
                ],
                axis=0,
            )
            live = (ranges > 0) & (read > 0)
            factors = np.ones(channels)
            factors[live] = np.sqrt(ranges[live] / read[live])
            moved = max(moved, float(np.abs(factors - 1).max()))
            arrays[_value(pair.first, 1)] = weight / factors.reshape(-1, *[1] * (weight.ndim - 1))
            if len(pair.first.inputs) > 2 and pair.first.inputs[2] is not None:
                arrays[_value(pair.first, 2)] = array(pair.first.inputs[2]) / factors
            for node in pair.seconds:
                arrays[_value(node, 1)] = _scale_inputs(array(node.inputs[1]), _groups(node), factors)
        if moved < SETTLED:
            break
    return arrays


def _value(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _groups(node: ir.Node) -> int:
    return int(node.attributes["group"].as_int()) if "group" in node.attributes else 1


def _by_input(weight: np.ndarray, groups: int) -> np.ndarray:
    """Rearranges weights [out, in / groups, ...] to [in, out / groups, elements]."""
    out, per_group = weight.shape[:2]
    split = weight.reshape(groups, out // groups, per_group, -1)
    return split.transpose(0, 2, 1, 3).reshape(groups * per_group, out // groups, -1)


def _scale_inputs(weight: np.ndarray, groups: int, factors: np.ndarray) -> np.ndarray:
    out, per_group = weight.shape[:2]
    split = weight.reshape(groups, out // groups, per_group, -1)
    scaled: np.ndarray = split * factors.reshape(groups, 1, per_group, 1)
    return scaled.reshape(weight.shape)
