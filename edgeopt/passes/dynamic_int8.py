"""Quantize matrix products to 8 bits with the ranges of their inputs computed at every call.

It needs no data. Products with constant weights run in integers; the weights of other layers (embeddings,
recurrent layers, convolutions) are stored in 8 bits and widened where they are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgeopt.graph.change import Change
from edgeopt.graph.names import name_nodes
from edgeopt.graph.placement import is_constant, site
from edgeopt.graph.quantization import QuantParams, write
from edgeopt.passes._rules import ALREADY, comes_quantized, kept, mark, quantization_rules, settled
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Stage
from edgeopt.passes.static_int8 import NOTHING_LEFT
from edgeopt.passes.weight_only import layouts_of, parameters_of, wanted

WITH_DATA = (
    "with calibration data products run in integers with ranges fixed in advance, which is faster (--data)"
)
"""What data would buy."""


@dataclass(frozen=True)
class DynamicInt8(Pass):
    """Quantize products with ranges computed at run time.

    Attributes:
        keep_float: Shell patterns of original node names that stay in float.
    """

    name: ClassVar[str] = "dynamic-int8"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "approximate"

    keep_float: tuple[str, ...] = ()

    @property
    def reads(self) -> frozenset[Facet]:
        """The runtime's rules, and whether there is calibration data."""
        return frozenset({"rules", "calibration"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Writes the quantization of products and weights.

        Raises:
            UserError: A pattern of ``keep_float`` matches no node.
        """
        if comes_quantized(model):
            return Change(summary="already quantized", notes=[ALREADY])
        name_nodes(model)
        rules = quantization_rules(context.rules)
        change = Change(details={"scheme": self.name})
        if context.calibration is None:
            change.notes.append(WITH_DATA)
        keep = set(kept(model, self.keep_float))
        readers = wanted(model, rules, keep, context, self.name, change)
        params = dict(parameters_of(readers, layouts_of(readers, [], 8), {}))
        changed = {rewrite.site for rewrite in change.rewrites}
        asked: dict[ir.Value, set[tuple[str, int]]] = {}
        for node in model.graph:
            if node.op_type not in rules.dynamic or node.name not in changed:
                continue
            value, weight = node.inputs[0], node.inputs[1]
            if value is None or weight is None or is_constant(value) or not is_constant(weight):
                continue
            asked.setdefault(value, set()).add((node.name or "", 0))
        for value, reading in asked.items():
            params[site(value, reading)] = [QuantParams(ir.DataType.UINT8, None)]
        mark(model)
        write(model, params)
        products = sum(len(reading) for reading in asked.values())
        if not change.rewrites and settled(model):
            return Change(summary="already quantized", notes=[NOTHING_LEFT])
        change.summary = f"{products} products to int8, weights of {len(changed)} layers"
        change.details["products"] = products
        return change
