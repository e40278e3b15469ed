"""Activation functions that are flat somewhere, whose input's range can be chosen by what they make of it.

HardSwish makes zero of all below -3, Sigmoid hardly tells 8 from 9: a range that reaches there spends
levels on nothing. So where such a function is all that reads a value, the damage that rounding and cutting
off does is counted behind it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.thresholds import Function


def function_of(node: ir.Node) -> Function | None:
    """Returns what a node makes of numbers, float64 to float64, if it is such a function."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "HardSwish":
        return lambda x: x * np.clip(x / 6 + 0.5, 0, 1)
    if node.op_type == "HardSigmoid":
        slope = node.attributes.get_float("alpha", 0.2)
        middle = node.attributes.get_float("beta", 0.5)
        return lambda x: np.clip(slope * x + middle, 0, 1)
    if node.op_type == "Sigmoid":
        return _sigmoid
    if node.op_type == "Tanh":
        return np.tanh
    return None


def only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value, if nothing else does."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _sigmoid(x: np.ndarray) -> np.ndarray:
    made: np.ndarray = 0.5 + 0.5 * np.tanh(x / 2)
    return made
