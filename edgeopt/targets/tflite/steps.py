"""From a prepared ONNX graph to the steps of a TFLite program.

A step is one TFLite operator to be (seldom a few): an ONNX node with the activation that runs in the
same kernel, and, where all that it reads and makes is quantized, with its QuantizeLinear and
DequantizeLinear taken in, so that it runs in integers. What is quantized around a node that cannot run
in integers stays as steps of its own, so no number changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.graph.layout import shape_of


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A value known now, perhaps behind a DequantizeLinear.

    Attributes:
        data: The numbers; of an integer type where ``scale`` is given.
        scale: float32, () or [channels].
        zero_point: Integers, shaped as ``scale``.
        axis: The axis of the channels.
    """

    data: np.ndarray
    scale: np.ndarray | None = None
    zero_point: np.ndarray | None = None
    axis: int = 0

    def real(self) -> np.ndarray:
        """The numbers that it stands for, dequantized."""
        if self.scale is None or self.zero_point is None:
            return self.data
        shape = [1] * self.data.ndim
        if self.scale.ndim:
            shape[self.axis] = -1
        scale, zero = self.scale.reshape(shape), self.zero_point.reshape(shape)
        return np.asarray((self.data.astype(np.int64) - zero).astype(np.float32) * scale)


@dataclass(frozen=True, slots=True, eq=False)
class Parameters:
    """The quantization of a value at run time: one scale and zero point."""

    dtype: str
    scale: float
    zero_point: int

    def same(self, other: Parameters | None) -> bool:
        """Whether another value is quantized alike."""
        return other is not None and (self.dtype, self.scale, self.zero_point) == (
            other.dtype,
            other.scale,
            other.zero_point,
        )


def constant(value: ir.Value | None) -> Constant | None:
    """The constant that a value is, if it is one: an initializer, a Constant, or one of these cast from
    float16 or dequantized."""
    if value is None:
        return None
    if (tensor := plain(value)) is not None:
        return Constant(tensor)
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "Cast" and (half := plain(node.inputs[0])) is not None:
        return Constant(half) if half.dtype == np.float16 else None
    if node.op_type != "DequantizeLinear":
        return None
    data, scale = plain(node.inputs[0]), plain(node.inputs[1])
    if data is None or scale is None or "block_size" in node.attributes:
        return None
    zero = plain(node.inputs[2]) if len(node.inputs) > 2 else None
    axis = attribute(node, "axis", 1) % max(data.ndim, 1)
    if zero is None:
        zero = np.zeros(scale.shape, np.int64)
    return Constant(data, scale.astype(np.float32), zero.astype(np.int64), axis if scale.ndim else 0)


def plain(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer or of a Constant node."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def parameters(value: ir.Value | None) -> Parameters | None:
    """The quantization of a value that QuantizeLinear makes per tensor."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "QuantizeLinear" or "block_size" in node.attributes:
        return None
    scale = plain(node.inputs[1])
    zero = plain(node.inputs[2]) if len(node.inputs) > 2 else np.zeros((), np.uint8)
    if scale is None or zero is None or scale.size != 1:
        return None
    return Parameters(zero.dtype.name, float(scale.reshape(())), int(zero.reshape(())))


def quantized(value: ir.Value | None) -> ir.Value | None:
    """The integer value behind a value that DequantizeLinear makes from one computed at run time."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    return node.inputs[0] if parameters(node.inputs[0]) is not None else None


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """An attribute's plain value, or the default."""
    found = node.attributes.get(name)
    if found is None:
        return default
    value = found.value
    return list(value) if isinstance(value, (tuple, list)) else value


@dataclass(slots=True, eq=False)
class Step:
    """One operator of the program to be.

    Attributes:
        node: The ONNX node.
        inputs: Its inputs; the quantized values themselves where it runs in integers.
        outputs: Its outputs, likewise; those of the activation where one is fused.
        integer: It runs in integers.
        activation: The fused activation: ``RELU``, ``RELU6``, ``RELU_N1_TO_1`` or empty.
    """

    node: ir.Node
    inputs: list[ir.Value | None]
    outputs: list[ir.Value]
    integer: bool = False
    activation: str = ""

    @property
    def op_type(self) -> str:
        """The ONNX operator."""
        return self.node.op_type

    @property
    def name(self) -> str:
        """The node's name, or failing that its first output's."""
        return self.node.name or (self.node.outputs[0].name or "")

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's plain value, or the default."""
        return attribute(self.node, name, default)

    def input(self, index: int) -> ir.Value | None:
        """An input, ``None`` where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def constant(self, index: int) -> Constant | None:
        """An input's constant, if it is one."""
        return constant(self.input(index))

    def array(self, index: int, name: str = "") -> np.ndarray | None:
        """A parameter that is a constant input or, in older opsets, an attribute."""
        if (found := self.constant(index)) is not None:
            return found.real()
        given = self.attribute(name) if name else None
        return None if given is None else np.array(given)

    def ints(self, index: int, name: str = "") -> list[int] | None:
        """As ``array``, for integers."""
        found = self.array(index, name)
        return None if found is None else [int(item) for item in found.reshape(-1)]

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """An input's shape."""
        value = self.input(index)
        return () if value is None else shape_of(value)

    def result(self, index: int = 0) -> tuple[int, ...]:
        """An output's shape."""
        return shape_of(self.outputs[index])


@dataclass(slots=True)
class Plan:
    """The steps of a program, and which value stands for each input and output of the model."""

    steps: list[Step] = field(default_factory=list)
    inputs: list[tuple[ir.Value, ir.Value]] = field(default_factory=list)
    outputs: list[tuple[ir.Value, ir.Value]] = field(default_factory=list)


def plan(
    graph: ir.Graph,
    *,
    fuses: Callable[[Step], bool],
    integer: Callable[[Step], bool],
    io: str = "float",
) -> Plan:
    """Makes the steps of a graph.

    Args:
        graph: The prepared graph.
        fuses: Whether a step can take in an activation.
        integer: Whether a step, whose inputs and outputs are already the quantized values, can run so.
        io: ``int8`` lets the program's inputs and outputs be integers where the model quantizes them.
    """
    taken: dict[ir.Node, None] = {}
    steps: dict[ir.Node, Step] = {}
    for node in graph:
        if node in taken or node.op_type in ("QuantizeLinear", "DequantizeLinear", "Constant"):
            continue
        if all(constant(output) is not None for output in node.outputs):
            continue
        step = Step(node, list(node.inputs), list(node.outputs))
        chain: list[ir.Node] = []
        if fuses(step):
            if (follower := _bias_after(step)) is not None:
                chain.append(follower)
                step.outputs = list(follower.outputs)
            if (found := _activation_after(step)) is not None:
                chain.append(found[0])
                step.activation = found[1]
                step.outputs = list(found[0].outputs)
        if (whole := _in_integers(step, integer)) is not None:
            chain.extend(whole[1])
            step = whole[0]
        taken.update(dict.fromkeys(chain))
        # A step stands where the last node that it takes in stood, so that its inputs are all there.
        steps[chain[-1] if chain else node] = step
    return _assemble(graph, taken, steps, io)


def _assemble(graph: ir.Graph, taken: Mapping[ir.Node, None], steps: dict[ir.Node, Step], io: str) -> Plan:
    result = Plan()
    integer_io = io == "int8"
    swapped: dict[ir.Value, ir.Value] = {}
    for value in graph.inputs:
        users = {usage.node for usage in value.uses()}
        only = next(iter(users)) if len(users) == 1 and not value.is_graph_output() else None
        if integer_io and only is not None and parameters(only.outputs[0]) is not None:
            swapped[only.outputs[0]] = value
            result.inputs.append((value, only.outputs[0]))
        else:
            result.inputs.append((value, value))
    for value in graph.outputs:
        inner = quantized(value) if integer_io else None
        result.outputs.append((value, inner if inner is not None else value))
    wanted: set[ir.Value | None] = {used for _, used in result.outputs}
    for step in steps.values():
        wanted.update(step.inputs)
    for node in graph:
        if node in steps:
            result.steps.append(steps[node])
        elif node.op_type == "QuantizeLinear" and node not in taken:
            output = node.outputs[0]
            if output in swapped:
                continue
            source = node.inputs[0]
            inner = quantized(source)
            result.steps.append(Step(node, [inner if inner is not None else source], [output]))
            if inner is None:
                wanted.add(source)
    for node in graph:
        if node.op_type == "DequantizeLinear" and quantized(node.outputs[0]) is not None:
            if node.outputs[0] in wanted:
                result.steps.append(Step(node, [node.inputs[0]], [node.outputs[0]]))
        elif node.op_type == "DequantizeLinear" and constant(node.outputs[0]) is None:
            result.steps.append(Step(node, list(node.inputs), list(node.outputs)))
    result.steps = _sorted(result)
    return result


def _sorted(result: Plan) -> list[Step]:
    """Topological order, keeping the given one where it is free; drops steps that nothing reads."""
    maker = {output: step for step in result.steps for output in step.outputs}
    order: dict[int, Step] = {}
    position = {id(step): number for number, step in enumerate(result.steps)}
    live: set[int] = set()
    stack: list[ir.Value | None] = [used for _, used in result.outputs]
    while stack:
        step = maker.get(stack.pop())  # type: ignore[arg-type]
        if step is not None and id(step) not in live:
            live.add(id(step))
            stack.extend(step.inputs)

    def visit(step: Step) -> None:
        pending = [(step, False)]
        while pending:
            item, ready = pending.pop()
            if id(item) in order:
                continue
            if ready:
                order[id(item)] = item
                continue
            pending.append((item, True))
            needs = {id(m): m for value in item.inputs if value is not None and (m := maker.get(value))}
            pending.extend((need, False) for need in sorted(needs.values(), key=lambda s: -position[id(s)]))

    for step in result.steps:
        if id(step) in live:
            visit(step)
    return list(order.values())


def only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value, if there is just one and it is no graph output."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _bias_after(step: Step) -> ir.Node | None:
    """An Add of a constant vector over the last axis after a MatMul: its bias."""
    if step.op_type != "MatMul" or constant(step.inputs[1]) is None or len(step.shape(1)) != 2:
        return None
    add = only_reader(step.outputs[0])
    if add is None or add.op_type != "Add":
        return None
    other = add.inputs[1] if add.inputs[0] is step.outputs[0] else add.inputs[0]
    known = constant(other)
    if known is None or known.data.shape != (step.result()[-1],):
        return None
    step.inputs.append(other)
    return add


def _activation_after(step: Step) -> tuple[ir.Node, str] | None:
    node = only_reader(step.outputs[0])
    if node is None:
        return None
    if node.op_type == "Relu":
        return node, "RELU"
    if node.op_type == "Clip" and node.inputs[0] is step.outputs[0]:
        low, high = clip_bounds(node)
        kind = {(0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1", (0.0, float("inf")): "RELU"}
        if (low, high) in kind:
            return node, kind[low, high]
    return None


def clip_bounds(node: ir.Node) -> tuple[float, float]:
    """The bounds of a Clip, infinite where it has none, not a number where they are not known."""
    bounds = [float("-inf"), float("inf")]
    for index, name in ((1, "min"), (2, "max")):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None:
            known = constant(value)
            bounds[index - 1] = float("nan") if known is None else float(known.real().reshape(()))
        elif name in node.attributes:
            bounds[index - 1] = float(node.attributes[name].value)
    return bounds[0], bounds[1]


def _in_integers(step: Step, integer: Callable[[Step], bool]) -> tuple[Step, list[ir.Node]] | None:
    """The step on the quantized values themselves, if it reads and makes nothing else."""
    inputs: list[ir.Value | None] = []
    some = False
    for value in step.inputs:
        inner = quantized(value)
        if inner is None and value is not None and value.dtype == ir.DataType.FLOAT:
            known = constant(value)
            if known is None:
                return None
        inputs.append(inner if inner is not None else value)
        some |= inner is not None
    if not some:
        return None
    outputs: list[ir.Value] = []
    taken: list[ir.Node] = []
    for value in step.outputs:
        if value.dtype is not None and value.dtype.is_integer():
            outputs.append(value)
            continue
        reader = only_reader(value)
        if reader is None or parameters(reader.outputs[0]) is None or reader.inputs[0] is not value:
            return None
        outputs.append(reader.outputs[0])
        taken.append(reader)
    whole = Step(step.node, inputs, outputs, True, step.activation)
    return (whole, taken) if integer(whole) else None
