"""Fuse instance normalization of reshaped groups of channels into GroupNormalization (Wu and He 2018).

    y = Reshape(InstanceNormalization(Reshape(x, [batch, groups, rest]), 1, 0), shape of x) [· gamma [+ beta]]

This is how exporters write it. GroupNormalization has one gamma and one beta a channel since opset 21; a
runtime without a kernel of its own expands it into more than it was, so it is made only for those with one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.graph.rewriting import NoMatch, Replacement, Result, constant, initializer, node, rule
from edgeopt.graph.shapes import dims
from edgeopt.passes._fusion import Fusion, too_old
from edgeopt.passes._normalization import scaled_and_shifted

SINCE = 21


@rule("Reshape -> InstanceNormalization -> Reshape", name="group normalization -> GroupNormalization")
def fuse(split: ir.Node, norm: ir.Node, join: ir.Node) -> Result:
    """Follows the second Reshape down to gamma and beta."""
    x = split.inputs[0]
    shape, groups, result = dims(x), dims(split.outputs[0]), dims(join.outputs[0])
    if x is None or shape is None or groups is None or len(shape) < 3 or len(groups) != 3:
        return None
    channels, count = shape[1], groups[1]
    if shape[0] is None or shape != result or shape[0] != groups[0]:
        return NoMatch("its shape is not known, or another than that of its input")
    if not isinstance(channels, int) or not isinstance(count, int) or channels % count:
        return NoMatch("the number of channels or groups is not known")
    scale, bias = constant(norm.inputs[1]), constant(norm.inputs[2])
    if scale is None or bias is None or not np.all(scale == 1) or np.any(bias):
        return NoMatch("the groups are scaled or shifted")
    if reason := too_old(join, "GroupNormalization", SINCE):
        return reason
    gamma, beta, affine = scaled_and_shifted(join.outputs[0], channels, len(shape))
    nodes = [split, norm, join, *affine]
    inputs = [x, initializer(f"{norm.name}.gamma", gamma), initializer(f"{norm.name}.beta", beta)]
    attributes = {"num_groups": count, "epsilon": norm.attributes.get_float("epsilon", 1e-5)}
    fused = node("GroupNormalization", inputs, attributes)
    return Replacement({nodes[-1].outputs[0]: fused.outputs[0]}, nodes)


@dataclass(frozen=True)
class FuseGroupNorm(Fusion):
    """Fuse instance normalization of groups of channels into GroupNormalization (opset 21)."""

    name: ClassVar[str] = "fuse-group-norm"
    kernel = "group-norm"
    patterns = (fuse,)
