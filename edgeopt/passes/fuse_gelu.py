"""Fuse the primitives of GELU (Hendrycks and Gimpel 2016) into Gelu.

    Gelu(x) = x / 2 · (1 + erf(x / √2))                                       exactly, or
              x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))                 approximated

Exporters write the three factors x, 1/2 and the sum in any order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgeopt.graph.change import NoMatch
from edgeopt.graph.rewriting import Replacement, Result, node, opset, rule
from edgeopt.graph.scalars import operands, product_of, scalar, scaled_by
from edgeopt.passes._fusion import Fusion


@rule("Erf", name="x/2 * (1 + Erf(x/sqrt 2)) -> Gelu")
def fuse_erf(erf: ir.Node) -> Result:
    """The exact form."""
    inner = scaled_by(erf.inputs[0], 1 / math.sqrt(2))
    if inner is None:
        return None
    x, nodes = inner
    return _close(erf, x, nodes, "none")


@rule("Tanh", name="x/2 * (1 + Tanh(...)) -> Gelu")
def fuse_tanh(tanh: ir.Node) -> Result:
    """The approximation, with the cube as Pow or as products."""
    inner = scaled_by(tanh.inputs[0], math.sqrt(2 / math.pi))
    if inner is None:
        return None
    total, nodes = inner
    add = total.producer()
    if add is None or add.op_type != "Add":
        return None
    for x, cube in operands(add):
        weighted = scaled_by(cube, 0.044715)
        if weighted is None:
            continue
        power = weighted[0].producer()
        if power is None or power.op_type != "Pow" or power.inputs[0] is not x:
            continue
        if scalar(power.inputs[1]) == 3:
            return _close(tanh, x, [*nodes, add, *weighted[1], power], "tanh")
    return None


def _close(middle: ir.Node, x: ir.Value, nodes: list[ir.Node], approximate: str) -> Result:
    """Follows the sum and the two remaining factors behind Erf or Tanh."""
    plus = [use.node for use in middle.outputs[0].uses()]
    if len(plus) != 1 or plus[0].op_type != "Add":
        return None
    if not any(scalar(one) == 1 for pair in operands(plus[0]) for one in pair):
        return None
    found = product_of(plus[0].outputs[0], x, 0.5)
    if found is None:
        return None
    result, factors = found
    if opset(middle) < 20:
        return NoMatch(f"Gelu needs opset 20, the model has {opset(middle)}")
    fused = node("Gelu", [x], {"approximate": approximate})
    return Replacement({result: fused.outputs[0]}, [*nodes, middle, plus[0], *factors])


@dataclass(frozen=True)
class FuseGelu(Fusion):
    """Fuse the primitives of GELU into Gelu (opset 20)."""

    name: ClassVar[str] = "fuse-gelu"
    kernel = "gelu"
    patterns = (fuse_erf, fuse_tanh)
