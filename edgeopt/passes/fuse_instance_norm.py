"""Fuse the primitives of instance normalization (Ulyanov et al. 2016) into InstanceNormalization.

    d = x - mean(x)        y = d / sqrt(mean(d²) + epsilon) [· gamma [+ beta]]

over all axes from the third on, with one gamma and one beta a channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgeopt.graph.rewriting import (
    Replacement,
    Result,
    initializer,
    node,
    rule,
)
from edgeopt.graph.shapes import dims
from edgeopt.passes._fusion import Fusion
from edgeopt.passes._normalization import centred_root, divided, last_axes, scaled_and_shifted


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
    gamma, beta, affine = scaled_and_shifted(divide[-1].outputs[0], channels, len(shape))
    nodes = [*nodes, root, *divide, *affine]
    inputs = [x, initializer(f"{root.name}.gamma", gamma), initializer(f"{root.name}.beta", beta)]
    fused = node("InstanceNormalization", inputs, {"epsilon": epsilon})
    return Replacement({nodes[-1].outputs[0]: fused.outputs[0]}, nodes)


@dataclass(frozen=True)
class FuseInstanceNorm(Fusion):
    """Fuse the primitives of instance normalization into InstanceNormalization."""

    name: ClassVar[str] = "fuse-instance-norm"
    kernel = "instance-norm"
    patterns = (fuse,)
