"""The limits of Relu and Clip, wherever an opset keeps them."""

from __future__ import annotations

import math

import onnx_ir as ir

from edgeopt.graph.rewriting import initializer, node, opset
from edgeopt.graph.scalars import scalar


def bounds(clip: ir.Node) -> tuple[float, float] | None:
    """The constant limits of a Relu or Clip; ``None`` where one is computed."""
    if clip.op_type == "Relu":
        return 0.0, math.inf
    if opset(clip) < 11:
        return clip.attributes.get_float("min", -math.inf), clip.attributes.get_float("max", math.inf)
    limits = []
    for position, open_end in ((1, -math.inf), (2, math.inf)):
        value = clip.inputs[position] if position < len(clip.inputs) else None
        limit = open_end if value is None else scalar(value)
        if limit is None:
            return None
        limits.append(limit)
    return limits[0], limits[1]


def clipped(x: ir.Value, low: float, high: float, like: ir.Node) -> ir.Node:
    """The node that limits x: a Relu where that is all, else a Clip in the form of the opset."""
    if low == 0 and high == math.inf:
        return node("Relu", [x])
    if opset(like) < 11:
        ends = {
            "min": None if low == -math.inf else low,
            "max": None if high == math.inf else high,
        }
        return node("Clip", [x], ends)
    dtype = (x.dtype or ir.DataType.FLOAT).numpy()
    limits = [
        None if math.isinf(limit) else initializer(f"{like.name}.{end}", dtype.type(limit).reshape(()))
        for end, limit in (("min", low), ("max", high))
    ]
    return node("Clip", [x, *limits])
