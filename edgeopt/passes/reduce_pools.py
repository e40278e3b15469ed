"""Write a global average pool that is flattened at once as the one mean that it is.

    Flatten(GlobalAveragePool(x)) = ReduceMean(x, all axes but the first two, without keeping them)

and the same for an AveragePool whose window is the whole value. A pass of ``edgeopt optimize`` alone:
integer kernels exist for the pool more often than for the mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.graph.rewriting import Result, initializer, node, opset, rule
from edgeopt.graph.shapes import dims, static_dims
from edgeopt.passes._fusion import Fusion


@rule("GlobalAveragePool|AveragePool -> Flatten|Reshape|Squeeze", name="flattened pool")
def reduce(pool: ir.Node, flatten: ir.Node) -> Result:
    """One ReduceMean over the spatial axes."""
    shape, flat = dims(pool.inputs[0]), dims(flatten.outputs[0])
    if shape is None or flat is None or len(shape) < 3 or None in shape[:2]:
        return None
    if pool.op_type == "AveragePool" and not _is_global(pool):
        return None
    whole = static_dims(pool.inputs[0])
    if flat != shape[:2] and not (whole is not None and len(flat) == 2 and flat == whole[:2]):
        return None
    axes = list(range(2, len(shape)))
    if opset(flatten) < 18:
        return node("ReduceMean", [pool.inputs[0]], {"axes": axes, "keepdims": 0})
    given = initializer(f"{pool.name}.axes", np.array(axes, np.int64))
    return node("ReduceMean", [pool.inputs[0], given], {"keepdims": 0})


def _is_global(pool: ir.Node) -> bool:
    """Whether the window is the whole value, without padding."""
    shape = static_dims(pool.inputs[0]) or dims(pool.inputs[0]) or ()
    windows = pool.attributes.get_ints("kernel_shape", ())
    plain = not any(pool.attributes.get_ints("pads", ())) and all(
        step == 1 for step in pool.attributes.get_ints("dilations", ())
    )
    auto = pool.attributes.get_string("auto_pad", "NOTSET")
    return (
        plain
        and auto in ("NOTSET", "VALID")
        and tuple(shape[2:]) == tuple(windows)
        and math.prod(windows) > 0
    )


@dataclass(frozen=True)
class ReducePools(Fusion):
    """Write a flattened global average pool as one ReduceMean."""

    name: ClassVar[str] = "reduce-pools"
    patterns = (reduce,)
