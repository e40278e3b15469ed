"""Make the channels that matrix products read alike in range, which changes no output in float.

The algebra stands in ``_smoothing.py``. Each value that products alone read quantized (a LayerNormalization,
an activation, the mixed values of attention) gets scales s and shifts z per channel. Where its producer can
absorb them they cost nothing: the scale and bias of a LayerNormalization, or the weights of a linear layer.
Elsewhere one multiplication is inserted before the products, which is worth its price only with a gain of
half a decibel in their output; a shift is not, since it would need an addition too.

Whether the model as a whole gains is judged on validation samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt import units
from edgeopt.graph.change import Change, Rewrite, Skipped
from edgeopt.graph.names import carry_names, name_nodes, original_names
from edgeopt.graph.placement import is_constant, place
from edgeopt.graph.quantization import Names, add_initializer, drop_initializer
from edgeopt.passes._calibration import METHODS, WORTH, Calls, Reference, calibrate, comparing, scales, worth
from edgeopt.passes._rows import sample_rows
from edgeopt.passes._rules import kept, quantization_rules
from edgeopt.passes._smoothing import GAIN, Smoothing, search
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Samples, Stage
from edgeopt.platform import QuantizationRules

SAMPLES = 256
"""At most this many calibration samples set the ranges."""

FEWEST = 2
"""Models with fewer groups are left alone."""


@dataclass(slots=True)
class Group:
    """A value and the products that read it, each with its bias, where it has one.

    Attributes:
        value: What is smoothed.
        products: MatMul and Gemm nodes.
        biases: Per product the node and input that add its bias, or ``None``.
    """

    value: ir.Value
    products: list[ir.Node]
    biases: list[tuple[ir.Node, int] | None]


@dataclass(frozen=True)
class SmoothActivations(Pass):
    """Move outliers of activations into weights, and centre them; exact in float.

    Attributes:
        keep_float: Shell patterns of original node names that will stay in float.
        shift: Centre channels as well, where a LayerNormalization can do it.
        insert: Also smooth where an operator must be inserted for it.
    """

    name: ClassVar[str] = "smooth-activations"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "exact"

    keep_float: tuple[str, ...] = ()
    shift: bool = True
    insert: bool = True

    @property
    def reads(self) -> frozenset[Facet]:
        """The rules and the samples."""
        return frozenset({"rules", "calibration", "validation"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Smooths every group that gains by it.

        Raises:
            UserError: A pattern of ``keep_float`` matches no node.
        """
        name_nodes(model)
        data = context.calibration
        if data is None or len(data) == 0:
            return Change(summary="needs calibration data")
        rules = quantization_rules(context.rules)
        keep = set(kept(model, self.keep_float))
        groups = find_groups(model, rules, keep)
        if len(groups) < FEWEST:
            return Change(summary="none")
        calls = Calls.fitting(model, data, SAMPLES)
        seen = sample_rows(model, [group.value.name or "" for group in groups], calls)
        change = Change()
        plain = model.clone()
        alphas: dict[str, float] = {}
        names = Names(model)
        for group in context.progress(groups, "smoothing", len(groups)):
            site = original_names(group.products[0])[0]
            rows = seen.get(group.value.name or "")
            if rows is None or not np.isfinite(rows.low).all() or not np.isfinite(rows.high).all():
                continue
            free = _absorber(group, shift=False) is not None
            weights = np.concatenate([_weight(node) for node in group.products], axis=1)
            shift = self.shift and _norm(group) and all(bias is not None for bias in group.biases)
            found = search(rows, weights, rules, shift=shift)
            if found is None or found.after < found.before + (0.1 if free else GAIN):
                change.skipped.append(Skipped(self.name, site, "its output is as good without"))
            elif not free and not self.insert:
                change.skipped.append(Skipped(self.name, site, "an operator would have to be inserted"))
            elif context.allow(self.name, site):
                _apply(model, group, found, names)
                alphas[site] = found.alpha
                replaced = tuple(name for node in group.products for name in original_names(node))
                change.rewrites.append(Rewrite(self.name, site, replaced))
        if not change.rewrites:
            change.summary = "no products gain by smoothing"
            return change
        return self._judged(model, plain, change, alphas, context.validation, rules, calls)

    def _judged(
        self,
        model: ir.Model,
        plain: ir.Model,
        change: Change,
        alphas: dict[str, float],
        samples: Samples | None,
        rules: QuantizationRules,
        calls: Calls,
    ) -> Change:
        """Takes everything back where the whole model is not more faithful."""
        change.details = {"alphas": alphas}
        change.summary = f"{units.number(len(change.rewrites), 'group')} of products smoothed"
        if samples is None or len(samples) == 0:
            return change
        calls, judging = comparing(plain, calls.data), Reference(plain, comparing(plain, samples))
        keep = set(kept(model, self.keep_float))
        judged: dict[str, float] = {}
        for name, candidate in (("none", plain), ("smoothed", model)):
            placement, observers = calibrate(candidate, rules, calls, keep)
            best = -np.inf
            for method in METHODS:
                found = worth(candidate, scales(candidate, placement, observers, method), judging)
                best = max(best, round(found, 2))
                if judged and best >= judged["none"] + WORTH:
                    break  # it gains, however ranges are chosen
            judged[name] = best
        change.details["fidelity"] = judged
        if judged["smoothed"] < judged["none"] + WORTH:
            change.summary = "products could be smoothed, but int8 is better without"
            change.rewrites.clear()
            _restore(model, plain)
        return change


def _restore(model: ir.Model, plain: ir.Model) -> None:
    """Gives a model the graph of another."""
    fresh = plain.clone()
    model.graph = fresh.graph


def find_groups(model: ir.Model, rules: QuantizationRules, keep: set[str]) -> list[Group]:
    """Finds the values that only products read quantized, each with all products that read it."""
    operands = place(model, rules, keep).operands
    groups: dict[ir.Value, Group] = {}
    for node in model.graph:
        value = node.inputs[0] if node.inputs else None
        if value is None or value.name not in operands or node.name in keep or not _is_product(node):
            continue
        group = groups.setdefault(value, Group(value, [], []))
        group.products.append(node)
        group.biases.append(_bias(node))
    for value, group in list(groups.items()):
        others = [use.node for use in value.uses() if use.node not in group.products]
        quantized = [node for node in others if node.op_type in ("MatMul", "Gemm") and node.name not in keep]
        if quantized or value.is_graph_input():  # another product reads the same integers
            del groups[value]
    return list(groups.values())


def _is_product(node: ir.Node) -> bool:
    if node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx"):
        return False
    weight = node.inputs[1]
    if weight is None or not is_constant(weight) or weight.dtype != ir.DataType.FLOAT:
        return False
    if len(weight.shape or ()) != 2 or len(weight.uses()) != 1 or weight.is_graph_output():
        return False
    return node.op_type == "MatMul" or (
        not node.attributes.get_int("transA", 0)
        and node.attributes.get_float("alpha", 1.0) == 1
        and node.attributes.get_float("beta", 1.0) == 1
    )


def _transposed(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))


def _weight(node: ir.Node) -> np.ndarray:
    """Returns a product's weight as [channels, outputs]."""
    array = _array(node.inputs[1])
    return array.T if _transposed(node) else array


def _array(value: ir.Value | None) -> np.ndarray:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def _bias(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Returns the node and input that add a constant vector to a product's output."""
    outputs = _weight(node).shape[1]
    if node.op_type == "Gemm":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        fits = bias is not None and is_constant(bias) and bias.dtype == ir.DataType.FLOAT
        return (node, 2) if fits and _array(bias).shape == (outputs,) else None
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output() or uses[0].node.op_type != "Add":
        return None
    other = 1 - uses[0].idx
    bias = uses[0].node.inputs[other]
    if bias is None or not is_constant(bias) or _array(bias).shape != (outputs,):
        return None
    return uses[0].node, other


def _norm(group: Group) -> bool:
    """Whether a LayerNormalization can absorb scales and shifts."""
    node = group.value.producer()
    if node is None or node.op_type != "LayerNormalization" or not _alone(group):
        return False
    axis = node.attributes.get_int("axis", -1)
    rank = len(group.value.shape) if group.value.shape is not None else None
    if axis != -1 and (rank is None or axis != rank - 1):
        return False
    return all(value is None or is_constant(value) for value in node.inputs[1:3])


def _alone(group: Group) -> bool:
    readers = {use.node for use in group.value.uses()}
    return readers == set(group.products) and not group.value.is_graph_output()


def _absorber(group: Group, *, shift: bool) -> ir.Node | None:
    """Returns the node that takes over scales, and shifts where asked, without a further operator."""
    node = group.value.producer()
    if node is None or not _alone(group):
        return None
    if _norm(group):
        return node
    if node.op_type == "Relu" and not shift and node.inputs[0] is not None:
        if len(node.inputs[0].uses()) > 1 or node.inputs[0].is_graph_output():
            return None
        node = node.inputs[0].producer()
    if node is None or node.op_type != "Gemm" or not _is_product(node):
        return None
    return node if len(node.inputs) < 3 or node.inputs[2] is None or _bias(node) is not None else None


def _apply(model: ir.Model, group: Group, found: Smoothing, names: Names) -> None:
    """Writes one group's scales and shifts into the graph."""
    graph = model.graph
    scale = found.scale.astype(np.float64)
    shift = None if found.shift is None else found.shift.astype(np.float64)
    for node, bias in zip(group.products, group.biases, strict=True):
        weight = _weight(node).astype(np.float64)
        if shift is not None and bias is not None:
            _set(graph, bias[0], bias[1], _array(bias[0].inputs[bias[1]]) + shift @ weight, names)
        weight = weight * scale[:, None]
        _set(graph, node, 1, weight.T if _transposed(node) else weight, names)
    absorber = _absorber(group, shift=shift is not None)
    if absorber is None:
        _insert(model, group, scale, names)
    elif absorber.op_type == "LayerNormalization":
        gamma = _array(absorber.inputs[1])
        given = absorber.inputs[2] if len(absorber.inputs) > 2 else None
        beta = np.zeros_like(gamma) if given is None else _array(given)
        _set(graph, absorber, 1, gamma / scale, names)
        if given is not None or shift is not None:
            _set(graph, absorber, 2, (beta - (0 if shift is None else shift)) / scale, names)
    else:
        weight = _weight(absorber) / scale
        _set(graph, absorber, 1, weight.T if _transposed(absorber) else weight, names)
        bias = _bias(absorber)
        if bias is not None:
            moved = _array(absorber.inputs[2]) - (0 if shift is None else shift)
            _set(graph, absorber, 2, moved / scale, names)


def _set(graph: ir.Graph, node: ir.Node, index: int, array: np.ndarray, names: Names) -> None:
    """Gives a node's input a new constant of its own."""
    old = node.inputs[index] if index < len(node.inputs) else None
    stem = (old.name if old is not None else f"{node.name}_{index}") or "constant"
    keep = old is not None and len(old.uses()) == 1 and not old.is_graph_output()
    if keep and old is not None:
        old.const_value = ir.tensor(np.ascontiguousarray(array, np.float32), name=stem)
        return
    tensor = ir.tensor(np.ascontiguousarray(array, np.float32), name=names.value(f"{stem}_smoothed"))
    value = add_initializer(graph, tensor.name or "", tensor)
    if index < len(node.inputs):
        node.replace_input_with(index, value)
    else:
        node.resize_inputs(index + 1)
        node.replace_input_with(index, value)
    if old is not None:
        drop_initializer(graph, old)


def _insert(model: ir.Model, group: Group, scale: np.ndarray, names: Names) -> None:
    """Inserts x / s before the products."""
    graph, value = model.graph, group.value
    name = names.value(f"{value.name}_scale")
    constant = add_initializer(graph, name, ir.tensor((1 / scale).astype(np.float32), name=name))
    node = ir.Node("", "Mul", [value, constant], name=names.node(f"{value.name}_mul"))
    carry_names([group.products[0]], node)
    result = node.outputs[0]
    result.name = names.value(f"{value.name}_smoothed")
    result.type, result.shape = value.type, value.shape
    graph.insert_before(min(group.products, key=lambda item: _position(graph, item)), node)
    for product in group.products:
        product.replace_input_with(0, result)


def _position(graph: ir.Graph, node: ir.Node) -> int:
    return next(index for index, other in enumerate(graph) if other is node)
