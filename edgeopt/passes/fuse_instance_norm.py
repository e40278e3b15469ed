"""Fuse the primitives of instance normalization (Ulyanov et al. 2016) into InstanceNormalization.

    d = x - mean(x)        y = d / sqrt(mean(d²) + epsilon) [· gamma [+ beta]]

over all axes from the third on, with one gamma and one beta a channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.graph.rewriting import (
    Replacement,
    Result,
    constant,
    initializer,
    node,
    rule,
    sole_reader,
)
from edgeopt.graph.scalars import operands
from edgeopt.graph.shapes import dims
from edgeopt.passes._fusion import Fusion
from edgeopt.passes._normalization import centred_root, divided, last_axes


@rule("ReduceMean -> Add -> Sqrt", name="instance normalization -> InstanceNormalization")
def fuse(variance: ir.Node, add: ir.Node, root: ir.Node) -> Result:
    """Follows the square root up to x and down to gamma and beta."""
    found = centred_root(variance, add)
    if found is None:
        return None
    x, mean, deviation, epsilon, nodes = found
    shape = dims(x) or ()
    if len(shape) < 3 or last_axes(mean, x) != 2 or last_axes(variance, x) != 2:
        return None
    divide = divided(root, deviation)
    if divide is None or not isinstance(shape[1], int) or x.dtype != ir.DataType.FLOAT:
        return None
    channels = shape[1]
    nodes = [*nodes, root, *divide]
    last = divide[-1].outputs[0]
    gamma, beta = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    scaling = per_channel(last, "Mul", channels, len(shape))
    if scaling is not None:
        gamma, last = scaling[1], scaling[0].outputs[0]
        nodes.append(scaling[0])
    shifting = per_channel(last, "Add", channels, len(shape))
    if shifting is not None:
        beta, last = shifting[1], shifting[0].outputs[0]
        nodes.append(shifting[0])
    inputs = [x, initializer(f"{root.name}.gamma", gamma), initializer(f"{root.name}.beta", beta)]
    fused = node("InstanceNormalization", inputs, {"epsilon": epsilon})
    return Replacement({last: fused.outputs[0]}, nodes)


def per_channel(
    value: ir.Value, operator: str, channels: int, rank: int
) -> tuple[ir.Node, np.ndarray] | None:
    """The only reader of a value, where it combines it with one constant a channel."""
    reader = sole_reader(value)
    if reader is None or reader.op_type != operator:
        return None
    for one, other in operands(reader):
        numbers = constant(other) if one is value else None
        if numbers is None or numbers.ndim > rank or numbers.dtype != np.float32:
            continue
        aligned = numbers.reshape((1,) * (rank - numbers.ndim) + numbers.shape)
        if aligned.shape == (1, channels, *[1] * (rank - 2)) or numbers.size == 1:
            return reader, np.ascontiguousarray(np.broadcast_to(aligned.reshape(-1), (channels,)))
    return None


@dataclass(frozen=True)
class FuseInstanceNorm(Fusion):
    """Fuse the primitives of instance normalization into InstanceNormalization."""

    name: ClassVar[str] = "fuse-instance-norm"
    kernel = "instance-norm"
    patterns = (fuse,)
