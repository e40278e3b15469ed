"""Quantize constant weights alone; everything is computed in float.

8-bit weights have a scale per output channel, 4-bit weights one per block of inputs (see ``_weights.py``).
With calibration data 4-bit weights are rounded so that the outputs of their layers, not the weights
themselves, keep the least squared error (GPTQ, Frantar et al. 2022).

Few runtimes multiply by packed 4-bit weights, and those only in some operators; elsewhere weights are
widened, so that fewer bits buy storage and nothing else. The change says where.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import onnx_ir as ir

from edgeopt import units
from edgeopt.errors import UserError, nearest
from edgeopt.graph.change import Change, Rewrite, Skipped
from edgeopt.graph.names import name_nodes
from edgeopt.graph.placement import SMALLEST_CONSTANT, is_constant, site
from edgeopt.graph.quantization import Parameters, QuantParams, Site, write
from edgeopt.passes._calibration import Calls
from edgeopt.passes._rules import kept, mark, quantization_rules
from edgeopt.passes._weights import Layout, Reader, choose_layout, learn, nearest_params
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Stage
from edgeopt.platform import QuantizationRules

Rounding = Literal["auto", "nearest", "gptq"]

WITH_DATA = "with calibration data layers run in integers, which is faster (--data)"
"""What data would buy."""

NEAREST = "without calibration data 4-bit weights are rounded one by one, which loses accuracy (--data)"
"""What data would buy at 4 bits."""


@dataclass(frozen=True)
class WeightOnly(Pass):
    """Quantize weights to 8 or 4 bits.

    Attributes:
        keep_float: Shell patterns of original node names whose weights stay in float.
        bits: 8 or 4.
        block: Inputs that share a scale at 4 bits; by default the runtime's preferred size.
        rounding: ``nearest``, or ``gptq`` by the calibration samples; ``auto`` is ``gptq`` for 4 bits where
            there are samples.
        samples: At most this many calibration samples are used.
    """

    name: ClassVar[str] = "weight-only"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "approximate"
    version: ClassVar[int] = 2

    keep_float: tuple[str, ...] = ()
    bits: int = 8
    block: int = 0
    rounding: Rounding = "auto"
    samples: int = 256

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise UserError(f"weight-only quantization has 4 or 8 bits, not {self.bits}")
        if self.rounding not in get_args(Rounding):
            known = get_args(Rounding)
            raise UserError(
                f"weight-only has no rounding {self.rounding!r}",
                nearest=nearest(self.rounding, known),
                hint=f"one of {', '.join(known)}",
            )

    @property
    def reads(self) -> frozenset[Facet]:
        """The runtime's rules, and the calibration data."""
        return frozenset({"rules", "calibration"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Writes the quantization of the weights.

        Raises:
            UserError: A pattern of ``keep_float`` matches no node, or ``gptq`` was asked for without data.
        """
        name_nodes(model)
        rules = quantization_rules(context.rules)
        data = context.calibration
        has_data = data is not None and len(data) > 0
        if self.rounding == "gptq" and not has_data:
            raise UserError("the rounding gptq needs calibration data", hint="--data PATH")
        bits = self.bits if model.opset_imports.get("", 0) >= 21 else 8
        learns = self.rounding == "gptq" or (self.rounding == "auto" and bits == 4 and has_data)
        change = Change(
            details={"scheme": self.name, "bits": bits, "rounding": "gptq" if learns else "nearest"}
        )
        if bits != self.bits:
            change.notes.append("the model's opset has no 4-bit integers, so weights have 8 bits")
        if not has_data:
            change.notes.append(WITH_DATA if bits == 8 else NEAREST)
        keep = set(kept(model, self.keep_float))
        readers = wanted(model, rules, keep, context, self.name, change)
        layouts = layouts_of(readers, self._blocks(rules), bits)
        learned: dict[ir.Value, QuantParams] = {}
        if learns and data is not None:
            learned = learn(model, layouts, Calls.fitting(model, data, self.samples), context.progress)
        mark(model)
        write(model, parameters_of(readers, layouts, learned))
        if not change.rewrites:
            change.details = {}  # the model stays in float32
            return change
        change.summary = f"weights of {units.number(len(change.rewrites), 'layer')} to int{bits}"
        if bits == 4:
            _tell(readers, layouts, rules, change)
        return change

    def _blocks(self, rules: QuantizationRules) -> list[int]:
        """Block sizes, the preferred first: the user's own, then the runtime's."""
        known = rules.block_sizes or [32]
        return [self.block, *(size for size in known if size < self.block)] if self.block else known


def wanted(
    model: ir.Model, rules: QuantizationRules, keep: set[str], context: Context, rule: str, change: Change
) -> dict[ir.Value, list[Reader]]:
    """Lists the constant weights to quantize with who reads them, and records the layers in ``change``.

    Args:
        model: The model, without quantization.
        rules: The runtime's rules.
        keep: Names of nodes whose weights stay in float.
        context: Asked before every layer.
        rule: The pass's name.
        change: Gets the layers.
    """
    readers: dict[ir.Value, list[Reader]] = {}
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
            readers.setdefault(value, []).append((node, index, axis))
            change.rewrites.append(Rewrite(rule, node.name or "", (node.name or "",)))
    return readers


def layouts_of(readers: dict[ir.Value, list[Reader]], blocks: list[int], bits: int) -> dict[ir.Value, Layout]:
    """Chooses the layout of every weight."""
    layouts = {}
    for value, reading in readers.items():
        tensor = value.const_value
        assert tensor is not None
        layouts[value] = choose_layout(reading, tensor.shape.numpy(), blocks, bits)
    return layouts


def parameters_of(
    readers: dict[ir.Value, list[Reader]],
    layouts: dict[ir.Value, Layout],
    learned: dict[ir.Value, QuantParams],
) -> Parameters:
    """Chooses the parameters of every weight that were not learned already."""
    params: dict[Site, list[QuantParams]] = {}
    for value, reading in readers.items():
        tensor = value.const_value
        assert tensor is not None
        where = site(value, {(node.name or "", index) for node, index, _ in reading})
        params[where] = [learned.get(value) or nearest_params(tensor.numpy(), layouts[value])]
    return params


def _tell(
    readers: dict[ir.Value, list[Reader]],
    layouts: dict[ir.Value, Layout],
    rules: QuantizationRules,
    change: Change,
) -> None:
    """Says which layers have 4 bits, and where they buy storage alone."""
    four = [value for value, layout in layouts.items() if layout.dtype == ir.DataType.INT4]
    stored = {
        node.op_type
        for value in four
        for node, _, _ in readers[value]
        if node.op_type not in rules.block_kernels or not layouts[value].block
    }
    elements = sum(value.const_value.size for value in four if value.const_value is not None)
    total = sum(value.const_value.size for value in layouts if value.const_value is not None)
    change.details["four_bit_share"] = round(elements / total, 4) if total else 0.0
    change.details["storage_only"] = sorted(stored)
    if stored:
        change.notes.append(
            f"the runtime multiplies by no packed 4-bit weights in {', '.join(sorted(stored))}: there they "
            "are widened when the model is loaded, which saves storage alone"
        )
