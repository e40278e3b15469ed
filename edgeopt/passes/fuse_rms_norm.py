"""Fuse the primitives of root mean square normalization (Zhang and Sennrich 2019) into RMSNormalization.

    y = x / sqrt(mean(x²) + epsilon) [· gamma]

over the last axes. The square is Pow(x, 2) or Mul(x, x), the quotient Div or Mul by the reciprocal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.graph.rewriting import NoMatch, Replacement, Result, initializer, node, rule
from edgeopt.graph.scalars import operands, scalar
from edgeopt.graph.shapes import dims
from edgeopt.passes._fusion import Fusion, too_old
from edgeopt.passes._normalization import divided, last_axes, squared, with_constant
from edgeopt.passes.base import Stage

SINCE = 23


@rule("ReduceMean -> Add -> Sqrt", name="root mean square normalization -> RMSNormalization")
def fuse(power: ir.Node, add: ir.Node, root: ir.Node) -> Result:
    """Follows the square root up to x and down to gamma."""
    epsilon = next((scalar(one) for one, other in operands(add) if other is power.outputs[0]), None)
    found = squared(power.inputs[0])
    if epsilon is None or found is None:
        return None
    x, square = found
    divide = divided(root, x)
    if divide is None:
        return None
    first = last_axes(power, x)
    if first is None:
        return NoMatch("the mean is not taken over the last axes")
    if reason := too_old(root, "RMSNormalization", SINCE):
        return reason
    if x.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return NoMatch(f"it computes in {'an unknown type' if x.dtype is None else x.dtype.name.lower()}")
    shape = (dims(x) or ())[first:]
    sizes = tuple(size for size in shape if isinstance(size, int))
    if len(sizes) < len(shape):
        return NoMatch("the size of a normalized axis is not known")
    nodes = [square, power, add, root, *divide]
    last, gamma = divide[-1].outputs[0], np.ones(sizes, x.dtype.numpy())
    scaling = with_constant(last, "Mul", sizes)
    if scaling is not None:
        gamma, last = scaling[1], scaling[0].outputs[0]
        nodes.append(scaling[0])
    inputs = [x, initializer(f"{root.name}.gamma", gamma)]
    attributes = {"axis": first - len(dims(x) or ()), "epsilon": epsilon}
    fused = node("RMSNormalization", inputs, attributes)
    return Replacement({last: fused.outputs[0]}, nodes)


@dataclass(frozen=True)
class FuseRmsNorm(Fusion):
    """Fuse the primitives of root mean square normalization into RMSNormalization (opset 23)."""

    name: ClassVar[str] = "fuse-rms-norm"
    stage: ClassVar[Stage] = "schedule"
    kernel = "rms-norm"
    patterns = (fuse,)
    since = SINCE
