"""Fuse x · Sigmoid(x), the SiLU (Elfwing et al. 2017), into the operator that a runtime has for it.

That is Swish (opset 24), or onnxruntime's QuickGelu, which is x · Sigmoid(alpha · x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgeopt.graph.rewriting import Result, Rule, node, rule
from edgeopt.graph.scalars import operands
from edgeopt.passes._fusion import CONTRIB, Fusion, too_old
from edgeopt.passes.base import Stage
from edgeopt.platform import RuntimeVersion

SINCE = 24


def _gates_itself(gate: ir.Node, product: ir.Node) -> bool:
    return any(one is gate.outputs[0] and other is gate.inputs[0] for one, other in operands(product))


@rule("Sigmoid -> Mul", name="x * Sigmoid(x) -> Swish")
def fuse(gate: ir.Node, product: ir.Node) -> Result:
    """The standard operator."""
    if not _gates_itself(gate, product):
        return None
    return too_old(product, "Swish", SINCE) or node("Swish", [gate.inputs[0]])


@rule("Sigmoid -> Mul", name="x * Sigmoid(x) -> QuickGelu")
def fuse_contributed(gate: ir.Node, product: ir.Node) -> Result:
    """onnxruntime's operator."""
    x = gate.inputs[0]
    if not _gates_itself(gate, product) or x is None or x.dtype != ir.DataType.FLOAT:
        return None
    return ir.node("QuickGelu", [x], {"alpha": 1.0}, domain=CONTRIB)


@dataclass(frozen=True)
class FuseSilu(Fusion):
    """Fuse x · Sigmoid(x) into Swish (opset 24), or the runtime's own operator."""

    name: ClassVar[str] = "fuse-silu"
    stage: ClassVar[Stage] = "schedule"
    kernel = "silu"
    patterns = (fuse,)

    def rules_for(self, platform: RuntimeVersion | None) -> Sequence[Rule]:
        """onnxruntime's own operator where the platform runs it."""
        contributed = platform is not None and platform.runs("QuickGelu", CONTRIB)
        return (fuse_contributed,) if contributed else self.patterns
