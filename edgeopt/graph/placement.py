"""Where integers go: from a runtime's rules to the sites that are quantized.

An operator whose rule says ``always`` is a product worth integers wherever it stands: its operands are
quantized for it alone, so that whoever else reads them keeps the float, and its output too where the rule
gives that a role. Operators *between* are quantized where some input comes in integers and some reader
of their output, directly or through others of their kind, wants them. Operators that *follow* only pass
integers on. So a convolutional network is quantized throughout up to its last product, while in a
transformer only the operands of products are, and what lies between (residual sums, norms, softmax,
masks) stays in float. *Residual* sums run in the kernel of the product that makes one summand, where the
other one comes in integers.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgeopt.graph.change import Skipped
from edgeopt.graph.observers import MARK
from edgeopt.graph.quantization import Site
from edgeopt.platform import OperatorRule, QuantizationRules, Role, TensorRule

SMALLEST_CONSTANT = 512
"""Constants of operators that compute in float are left alone below this many elements."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant to quantize.

    Attributes:
        value: Its name.
        rule: How.
        axis: The axis that has a scale per channel; ``None`` per tensor.
        other: Another axis that may have it instead, where that is nearer.
    """

    value: str
    rule: TensorRule
    axis: int | None
    other: int | None = None


@dataclass(slots=True)
class Placement:
    """What is to be quantized.

    Attributes:
        activations: Per site the value that sets its range (itself, or the one that it follows).
        rules: Per activation site how its range becomes parameters.
        constants: Per site of a constant how it is quantized.
        operands: Values that are quantized for the products that read them alone; others keep the float.
        products: Nodes that run in integers, or at least with integer weights, by name.
        biases: (node name, input, weight, bias, weight axis) of products with an int32 bias.
        skipped: Why nodes that could have been quantized are not.
        slope_factor: As the runtime's rules say.
    """

    activations: dict[Site, str] = field(default_factory=dict)
    rules: dict[Site, TensorRule] = field(default_factory=dict)
    constants: dict[Site, Constant] = field(default_factory=dict)
    operands: set[str] = field(default_factory=set)
    products: list[str] = field(default_factory=list)
    biases: list[tuple[str, str, str, str, int | None]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    slope_factor: int = 0

    @property
    def observed(self) -> list[str]:
        """The values whose ranges are needed, in order."""
        return list(dict.fromkeys(self.activations.values()))


def is_constant(value: ir.Value) -> bool:
    """Whether a value is an initializer that is no input of the graph."""
    return value.is_initializer() and value.const_value is not None and not value.is_graph_input()


def site(value: ir.Value, readers: Set[tuple[str, int]]) -> Site:
    """Makes the site of some readers of a value, in the form that ``read`` returns."""
    everyone = {(use.node.name or "", use.idx) for use in value.uses()}
    if readers == everyone and not value.is_graph_output():
        return Site(value.name or "")
    return Site(value.name or "", tuple(sorted(readers)))


def weight_axis(node: ir.Node, index: int, axis: int | None, rank: int) -> int | None:
    """Returns the axis of a weight's output channels, or ``None`` where it has none that fits."""
    if axis is None:
        return None
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    if node.op_type == "MatMul" and (rank != 2 or index != 1):
        return None
    return axis if axis < rank else None


def place(
    model: ir.Model,
    rules: QuantizationRules,
    keep: Set[str] = frozenset(),
    unfit: Set[str] = frozenset(),
) -> Placement:
    """Decides what is quantized in a model without quantization.

    Args:
        model: The model; its nodes have unique names.
        rules: The runtime's rules.
        keep: Names of nodes to leave in float.
        unfit: Values that have no range to quantize, such as masks.
    """
    return _Placer(model, rules, keep, unfit).run()


class _Placer:
    def __init__(self, model: ir.Model, rules: QuantizationRules, keep: Set[str], unfit: Set[str]) -> None:
        self.graph, self.rules, self.keep, self.unfit = model.graph, rules, keep, unfit
        self.placement = Placement(slope_factor=rules.slope_factor)
        self.nodes = [node for node in model.graph if node.domain in ("", "ai.onnx")]
        self.integer: dict[ir.Value, tuple[str, TensorRule]] = {}
        self.asked: dict[ir.Value, set[tuple[str, int]]] = {}
        self.weights: dict[ir.Value, set[tuple[str, int]]] = {}
        self.weight_rules: dict[ir.Value, tuple[TensorRule, int | None]] = {}
        self.either_axis: set[ir.Value] = set()
        self.fused: set[ir.Node] = set()

    def run(self) -> Placement:
        always = {node: rule for node in self.nodes if (rule := self._product(node)) is not None}
        wants = self._wants(always)
        for node in self.nodes:
            if node in self.fused or node.name in self.keep:
                continue
            rule = self.rules.operators.get(node.op_type)
            if node in always:
                self._quantize(node, always[node])
                self.placement.products.append(node.name or "")
            elif rule is not None and rule.follow:
                first = node.inputs[0] if node.inputs else None
                if wants[node] and first is not None and first in self.integer:
                    self._narrow(node, first)
                    for output in node.outputs:
                        self.integer[output] = self.integer[first]
            elif rule is not None and rule.when == "residual":
                self._residual(node, always)
            elif rule is not None and wants[node] and self._between(node, rule):
                self._quantize(node, rule)
            if node not in always and node.op_type in self.rules.constants:
                self._weights_only(node)
        return self._sites()

    def _product(self, node: ir.Node) -> OperatorRule | None:
        """Returns the rule of a node that is quantized wherever it stands."""
        rule = self.rules.operators.get(node.op_type)
        if rule is None or rule.follow or rule.when != "always":
            return None
        if node.name in self.keep:
            return None
        if reason := self._obstacle(node, rule):
            self.placement.skipped.append(Skipped("quantize", node.name or "", reason))
            return None
        return rule

    def _obstacle(self, node: ir.Node, rule: OperatorRule) -> str:
        for index, value in enumerate(node.inputs):
            role = _role(rule.inputs, index)
            if value is None or role is None:
                continue
            if value.dtype not in (None, ir.DataType.FLOAT):
                return f"its input {value.name!r} is {value.dtype}"
            if value.name in self.unfit:
                return f"its input {value.name!r} holds infinities or a mask"
            if role == "bias" and not is_constant(value):
                return f"its bias {value.name!r} is computed"
        if node.op_type == "Gemm":
            if node.attributes.get_float("alpha", 1.0) != 1 or node.attributes.get_float("beta", 1.0) != 1:
                return "its alpha or beta is not 1"
            if node.attributes.get_int("transA", 0):
                return "its first operand is transposed"
        return ""

    def _tail(self, node: ir.Node) -> ir.Value:
        """Returns the value after the activation that runs in the node's kernel, or the node's output."""
        output = node.outputs[0]
        uses = list(output.uses())
        if len(uses) != 1 or output.is_graph_output():
            return output
        reader = uses[0].node
        if reader.op_type not in self.rules.fused_activations or reader.graph is not self.graph:
            return output
        if reader.name in self.keep or uses[0].idx:
            return output
        if any(item is not None and not is_constant(item) for item in reader.inputs[1:]):
            return output
        return reader.outputs[0]

    def _wants(self, always: dict[ir.Node, OperatorRule]) -> dict[ir.Node, bool]:
        """Tells of every node whether it takes integers, given what is read after it."""
        wants: dict[ir.Node, bool] = {}

        def wanted(value: ir.Value) -> bool:
            for use in value.uses():
                rule = self.rules.operators.get(use.node.op_type)
                if rule is None or not wants.get(use.node):
                    continue
                if use.idx == 0 if rule.follow else _role(rule.inputs, use.idx) is not None:
                    return True
            return False

        for node in reversed(self.nodes):
            rule = self.rules.operators.get(node.op_type)
            if rule is None or node.name in self.keep:
                wants[node] = False
            elif node in always:
                wants[node] = True
            elif rule.follow:
                wants[node] = any(wanted(output) for output in node.outputs)
            else:
                wants[node] = rule.when == "between" and wanted(self._tail(node))
        return wants

    def _between(self, node: ir.Node, rule: OperatorRule) -> bool:
        """Whether some input comes in integers and all others can be quantized for this node."""
        comes = False
        for index, value in enumerate(node.inputs):
            if value is None or _role(rule.inputs, index) is None:
                continue
            if value in self.integer:
                comes = True
            elif (
                value.dtype not in (None, ir.DataType.FLOAT) or value.name in self.unfit or _has_marks(value)
            ):
                return False
        return comes

    def _residual(self, node: ir.Node, always: dict[ir.Node, OperatorRule]) -> None:
        """Quantizes the summand of a product's output for the sum alone; that output stays float.

        Best is a value that is quantized for another reader already. Where both summands come from
        products, the second is taken for the shortcut.
        """
        values = [value for value in node.inputs if value is not None]
        if len(values) != 2 or values[0] is values[1]:
            return
        made = [value.producer() in always and len(list(value.uses())) == 1 for value in values]
        if not any(made):
            return
        index = made.index(False) if not all(made) else 1
        value = values[index]
        fits = value.dtype in (None, ir.DataType.FLOAT) and value.name not in self.unfit
        if fits and not is_constant(value):
            self.asked.setdefault(value, set()).add((node.name or "", index))

    def _quantize(self, node: ir.Node, rule: OperatorRule) -> None:
        weight = bias = None
        axis: int | None = None
        for index, value in enumerate(node.inputs):
            role = _role(rule.inputs, index)
            if value is None or role is None:
                continue
            reader = (node.name or "", index)
            if role == "bias":
                bias = value
            elif is_constant(value):
                tensor = rule.weight or self.rules.weight if role == "weight" else self.rules.activation
                rank = len(value.shape or ())
                channels = role == "weight" and tensor.per_channel
                own = weight_axis(node, index, rule.channel_axis, rank) if channels else None
                if role == "weight":
                    weight, axis = value, own
                self._weight(value, reader, tensor, own)
            elif value not in self.integer:
                self.asked.setdefault(value, set()).add(reader)
        first = node.inputs[0]
        if bias is not None and weight is not None and first is not None and self.rules.bias == "int32":
            self.placement.biases.append(
                (node.name or "", first.name or "", weight.name or "", bias.name or "", axis)
            )
        for index, output in enumerate(node.outputs):
            if _role(rule.outputs, index) is None:
                continue
            tail = self._tail(node) if index == 0 else output
            if tail is not output and (producer := tail.producer()) is not None:
                self.fused.add(producer)
            if tail.name not in self.unfit:
                alone = tail.name or "", rule.output or self.rules.activation
                origin = self._shared(node, alone) if rule.same_scale else None
                if origin is not None:
                    self._tie(node, origin)
                    if node.op_type == "MaxPool" and first is not None:
                        self._narrow(node, first)
                        origin = self.integer[first]
                self.integer[tail] = origin or alone

    def _narrow(self, node: ir.Node, value: ir.Value) -> None:
        """Gives a value that a max pool alone reads the range of the maxima: no other number counts."""
        name, rule = self.integer[value]
        output = node.outputs[0]
        sole = len(value.uses()) == 1 and not value.is_graph_output() and not value.is_graph_input()
        if node.op_type == "MaxPool" and sole and name == value.name and output.name not in self.unfit:
            self.integer[value] = output.name or "", rule

    def _shared(self, node: ir.Node, alone: tuple[str, TensorRule]) -> tuple[str, TensorRule] | None:
        """Returns what sets the range of an output that has the scale of its inputs; ``None`` for itself.

        Where several inputs differ it is the range of all of them together, as the output shows it: that of
        any one input would cut the others off, or be coarse for them.
        """
        first = self.integer.get(node.inputs[0]) if node.inputs[0] is not None else None
        joined = [value for value in node.inputs if value is not None and value in self.integer]
        if first is None or all(self.integer[value] == first for value in joined):
            return first
        return alone

    def _tie(self, node: ir.Node, origin: tuple[str, TensorRule]) -> None:
        """Gives values that a joining operator alone reads the range that it brings them to anyway.

        So they are rounded once, in the kernel that makes them, and need no operator that requantizes.
        """
        for read in node.inputs:
            chain: list[ir.Value] = []
            value = read
            while value is not None and value in self.integer and self.integer[value] != origin:
                if len(value.uses()) != 1 or value.is_graph_output() or value.is_graph_input():
                    break
                chain.append(value)
                name, rule = self.integer[value]
                producer = value.producer()
                if name == value.name:
                    if rule == origin[1] and rule.scale is None:
                        self.integer.update(dict.fromkeys(chain, origin))
                    break
                known = None if producer is None else self.rules.operators.get(producer.op_type)
                if producer is None or known is None or not known.follow or len(producer.outputs) != 1:
                    break
                value = producer.inputs[0]

    def _weights_only(self, node: ir.Node) -> None:
        for index, axis in self.rules.constants[node.op_type].items():
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None or not is_constant(value) or value.dtype != ir.DataType.FLOAT:
                continue
            tensor = value.const_value
            if tensor is None or tensor.size < SMALLEST_CONSTANT:
                continue
            self._weight(value, (node.name or "", index), self.rules.weight, axis, self._gathers_rows(node))
            if node.name not in self.placement.products:
                self.placement.products.append(node.name or "")

    def _weight(
        self,
        value: ir.Value,
        reader: tuple[str, int],
        rule: TensorRule,
        axis: int | None,
        either: bool = False,
    ) -> None:
        """Notes a reader of a constant; readers that disagree on the axis share one scale.

        A reader that takes ``either`` axis of a matrix agrees with all others.
        """
        if value not in self.weights:
            self.weight_rules[value] = (rule, axis)
            if either:
                self.either_axis.add(value)
        elif value in self.either_axis and not either:
            self.either_axis.discard(value)
            self.weight_rules[value] = (rule, axis)
        elif self.weight_rules[value][1] != axis and not either:
            self.weight_rules[value] = (rule, None)
        self.weights.setdefault(value, set()).add(reader)

    def _gathers_rows(self, node: ir.Node) -> bool:
        """Whether a node gathers rows of a matrix that the runtime widens afterwards."""
        table = node.inputs[0]
        rank = 0 if table is None or table.shape is None else len(table.shape)
        return node.op_type in self.rules.rows_of and rank == 2 and node.attributes.get_int("axis", 0) == 0

    def _sites(self) -> Placement:
        result = self.placement
        for value in [*self.graph.inputs, *(out for node in self.graph for out in node.outputs)]:
            if value in self.integer:
                origin, rule = self.integer[value]
                where = Site(value.name or "")
                result.activations[where], result.rules[where] = origin, rule
            elif value in self.asked:
                where = site(value, self.asked[value])
                result.activations[where], result.rules[where] = value.name or "", self.rules.activation
                result.operands.add(value.name or "")
        for value, readers in self.weights.items():
            rule, axis = self.weight_rules[value]
            other = 0 if value in self.either_axis and axis == 1 else None
            result.constants[site(value, readers)] = Constant(value.name or "", rule, axis, other)
        return result


def _role(roles: Sequence[Role | None], index: int) -> Role | None:
    if not roles:
        return None
    return roles[index] if index < len(roles) else roles[-1]


def _has_marks(value: ir.Value) -> bool:
    tensor = value.const_value
    return is_constant(value) and tensor is not None and bool(np.any(~(np.abs(tensor.numpy()) < MARK)))
