"""Fuse the primitives of hard-swish and hard-sigmoid (Howard et al. 2019), and of Mish (Misra 2019).

HardSigmoid(x) = Clip(x + 3, 0, 6) / 6      HardSwish(x) = x · HardSigmoid(x)
Mish(x) = x · tanh(softplus(x))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgeopt.graph.change import NoMatch
from edgeopt.graph.clip import bounds
from edgeopt.graph.rewriting import Replacement, Result, node, opset, rule
from edgeopt.graph.scalars import is_close, operands, product_of, scalar
from edgeopt.passes._fusion import Fusion

SIXTH = 1 / 6


@rule("Add -> Clip", name="x * Clip(x + 3, 0, 6) / 6 -> HardSwish")
def fuse_hard_swish(add: ir.Node, clip: ir.Node) -> Result:
    """The primitives in any order of factors."""
    if bounds(clip) != (0, 6):
        return None
    for x, three in operands(add):
        if not is_close(scalar(three), 3):
            continue
        found = product_of(clip.outputs[0], x, SIXTH)
        if found is None:
            continue
        if opset(clip) < 14:
            return NoMatch(f"HardSwish needs opset 14, the model has {opset(clip)}")
        fused = node("HardSwish", [x])
        return Replacement({found[0]: fused.outputs[0]}, [add, clip, *found[1]])
    return None


@rule("HardSigmoid -> Mul", name="x * HardSigmoid(x) -> HardSwish")
def fuse_gate(gate: ir.Node, product: ir.Node) -> Result:
    """The product with the gate of the same x."""
    if not any(one is gate.outputs[0] and other is gate.inputs[0] for one, other in operands(product)):
        return None
    slope, shift = gate.attributes.get_float("alpha", 0.2), gate.attributes.get_float("beta", 0.5)
    if not (is_close(slope, SIXTH) and is_close(shift, 0.5)):
        return NoMatch(f"the gate is {slope:g} x + {shift:g}")
    if opset(product) < 14:
        return NoMatch(f"HardSwish needs opset 14, the model has {opset(product)}")
    return node("HardSwish", [gate.inputs[0]])


@rule("Add -> Clip -> Mul|Div", name="Clip(x + 3, 0, 6) / 6 -> HardSigmoid")
def fuse_hard_sigmoid(add: ir.Node, clip: ir.Node, sixth: ir.Node) -> Result:
    """The gate alone."""
    if bounds(clip) != (0, 6) or not is_close(_factor(sixth), SIXTH):
        return None
    if not (sixth.op_type == "Mul" or sixth.inputs[0] is clip.outputs[0]):
        return None
    for x, three in operands(add):
        if is_close(scalar(three), 3):
            return node("HardSigmoid", [x], {"alpha": SIXTH, "beta": 0.5})
    return None


@rule("Softplus -> Tanh -> Mul", name="x * Tanh(Softplus(x)) -> Mish")
def fuse_mish(softplus: ir.Node, tanh: ir.Node, product: ir.Node) -> Result:
    """The product with the smooth gate of the same x."""
    if not any(one is tanh.outputs[0] and other is softplus.inputs[0] for one, other in operands(product)):
        return None
    if opset(product) < 18:
        return NoMatch(f"Mish needs opset 18, the model has {opset(product)}")
    return node("Mish", [softplus.inputs[0]])


def _factor(scaling: ir.Node) -> float | None:
    number = next((scalar(value) for value in scaling.inputs if scalar(value) is not None), None)
    if number is None or scaling.op_type == "Mul":
        return number
    return 1 / number if number else None


@dataclass(frozen=True)
class FuseHardSwish(Fusion):
    """Fuse the primitives of HardSwish, HardSigmoid (opset 14) and Mish (opset 18)."""

    name: ClassVar[str] = "fuse-hard-swish"
    kernel = "hard-swish"
    patterns = (fuse_hard_swish, fuse_gate, fuse_hard_sigmoid, fuse_mish)
