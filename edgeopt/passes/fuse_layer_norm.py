"""Fuse the primitives of layer normalization (Ba et al. 2016) into LayerNormalization.

    d = x - mean(x)        y = d / sqrt(mean(d²) + epsilon) [· gamma [+ beta]]

over the last axes. The square is Pow(d, 2) or Mul(d, d), the quotient Div or Mul by the reciprocal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.graph.change import NoMatch
from edgeopt.graph.rewriting import (
    Replacement,
    Result,
    initializer,
    node,
    opset,
    rule,
)
from edgeopt.graph.shapes import dims
from edgeopt.passes._fusion import Fusion
from edgeopt.passes._normalization import centred_root, divided, last_axes, with_constant


@rule("ReduceMean -> Add -> Sqrt", name="layer normalization -> LayerNormalization")
def fuse(variance: ir.Node, add: ir.Node, root: ir.Node) -> Result:
    """Follows the square root up to x and down to gamma and beta."""
    found = centred_root(variance, add)
    if found is None:
        return None
    x, mean, deviation, epsilon, nodes = found
    first = last_axes(mean, x)
    if first is None or first != last_axes(variance, x):
        return NoMatch("the mean is not taken over the last axes")
    divide = divided(root, deviation)
    if divide is None:
        return None
    if opset(root) < 17:
        return NoMatch(f"LayerNormalization needs opset 17, the model has {opset(root)}")
    shape = (dims(x) or ())[first:]
    if not all(isinstance(size, int) for size in shape):
        return NoMatch("the size of a normalized axis is not known")
    nodes = [*nodes, root, *divide]
    sizes = tuple(size for size in shape if isinstance(size, int))
    dtype = (x.dtype or ir.DataType.FLOAT).numpy()
    last, gamma, beta = divide[-1].outputs[0], np.ones(sizes, dtype), None
    scaling = with_constant(last, "Mul", sizes)
    if scaling is not None:
        gamma, last = scaling[1], scaling[0].outputs[0]
        nodes.append(scaling[0])
    shifting = with_constant(last, "Add", sizes)
    if shifting is not None:
        beta, last = shifting[1], shifting[0].outputs[0]
        nodes.append(shifting[0])
    inputs = [x, initializer(f"{root.name}.gamma", gamma)]
    if beta is not None:
        inputs.append(initializer(f"{root.name}.beta", beta))
    fused = node("LayerNormalization", inputs, {"axis": first - len(dims(x) or ()), "epsilon": epsilon})
    return Replacement({last: fused.outputs[0]}, nodes)


@dataclass(frozen=True)
class FuseLayerNorm(Fusion):
    """Fuse the primitives of layer normalization into LayerNormalization (opset 17)."""

    name: ClassVar[str] = "fuse-layer-norm"
    kernel = "layer-norm"
    patterns = (fuse,)
