"""8 bits throughout: everything that flows between products is quantized, not their operands alone.

What counts as one operator, inside of which nothing is rounded: a product with its bias and a fused
activation; a softmax with the scale and the mask before it, so that a mask's -3.4e38 never sets a range;
the sum of embeddings, whose tables are integers already. Views (reshape, transpose, slice) pass integers
on. Outputs of a split get ranges of their own.

The *residual stream* of a transformer, which is what normalizations and residual sums read and make, has a
few channels that reach fifty times as far as the others, and a normalization scales them away again: one
scale for all leaves the others nothing. It gets a scale per channel instead. For integers that costs
nothing: a product requantizes each output channel by a factor of its own in any case, a sum adds what has
been rescaled, and a normalization reads its input channel by channel. Where ``smooth-activations`` has put
a multiplication between a normalization and its products, the normalization's output takes the scales
that it divides by, so that the sum and the products read the same integers.

With ``residual="int16"`` the sums alone have 16 bits, with one scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgeopt.graph.execute import Feeds
from edgeopt.graph.observers import parameters, tapped
from edgeopt.graph.placement import Placement, is_constant, place
from edgeopt.graph.quantization import QuantParams, Site, integer_range
from edgeopt.platform import QuantizationRules, TensorRule

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"})
NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
VIEWS = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice"})
BEFORE_SOFTMAX = frozenset({"Add", "Sub", "Mul", "Div", "Where"})

Residual = Literal["int8", "int16"]


@dataclass(slots=True)
class Throughout:
    """What is to be quantized, throughout.

    Attributes:
        placement: As for the products alone, with all that flows between them.
        channels: Values with a scale per channel of their last axis; beside each the value whose range
            sets it and the factors by channel, where a multiplication before products has them.
        sums: Residual sums.
    """

    placement: Placement
    channels: dict[str, tuple[str, np.ndarray] | None] = field(default_factory=dict)
    sums: set[str] = field(default_factory=set)


def place_throughout(
    model: ir.Model,
    rules: QuantizationRules,
    keep: Set[str] = frozenset(),
    unfit: Set[str] = frozenset(),
    residual: Residual = "int8",
) -> Throughout:
    """Decides what is quantized where everything between products is.

    Args:
        model: The model; its nodes have unique names.
        rules: The runtime's rules, for the products' operands and the types.
        keep: Names of nodes whose results stay in float.
        unfit: Values that have no range to quantize.
        residual: What residual sums of transformers are rounded to.
    """
    rules = rules.model_copy(update={"rows_of": []})  # sums of integers have one scale for all rows
    placement = place(model, rules, keep, unfit)
    flow = _Flow(model, rules, keep, unfit)
    names = {value.name for value in flow.quantized}
    result = Throughout(placement)
    for where in [where for where in placement.activations if where.value in names]:
        del placement.activations[where], placement.rules[where]
    for value, origin in flow.quantized.items():
        where, name = Site(value.name or ""), origin.name or ""
        placement.activations[where] = name
        placement.rules[where] = flow.rule(origin)
        placement.operands.discard(value.name or "")
        if value is origin and origin in flow.streams:
            wide = residual == "int16" and flow.is_sum(value)
            if wide:
                dtype: Literal["int16", "uint16"] = (
                    "int16" if placement.rules[where].dtype.startswith("int") else "uint16"
                )
                placement.rules[where] = placement.rules[where].model_copy(update={"dtype": dtype})
            else:
                result.channels[name] = flow.factors(value)
            if flow.is_sum(value):
                result.sums.add(name)
    return result


class _Flow:
    """What flows between products, by value: the value whose range it takes."""

    def __init__(self, model: ir.Model, rules: QuantizationRules, keep: Set[str], unfit: Set[str]) -> None:
        self.graph, self.rules, self.keep, self.unfit = model.graph, rules, keep, unfit
        self.nodes = list(model.graph)
        self.deep: set[ir.Value] = set()
        self.embedded: set[ir.Value] = set()
        for node in self.nodes:
            self._note(node)
        self.inside = self._inside()
        self.ahead = self._ahead()
        self.quantized: dict[ir.Value, ir.Value] = {}
        for node in self.nodes:
            for output in node.outputs:
                self._quantize(node, output)
        self.streams = {value for value in self.quantized.values() if self._streams(value)}

    def _note(self, node: ir.Node) -> None:
        """Finds what products make, directly or not, and sums of embeddings."""
        reads = [value for value in node.inputs if value is not None]
        table = node.inputs[0] if node.op_type == "Gather" else None
        if table is not None and is_constant(table) and table.dtype == ir.DataType.FLOAT:
            self.embedded.update(node.outputs)
            self.deep.update(node.outputs)
        elif node.op_type == "Add" and all(value in self.embedded for value in reads):
            self.embedded.update(node.outputs)
        if node.op_type in PRODUCTS or any(value in self.deep for value in reads):
            self.deep.update(output for output in node.outputs if output.dtype in (None, ir.DataType.FLOAT))

    def _inside(self) -> set[ir.Value]:
        inside: set[ir.Value] = set()
        for node in self.nodes:
            output = node.outputs[0]
            only = self._only_reader(output)
            if only is None:
                continue
            if _has_weight(node) and only.op_type == "Add" and self._with_constant(only):
                inside.add(output)
                output, only = only.outputs[0], self._only_reader(only.outputs[0])
            made = node.op_type in PRODUCTS
            if made and only is not None and only.op_type in (*self.rules.fused_activations, "Split"):
                inside.add(output)
            if output in self.embedded and (only is not None and only.op_type == "Add"):
                inside.add(output)
        for node in self.nodes:
            if node.op_type == "Softmax" and node.inputs[0] is not None:
                inside |= self._masked(node.inputs[0])
        return inside

    def _masked(self, value: ir.Value) -> set[ir.Value]:
        """The values between scores and a softmax: scaled, masked."""
        inside: set[ir.Value] = set()
        while (node := value.producer()) is not None and node.op_type in BEFORE_SOFTMAX:
            scores = [item for item in node.inputs if item is not None and item in self.deep]
            if len(scores) != 1 or self._only_reader(value) is None or self._is_bias(node):
                break
            inside.add(value)
            value = scores[0]
        return inside

    def _is_bias(self, node: ir.Node) -> bool:
        """Whether a sum adds the bias of a product with constant weights."""
        makers = [value.producer() for value in node.inputs if value is not None]
        return any(maker is not None and _has_weight(maker) for maker in makers)

    def _ahead(self) -> set[ir.Value]:
        """The values that some product reads, directly or not."""
        ahead: set[ir.Value] = set()
        for node in reversed(self.nodes):
            if node.op_type in PRODUCTS or any(output in ahead for output in node.outputs):
                ahead.update(value for value in node.inputs if value is not None)
        return ahead

    def _quantize(self, node: ir.Node, output: ir.Value) -> None:
        if output not in self.deep or output in self.inside or output.name in self.unfit:
            return
        if node.name in self.keep or output.dtype not in (None, ir.DataType.FLOAT):
            return
        source = node.inputs[0]
        if node.op_type in VIEWS and source in self.quantized:
            self.quantized[output] = self.quantized[source]
            return
        made = node.op_type in PRODUCTS or node.op_type in NORMS or node.op_type == "Add"
        if output in self.ahead or (made and self._from_product(node)):
            self.quantized[output] = output

    def _from_product(self, node: ir.Node) -> bool:
        """Whether a node is a product, its bias, or the sum or norm that such a thing flows into."""
        return node.op_type in PRODUCTS or any(
            value is not None and (value in self.quantized or value in self.inside) for value in node.inputs
        )

    def rule(self, value: ir.Value) -> TensorRule:
        """How a value's range becomes parameters: a softmax's is known in advance."""
        rule = self.rules.activation
        node = value.producer()
        if node is not None and node.op_type == "Softmax":
            low, high = integer_range(ir.DataType[rule.dtype.upper()])
            return rule.model_copy(update={"scale": 1 / (high - low + 1), "zero_point": low})
        return rule

    def is_sum(self, value: ir.Value) -> bool:
        """Whether a value is what a normalization reads: a residual sum."""
        return any(use.node.op_type in NORMS and use.idx == 0 for use in value.uses())

    def _streams(self, value: ir.Value) -> bool:
        """Whether a value belongs to the residual stream alone: sums and norms read it, products do not."""
        node = value.producer()
        if node is None or value.shape is None or len(value.shape) < 3 or value.is_graph_output():
            return False
        if not isinstance(value.shape[-1], int) or node.op_type not in ("Add", *NORMS):
            return False
        readers = list(value.uses())
        return bool(readers) and all(
            (use.node.op_type in NORMS and use.idx == 0)
            or self._is_residual(use.node)
            or self._scales(use.node) is not None
            for use in readers
        )

    def _is_residual(self, node: ir.Node) -> bool:
        """Whether a node is a sum that a normalization reads."""
        return node.op_type == "Add" and not self._with_constant(node) and self.is_sum(node.outputs[0])

    def _scales(self, node: ir.Node) -> np.ndarray | None:
        """The factors of a multiplication by channel that only products read."""
        if node.op_type != "Mul" or node.outputs[0].is_graph_output():
            return None
        constants = [value for value in node.inputs if value is not None and is_constant(value)]
        if len(constants) != 1 or constants[0].const_value is None:
            return None
        if not all(use.node.op_type in ("MatMul", "Gemm") for use in node.outputs[0].uses()):
            return None
        factors = constants[0].const_value.numpy().reshape(-1)
        return factors if factors.size > 1 and (factors > 0).all() else None

    def factors(self, value: ir.Value) -> tuple[str, np.ndarray] | None:
        """What a multiplication before products divides a value's channels by, and its result."""
        for use in value.uses():
            scales = self._scales(use.node)
            if scales is not None and value.shape is not None and scales.size == value.shape[-1]:
                return use.node.outputs[0].name or "", scales
        return None

    def _only_reader(self, value: ir.Value) -> ir.Node | None:
        readers = list(value.uses())
        return readers[0].node if len(readers) == 1 and not value.is_graph_output() else None

    def _with_constant(self, node: ir.Node) -> bool:
        return any(value is not None and is_constant(value) for value in node.inputs)


def _has_weight(node: ir.Node) -> bool:
    """Whether a node is a product with a constant weight."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    return node.op_type in PRODUCTS and weight is not None and is_constant(weight)


def channel_parameters(
    model: ir.Model,
    flow: Throughout,
    known: dict[str, QuantParams],
    samples: Iterable[Feeds],
) -> dict[Site, list[QuantParams]]:
    """Chooses the parameters of values that have a scale per channel, from their extremes.

    Args:
        model: The model.
        flow: What is quantized.
        known: Parameters of one scale, by value.
        samples: The calls.
    """
    free = [name for name, factors in flow.channels.items() if factors is None or factors[0] not in known]
    lows: dict[str, np.ndarray] = {}
    highs: dict[str, np.ndarray] = {}
    for name, array in tapped(model, free, samples):
        flat = array.reshape(-1, array.shape[-1])
        low, high = flat.min(0), flat.max(0)
        lows[name] = np.minimum(lows.get(name, low), low)
        highs[name] = np.maximum(highs.get(name, high), high)
    ranks = {
        output.name: len(output.shape)
        for node in model.graph
        for output in node.outputs
        if output.shape is not None
    }
    found: dict[Site, list[QuantParams]] = {}
    for name, factors in flow.channels.items():
        where, axis = Site(name), ranks[name] - 1
        if name in lows:
            rule = flow.placement.rules[where]
            dtype = ir.DataType[rule.dtype.upper()]
            own = [
                parameters(float(low), float(high), dtype, rule.symmetric)
                for low, high in zip(lows[name], highs[name], strict=True)
            ]
            scale = np.array([item.scale for item in own], np.float32)
            zero = np.array([0 if item.zero_point is None else item.zero_point for item in own])
        elif factors is not None and factors[0] in known:
            one = known[factors[0]]
            assert one.scale is not None
            dtype = one.dtype
            scale = (one.scale / factors[1]).astype(np.float32)
            zero = np.full(scale.shape, 0 if one.zero_point is None else one.zero_point)
        else:
            continue
        found[where] = [QuantParams(dtype, scale, zero.astype(dtype.numpy()) if zero.any() else None, axis)]
    return found
