"""Merge limits that follow each other: Relu and Clip, in any order.

Clip(Clip(x, a, b), c, d) = Clip(x, max(a, c), min(b, d))        while max(a, c) <= min(b, d)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgeopt.graph.change import NoMatch
from edgeopt.graph.clip import bounds, clipped
from edgeopt.graph.rewriting import Result, rule
from edgeopt.passes._fusion import Fusion

_RANGES: dict[str, tuple[float, float]] = {
    "Relu": (0.0, math.inf),
    "Sigmoid": (0.0, 1.0),
    "HardSigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Abs": (0.0, math.inf),
    "Sqrt": (0.0, math.inf),
    "Exp": (0.0, math.inf),
}


@rule("Relu|Clip -> Relu|Clip")
def merge(first: ir.Node, second: ir.Node) -> Result:
    """One node with the narrower limits."""
    inner, outer = bounds(first), bounds(second)
    x = first.inputs[0]
    if inner is None or outer is None or x is None:
        return NoMatch("a limit is computed")
    low, high = max(inner[0], outer[0]), min(inner[1], outer[1])
    if low > high or inner[0] > inner[1]:
        return NoMatch("the limits do not overlap")
    return clipped(x, low, high, second)


@rule("|".join(_RANGES) + " -> Relu|Clip", name="limits that hold already", shared=True)
def drop(first: ir.Node, second: ir.Node) -> Result:
    """A limit that the operator before cannot exceed."""
    limits = bounds(second)
    low, high = _RANGES[first.op_type]
    if limits is None or limits[0] > low or limits[1] < high:
        return None
    return second.inputs[0]


@dataclass(frozen=True)
class FuseClip(Fusion):
    """Merge Relu and Clip that follow each other, and drop those that change nothing."""

    name: ClassVar[str] = "fuse-clip"
    patterns = (drop, merge)
