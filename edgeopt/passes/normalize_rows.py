"""Give every row that a matrix product reads a range of its own, which changes no output in float.

A range that is fixed for all inputs is set by the largest row there is, and most rows use few of its levels:
probabilities of attention over n keys lie around 1/n where the largest of all rows is near one. With m the
largest magnitude of each row of x

    x W = diag(m) ((x / m) W),

and every row of x / m reaches exactly one, so that a fixed range suits them all. This is quantization per
token (Yao et al., ZeroQuant, NeurIPS 2022) with plain operators around a product of integers: ReduceMax and
Div before it and one Mul behind it, on any runtime that computes in float between products. A row of zeros
stays one, and a bias is added behind the multiplication.

Each site costs these small operators, so the pass looks for the few that are worth it: the noise that a value
makes at the outputs when it alone is quantized, times the part of it that rows of their own would take away,
as a share of the noise of all activations. Of large models values made by the same operator are looked
at together. Whether the model gains is judged on validation samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt import units
from edgeopt.graph.change import Change, Rewrite, Skipped
from edgeopt.graph.execute import Feeds
from edgeopt.graph.names import carry_names, name_nodes, original_names
from edgeopt.graph.observers import parameters, tapped
from edgeopt.graph.placement import place
from edgeopt.graph.quantization import (
    Names,
    Parameters,
    QuantParams,
    add_initializer,
    dequantize_array,
    quantize_array,
)
from edgeopt.passes._calibration import (
    METHODS,
    MOST,
    WORTH,
    Calls,
    Reference,
    affordable,
    calibrate,
    comparing,
    scales,
    worth,
)
from edgeopt.passes._rules import comes_quantized, kept, quantization_rules
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Stage
from edgeopt.platform import QuantizationRules

LEAST_SHARE = 0.02
"""The part of all activations' noise that a site must take away."""

LEFT = 0.8
"""Rows of their own must leave no more than this part of a value's own noise."""

PASSING = ("Mul", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice")
"""Operators whose values are looked at with those of the operator before them."""

ROWS, ROWS_PER_CALL = 768, 48
"""Rows of a value that are looked at."""

SMALLEST = 1e-12
"""Rows that reach no further than this are divided by it."""

FIRST_AXES = 18
"""The first opset whose ReduceMax takes its axes as an input."""


@dataclass(slots=True)
class Group:
    """A value and the products that read it as their first operand.

    Attributes:
        value: What is normalized.
        products: The MatMul and Gemm nodes.
    """

    value: ir.Value
    products: list[ir.Node] = field(default_factory=list)

    @property
    def site(self) -> str:
        """The user's name of the first product."""
        return (original_names(self.products[0]) or (self.products[0].name or "",))[0]

    @property
    def positive(self) -> bool:
        """Whether every row has a number above zero and none below."""
        maker = self.value.producer()
        return maker is not None and maker.op_type == "Softmax" and _along_rows(maker)


@dataclass(frozen=True)
class NormalizeRows(Pass):
    """Give rows that matrix products read a range each: x / m before, times m behind; exact in float.

    Attributes:
        keep_float: Shell patterns of original node names that will stay in float.
        share: The part of all activations' noise at the outputs that a site must take away.
    """

    name: ClassVar[str] = "normalize-rows"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "exact"

    keep_float: tuple[str, ...] = ()
    share: float = LEAST_SHARE

    @property
    def reads(self) -> frozenset[Facet]:
        """The rules and the samples."""
        return frozenset({"rules", "calibration", "validation"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Normalizes the rows of every value that gains enough by it.

        Raises:
            UserError: A pattern of ``keep_float`` matches no node.
        """
        if comes_quantized(model):
            return Change(summary="already quantized")
        name_nodes(model)
        rules = quantization_rules(context.rules)
        keep = set(kept(model, self.keep_float))
        groups = find_groups(model, rules, keep)
        data, samples = context.calibration, context.validation
        if not groups or not data or not samples:
            return Change(summary="none")
        runs = affordable(model, samples)
        parts = [[group] for group in groups]
        if runs < len(parts):
            parts = _by_maker(groups)
        count = min(runs // len(parts), MOST)
        if not count:
            return Change(summary="left as it is: finding the rows that gain would take too long")
        calls = comparing(model, data)
        reference = Reference(model.clone(), comparing(model, samples))
        placement, observers = calibrate(model, rules, calls, keep)
        choices = [scales(model, placement, observers, method) for method in METHODS]
        before = [worth(model, choice, reference) for choice in choices]
        params = choices[int(np.argmax(before))]
        change = Change()
        looked = Calls(samples, min(calls.batch, count), count)
        gains = self._gains(model, parts, params, looked, context, symmetric=rules.activation.symmetric)
        chosen = []
        for group in groups:
            if gains.get(group.value.name or "", 0.0) < self.share:
                change.skipped.append(Skipped(self.name, group.site, "its rows make too little of the noise"))
            elif context.allow(self.name, group.site):
                chosen.append(group)
                replaced = tuple(name for node in group.products for name in original_names(node))
                change.rewrites.append(Rewrite(self.name, group.site, replaced))
        change.details["shares"] = {group.site: round(gains[group.value.name or ""], 3) for group in chosen}
        if not chosen:
            change.summary = "no product gains by it"
            return change
        plain = model.clone()
        names = Names(model)
        for group in chosen:
            normalize(model, group, names)
        placement, observers = calibrate(model, rules, calls, keep, observers)
        choices = [scales(model, placement, observers, method) for method in METHODS]
        after = [worth(model, choice, reference) for choice in choices]
        means = round(float(np.mean(before)), 2), round(float(np.mean(after)), 2)
        change.details["fidelity"] = dict(zip(("none", "normalized"), means, strict=True))
        change.summary = f"rows of {units.number(len(chosen), 'value')} normalized"
        if means[1] < means[0] + WORTH:  # of all ways to choose ranges: one alone may be lucky
            change.summary = "rows could be normalized, but int8 is better without"
            change.rewrites.clear()
            model.graph = plain.clone().graph
        return change

    def _gains(
        self,
        model: ir.Model,
        parts: list[list[Group]],
        params: Parameters,
        calls: Calls,
        context: Context,
        *,
        symmetric: bool,
    ) -> dict[str, float]:
        """Returns per value what part of all activations' noise rows of their own would take away."""
        ranges = {where.value: (where, chain[0]) for where, chain in params.items()}
        names = [name for part in parts for group in part if (name := group.value.name or "") in ranges]
        fixed = {name: ranges[name][1] for name in names}
        left = _left(model, names, fixed, calls, symmetric=symmetric)
        reference = Reference(model, calls)
        constants = model.graph.initializers
        moving = {where: chain for where, chain in params.items() if where.value not in constants}
        whole = _noise(worth(model, moving, reference))  # solving makes up for most of what weights leave
        gains: dict[str, float] = {}
        for part in context.progress(parts, "noise of rows", len(parts)):
            gaining = [name for group in part if left.get(name := group.value.name or "", 1.0) < LEFT]
            if not gaining:
                continue
            alone = {where: [chosen] for where, chosen in (ranges[name] for name in gaining)}
            noise = _noise(worth(model, alone, reference)) / max(whole, 1e-30)
            gain = noise * (1 - float(np.mean([left[name] for name in gaining])))
            gains.update(dict.fromkeys(gaining, gain))
        return gains


def find_groups(model: ir.Model, rules: QuantizationRules, keep: set[str]) -> list[Group]:
    """Finds what may be normalized and is not yet."""
    return [group for group in row_groups(model, rules, keep) if not normalized(group)]


def row_groups(model: ir.Model, rules: QuantizationRules, keep: set[str]) -> list[Group]:
    """Finds the values that only such products read quantized, each as their first operand.

    Values of one row a call are left to ``static-int8``, which may have a range computed at every call.
    """
    if not rules.row_ranges:
        return []
    operands = place(model, rules, keep).operands
    groups: dict[ir.Value, Group] = {}
    others: set[ir.Value] = set()
    for node in model.graph:
        for index, value in enumerate(node.inputs):
            if value is None or value.name not in operands or node.op_type not in rules.operators:
                continue
            if index == 0 and node.op_type in rules.row_ranges and _fits(node, keep):
                groups.setdefault(value, Group(value)).products.append(node)
            elif node.name not in keep:
                others.add(value)
    found = [group for value, group in groups.items() if value not in others]
    return [group for group in found if not _one_row(group, rules)]


def normalize(model: ir.Model, group: Group, names: Names) -> None:
    """Writes x / m before the products of a group and m behind them."""
    graph, value = model.graph, group.value
    stem = value.name or "rows"
    before: list[ir.Node] = []

    def add(nodes: list[ir.Node], operator: str, inputs: list[ir.Value], suffix: str) -> ir.Value:
        node = ir.node(operator, inputs, name=names.node(f"{stem}_{suffix}"))
        carry_names([group.products[0]], node)
        result = node.outputs[0]
        result.name, result.type = names.value(f"{stem}_{suffix}"), ir.TensorType(ir.DataType.FLOAT)
        nodes.append(node)
        return result

    magnitude = value if group.positive else add(before, "Abs", [value], "magnitude")
    if model.opset_imports.get("", 0) < FIRST_AXES:
        largest = add(before, "ReduceMax", [magnitude], "largest")
        before[-1].attributes["axes"] = ir.AttrInt64s("axes", [-1])
    else:
        axes = ir.tensor(np.array([-1], np.int64))
        last = add_initializer(graph, names.value(f"{stem}_axis"), axes)
        largest = add(before, "ReduceMax", [magnitude, last], "largest")
    if value.shape is not None:
        largest.shape = ir.Shape([*list(value.shape)[:-1], 1])
    if not group.positive:
        least = ir.tensor(np.asarray(SMALLEST, np.float32))
        floor = add_initializer(graph, names.value(f"{stem}_smallest"), least)
        shape = largest.shape
        largest = add(before, "Max", [largest, floor], "range")
        largest.shape = shape
    normalized = add(before, "Div", [value, largest], "normalized")
    normalized.shape = value.shape
    order = {node: index for index, node in enumerate(graph)}
    graph.insert_before(min(group.products, key=lambda node: order[node]), before)
    for product in group.products:
        product.replace_input_with(0, normalized)
        output, bias = product.outputs[0], None
        if len(product.inputs) > 2:
            bias = product.inputs[2]
            product.resize_inputs(2)
        behind: list[ir.Node] = []
        result = add(behind, "Mul", [output, largest], "product")
        if bias is not None:
            result.shape = output.shape
            result = add(behind, "Add", [result, bias], "biased")
        result.shape, result.type = output.shape, output.type
        for node in behind:
            carry_names([product], node)
        readers = [use for use in output.uses() if use.node is not behind[0]]
        graph.insert_after(product, behind)
        for use in readers:
            use.node.replace_input_with(use.idx, result)
        for index, item in enumerate(graph.outputs):
            if item is output:
                graph.outputs[index] = result
                result.name, output.name = output.name, names.value(f"{stem}_unscaled")


def _fits(node: ir.Node, keep: set[str]) -> bool:
    """Whether a product's rows may be scaled: one row of the output for each of the first operand."""
    if node.name in keep or node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type != "Gemm":
        ranks = [None if value is None or value.shape is None else len(value.shape) for value in node.inputs]
        return all(rank is not None and rank >= 2 for rank in ranks)
    return (
        not node.attributes.get_int("transA", 0)
        and node.attributes.get_float("alpha", 1.0) == 1
        and node.attributes.get_float("beta", 1.0) == 1
    )


def normalized(group: Group) -> bool:
    """Whether the pass has normalized the value before."""
    maker = group.value.producer()
    if maker is None or maker.op_type != "Div" or maker.inputs[1] is None:
        return False
    divisor = maker.inputs[1].producer()
    return divisor is not None and divisor.op_type in ("ReduceMax", "Max")


def _one_row(group: Group, rules: QuantizationRules) -> bool:
    """Whether a range of every call, which a kernel computes, is that of the value's only row."""
    shape = group.value.shape
    one = shape is not None and all(dim == 1 for dim in list(shape)[:-1])
    return one and all(node.op_type in rules.dynamic for node in group.products)


def _along_rows(softmax: ir.Node) -> bool:
    """Whether a softmax is along the last axis."""
    shape = softmax.outputs[0].shape
    axis = softmax.attributes.get_int("axis", -1)
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _by_maker(groups: list[Group]) -> list[list[Group]]:
    """Parts values by the operator that makes them, past what moves or scales them."""
    parts: dict[str, list[Group]] = {}
    for group in groups:
        maker = group.value.producer()
        while maker is not None and maker.op_type in PASSING and maker.inputs[0] is not None:
            if (before := maker.inputs[0].producer()) is None:
                break
            maker = before
        parts.setdefault("" if maker is None else maker.op_type, []).append(group)
    return list(parts.values())


def _left(
    model: ir.Model,
    names: list[str],
    ranges: dict[str, QuantParams],
    calls: Iterable[Feeds],
    *,
    symmetric: bool,
) -> dict[str, float]:
    """Returns per value the part of its noise that stays when every row has a range of its own."""
    seen: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for name, array in tapped(model, names, calls):
        if array.ndim < 2 or not array.size or sum(map(len, seen[name])) >= ROWS:
            continue
        rows = np.asarray(array, np.float32).reshape(-1, array.shape[-1])
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), ROWS_PER_CALL)).astype(np.int64)]
        seen[name].append(rows[np.isfinite(rows).all(1)])
    return {name: _part(rows, ranges[name], symmetric) for name, rows in seen.items()}


def _part(seen: list[np.ndarray], fixed: QuantParams, symmetric: bool) -> float:
    kept_rows = [rows for rows in seen if rows.size]
    if not kept_rows or fixed.scale is None:
        return 1.0
    largest = [np.maximum(np.abs(rows).max(1, keepdims=True), SMALLEST) for rows in kept_rows]
    normalized = [rows / most for rows, most in zip(kept_rows, largest, strict=True)]
    low = min(float(rows.min()) for rows in normalized)
    high = max(float(rows.max()) for rows in normalized)
    own = parameters(low, high, fixed.dtype, symmetric)
    before = sum(float(np.square(_rounded(rows, fixed) - rows, dtype=np.float64).sum()) for rows in kept_rows)
    after = sum(
        float(np.square((_rounded(rows, own) - rows) * most, dtype=np.float64).sum())
        for rows, most in zip(normalized, largest, strict=True)
    )
    return min(after / before, 1.0) if before else 1.0


def _rounded(array: np.ndarray, params: QuantParams) -> np.ndarray:
    return dequantize_array(quantize_array(array, params), params)


def _noise(decibels: float) -> float:
    return float(10 ** (-decibels / 10))
