"""Write the sum before a LayerNormalization as Sum where the runtime's own joint kernel is slower than both.

onnxruntime joins Add and LayerNormalization into SkipLayerNormalization at load. Its kernel for that takes
several times what its Add and LayerNormalization take together; Sum of two values runs the same code as Add
and is not joined. It comes last, so that quantization and the other fusions see the Add.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgeopt.graph.dimensions import sizes
from edgeopt.graph.rewriting import NoMatch, Replacement, Result, constant, node, rule
from edgeopt.passes._fusion import Fusion
from edgeopt.passes.base import Stage


@rule("Add -> LayerNormalization", name="Add -> LayerNormalization as Sum -> LayerNormalization", shared=True)
def write_as_sum(add: ir.Node, norm: ir.Node) -> Result:
    """Only sums of two computed values of one shape, which is what the runtime would join."""
    one, two = add.inputs[:2]
    if norm.inputs[0] is not add.outputs[0] or one is None or two is None:
        return None
    if constant(one) is not None or constant(two) is not None or sizes(one) != sizes(two):
        return None
    if any(value.producer() is not None and _is_dequantized(value) for value in (one, two)):
        return NoMatch("its operands come from integers")
    total = node("Sum", [one, two])
    return Replacement({add.outputs[0]: total.outputs[0]}, [add])


def _is_dequantized(value: ir.Value) -> bool:
    maker = value.producer()
    return maker is not None and maker.op_type == "DequantizeLinear"


@dataclass(frozen=True)
class SumBeforeNorm(Fusion):
    """Write the sum before a LayerNormalization as Sum, where joining both is slower."""

    name: ClassVar[str] = "sum-before-norm"
    stage: ClassVar[Stage] = "schedule"
    kernel = "sum-before-norm"
    patterns = (write_as_sum,)
