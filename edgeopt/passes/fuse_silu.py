"""Fuse x · Sigmoid(x), the SiLU (Elfwing et al. 2017), into Swish.

A runtime without a kernel of its own expands Swish again and then no longer sees what it could have run
with the convolution before, so the fusion is made only for runtimes that list the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgeopt.graph.rewriting import Result, node, rule
from edgeopt.graph.scalars import operands
from edgeopt.passes._fusion import Fusion, too_old

SINCE = 24


@rule("Sigmoid -> Mul", name="x * Sigmoid(x) -> Swish")
def fuse(gate: ir.Node, product: ir.Node) -> Result:
    """The product with the gate of the same x."""
    if not any(one is gate.outputs[0] and other is gate.inputs[0] for one, other in operands(product)):
        return None
    return too_old(product, "Swish", SINCE) or node("Swish", [gate.inputs[0]])


@dataclass(frozen=True)
class FuseSilu(Fusion):
    """Fuse x · Sigmoid(x) into Swish (opset 24)."""

    name: ClassVar[str] = "fuse-silu"
    kernel = "silu"
    patterns = (fuse,)
