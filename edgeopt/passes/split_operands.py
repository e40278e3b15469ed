"""Let small products read their operand in two parts of 8 bits each; exact in float.

What a classifier reads is often the last thing that is rounded, with nothing behind it that averages the
noise, while its product is a fraction of a per cent of the work. With m the largest magnitude of a row of x,

    k = round(127 x / m),    r = 127 x / m - k,    x W = (m / 127) (k W + r W).

k are whole numbers, which 8 bits hold as they are, and r lies between -1/2 and 1/2, so that 8 bits of it
leave a 255th of the error: 16 bits in two products of 8-bit integers, as in the splitting of Ozaki (Ozaki et
al., Numerical Algorithms 59, 2012; Ootomo et al., DGEMM on Integer Matrix Multiplication Unit, 2024).

It is done where a product is at most a hundredth of the model's multiply-accumulates and of its weights, its
operand alone makes a twentieth of the noise of all activations, and 0.3 dB are gained in what activations
alone leave on validation samples: the rounding of weights, which ``gptq`` makes up for, would hide that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt import units
from edgeopt.errors import ModelError
from edgeopt.graph.change import Change, Rewrite, Skipped
from edgeopt.graph.cost import cost
from edgeopt.graph.names import carry_names, name_nodes, original_names
from edgeopt.graph.observers import Observer
from edgeopt.graph.placement import is_constant
from edgeopt.graph.quantization import Names, Parameters, add_initializer
from edgeopt.passes._calibration import Calls, Reference, calibrate, comparing, scales, worth
from edgeopt.passes._rules import comes_quantized, kept, quantization_rules
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Samples, Stage
from edgeopt.passes.normalize_rows import Group, normalize, normalized, row_groups
from edgeopt.platform import QuantizationRules

DEAREST = 0.01
"""Of all multiply-accumulates and all weights, what one product may take a second time."""

LEAST_SHARE = 0.05
"""The part of all activations' noise that an operand must make by itself."""

GAIN = 0.3
"""dB that all products together must bring."""


@dataclass(frozen=True)
class SplitOperands(Pass):
    """Let small products read their operand as whole numbers and what these leave; exact in float.

    Attributes:
        keep_float: Shell patterns of original node names that will stay in float.
    """

    name: ClassVar[str] = "split-operands"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "exact"

    keep_float: tuple[str, ...] = ()

    @property
    def reads(self) -> frozenset[Facet]:
        """The rules and the samples."""
        return frozenset({"rules", "calibration", "validation"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Splits the operands of every small product that gains by it.

        Raises:
            UserError: A pattern of ``keep_float`` matches no node.
        """
        if comes_quantized(model):
            return Change(summary="already quantized")
        name_nodes(model)
        rules = quantization_rules(context.rules)
        keep = set(kept(model, self.keep_float))
        data, samples = context.calibration, context.validation
        if not data or not samples:
            return Change(summary="none")
        groups = _small(model, row_groups(model, rules, keep), samples)
        if not groups:
            return Change(summary="none")
        calls = comparing(model, data)
        reference = Reference(model.clone(), comparing(model, samples))
        params, observers = _activations(model, rules, calls, keep, {})
        before = worth(model, params, reference)
        whole = 10 ** (-before / 10)
        change = Change()
        chosen = []
        for group in groups:
            alone = {where: chain for where, chain in params.items() if where.value == group.value.name}
            share = 10 ** (-worth(model, alone, reference) / 10) / max(whole, 1e-30)
            if share < LEAST_SHARE:
                change.skipped.append(Skipped(self.name, group.site, "its operand makes little of the noise"))
            elif context.allow(self.name, group.site):
                chosen.append(group)
                change.rewrites.append(Rewrite(self.name, group.site, original_names(group.products[0])))
        if not chosen:
            change.summary = "no product gains by it"
            return change
        plain = model.clone()
        names = Names(model)
        for group in chosen:
            split(model, group, names)
        after = worth(model, _activations(model, rules, calls, keep, observers)[0], reference)
        change.details["activations"] = {"none": round(before, 2), "split": round(after, 2)}
        change.summary = f"operands of {units.number(len(chosen), 'product')} split"
        if after < before + GAIN:
            change.summary = "operands could be split, but the model does not gain by it"
            change.rewrites.clear()
            model.graph = plain.clone().graph
        return change


def split(model: ir.Model, group: Group, names: Names) -> None:
    """Writes the two parts of one product; its rows are normalized first where they are not."""
    graph, product = model.graph, group.products[0]
    if not normalized(group):
        normalize(model, group, names)
    rows, behind = product.inputs[0], next(use.node for use in product.outputs[0].uses())
    weight, factors = product.inputs[1], behind.inputs[1]
    assert rows is not None and weight is not None and weight.const_value is not None and factors is not None
    maker = rows.producer()
    positive = maker is not None and maker.inputs[0] is not None and Group(maker.inputs[0]).positive
    most = 255 if positive else 127
    stem = product.name or product.op_type
    levels = add_initializer(graph, names.value(f"{stem}_levels"), ir.tensor(np.asarray(most, np.float32)))
    again = add_initializer(graph, names.value(f"{weight.name}_again"), weight.const_value)

    def make(operator: str, inputs: list[ir.Value], suffix: str, like: ir.Value) -> ir.Node:
        node = ir.node(operator, inputs, name=names.node(f"{stem}_{suffix}"))
        carry_names([product], node)
        made = node.outputs[0]
        made.name, made.type = names.value(f"{stem}_{suffix}"), ir.TensorType(ir.DataType.FLOAT)
        made.shape = like.shape
        return node

    spread = make("Mul", [rows, levels], "spread", rows)
    whole = make("Round", [spread.outputs[0]], "whole", rows)
    rest = make("Sub", [spread.outputs[0], whole.outputs[0]], "rest", rows)
    step = make("Div", [factors, levels], "step", factors)
    graph.insert_before(product, [spread, whole, rest, step])
    product.replace_input_with(0, whole.outputs[0])
    behind.replace_input_with(1, step.outputs[0])
    fine = make(product.op_type, [rest.outputs[0], again], "fine", product.outputs[0])
    fine.attributes.update(product.attributes)
    scaled = make("Mul", [fine.outputs[0], step.outputs[0]], "fine_product", product.outputs[0])
    last = _biased(behind)
    output = last.outputs[0]
    total = make("Add", [output, scaled.outputs[0]], "sum", output)
    graph.insert_after(last, [fine, scaled, total])
    for use in [use for use in output.uses() if use.node is not total]:
        use.node.replace_input_with(use.idx, total.outputs[0])
    for index, item in enumerate(graph.outputs):
        if item is output:
            graph.outputs[index] = total.outputs[0]
            total.outputs[0].name, output.name = output.name, names.value(f"{stem}_coarse")


def _biased(behind: ir.Node) -> ir.Node:
    """The Add of a constant bias behind a product, its only reader, or the product's own last node."""
    uses = list(behind.outputs[0].uses())
    if len(uses) != 1 or behind.outputs[0].is_graph_output() or uses[0].node.op_type != "Add":
        return behind
    other = uses[0].node.inputs[1 - uses[0].idx]
    return uses[0].node if other is not None and is_constant(other) else behind


def _small(model: ir.Model, groups: list[Group], samples: Samples) -> list[Group]:
    """The groups of one product each, with a constant weight of its own, that cost next to nothing twice."""
    first = next(samples.feeds(), None)
    if first is None or not groups:
        return []
    known = {value.name for value in model.graph.inputs}
    try:
        counted = cost(model, {name: array.shape for name, array in first.items() if name in known})
    except ModelError:  # the data's shapes are not those declared: nobody knows what it costs
        return []
    macs = {node.name: node.macs * node.repeats for node in counted.nodes}
    found = []
    for group in groups:
        product = group.products[0]
        weight = product.inputs[1]
        if len(group.products) > 1 or weight is None or not is_constant(weight) or weight.const_value is None:
            continue
        cheap = macs.get(product.name or "", counted.macs) <= DEAREST * counted.macs
        if cheap and 4 * weight.const_value.size <= DEAREST * counted.parameter_bytes:
            found.append(group)
    return found


def _activations(
    model: ir.Model, rules: QuantizationRules, calls: Calls, keep: set[str], known: dict[str, Observer]
) -> tuple[Parameters, dict[str, Observer]]:
    """Returns the parameters of all that is computed, and what was seen of it."""
    placement, observers = calibrate(model, rules, calls, keep, known)
    params = scales(model, placement, observers, "mse")
    constants = model.graph.initializers
    return {where: chain for where, chain in params.items() if where.value not in constants}, observers
