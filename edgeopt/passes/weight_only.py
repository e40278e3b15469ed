"""Quantize constant weights alone; everything is computed in float.

8-bit weights have a scale per output channel. 4-bit weights of matrix products have a scale per block of
rows, the form that runtimes multiply directly; other weights stay at 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.errors import UserError
from edgeopt.graph.change import Change, Rewrite, Skipped
from edgeopt.graph.names import name_nodes
from edgeopt.graph.observers import channel_scales
from edgeopt.graph.placement import SMALLEST_CONSTANT, is_constant, site, weight_axis
from edgeopt.graph.quantization import Parameters, QuantParams, Site, write
from edgeopt.passes._rules import kept, quantization_rules
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Stage
from edgeopt.platform import QuantizationRules

WITH_DATA = "with calibration data layers run in integers, which is faster (--data)"
"""What data would buy."""


@dataclass(frozen=True)
class WeightOnly(Pass):
    """Quantize weights to 8 or 4 bits.

    Attributes:
        keep_float: Shell patterns of original node names whose weights stay in float.
        bits: 8 or 4.
        block: Rows that share a scale at 4 bits; by default the runtime's preferred size.
    """

    name: ClassVar[str] = "weight-only"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "approximate"

    keep_float: tuple[str, ...] = ()
    bits: int = 8
    block: int = 0

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise UserError(f"weight-only quantization has 4 or 8 bits, not {self.bits}")

    @property
    def reads(self) -> frozenset[Facet]:
        """The runtime's rules, and whether there is calibration data."""
        return frozenset({"rules", "calibration"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Writes the quantization of the weights.

        Raises:
            UserError: A pattern of ``keep_float`` matches no node.
        """
        name_nodes(model)
        rules = quantization_rules(context.rules)
        block = self.block or (rules.block_sizes[0] if rules.block_sizes else 32)
        four = self.bits == 4 and model.opset_imports.get("", 0) >= 21
        change = Change(details={"scheme": self.name, "bits": self.bits})
        if self.bits == 4 and not four:
            change.notes.append("the model's opset has no 4-bit integers, so weights have 8 bits")
        if context.calibration is None:
            change.notes.append(WITH_DATA)
        keep = set(kept(model, self.keep_float))
        params = constants(model, rules, keep, context, self.name, change, block if four else 0)
        write(model, params)
        if not change.rewrites:
            change.details = {}  # the model stays in float32
            return change
        change.summary = f"weights of {len(change.rewrites)} layers to int{4 if four else 8}"
        return change


def constants(
    model: ir.Model,
    rules: QuantizationRules,
    keep: set[str],
    context: Context,
    rule: str,
    change: Change,
    block: int = 0,
) -> Parameters:
    """Chooses the parameters of every constant weight, and records its layers in ``change``.

    Args:
        model: The model, without quantization.
        rules: The runtime's rules.
        keep: Names of nodes whose weights stay in float.
        context: Asked before every layer.
        rule: The pass's name.
        change: Gets the layers.
        block: The block size of 4-bit matrix products; 0 for 8 bits throughout.
    """
    readers: dict[ir.Value, set[tuple[str, int]]] = {}
    axes: dict[ir.Value, set[int | None]] = {}
    blocked: dict[ir.Value, bool] = {}
    for node in model.graph:
        if node.op_type not in rules.constants or node.domain not in ("", "ai.onnx"):
            continue
        for index, axis in rules.constants[node.op_type].items():
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None or not is_constant(value) or value.dtype != ir.DataType.FLOAT:
                continue
            tensor = value.const_value
            if tensor is None or tensor.size < SMALLEST_CONSTANT:
                continue
            if node.name in keep:
                change.skipped.append(Skipped(rule, node.name or "", "kept in float"))
                continue
            if not context.allow(rule, node.name or ""):
                continue
            rank = len(tensor.shape)
            readers.setdefault(value, set()).add((node.name or "", index))
            axes.setdefault(value, set()).add(weight_axis(node, index, axis, rank))
            product = node.op_type == "MatMul" and index == 1 and rank == 2
            blocked[value] = blocked.get(value, True) and product
            change.rewrites.append(Rewrite(rule, node.name or "", (node.name or "",)))
    params: dict[Site, list[QuantParams]] = {}
    for value, asking in readers.items():
        tensor = value.const_value
        assert tensor is not None
        array = tensor.numpy()
        if block and blocked[value]:
            params[site(value, asking)] = [_blocks(array, block)]
            continue
        shared = axes[value]
        axis = next(iter(shared)) if len(shared) == 1 else None
        scale = channel_scales(array, axis, ir.DataType.INT8)
        params[site(value, asking)] = [QuantParams(ir.DataType.INT8, scale, None, axis)]
    return params


def _blocks(array: np.ndarray, block: int) -> QuantParams:
    """Makes 4-bit parameters of a matrix [rows, columns], one scale per block of rows and column."""
    rows, columns = array.shape
    count = -(-rows // block)
    padded = np.zeros((count * block, columns), np.float32)
    padded[:rows] = array
    bound = np.abs(padded.reshape(count, block, columns)).max(1)
    scale = np.where(bound == 0, 1, bound / 7).astype(np.float32)
    return QuantParams(ir.DataType.INT4, scale, None, 0, block)
