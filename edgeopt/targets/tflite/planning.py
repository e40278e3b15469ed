"""Which steps a TFLite program has: activations fused, and quantization taken in where a kernel has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from edgeopt.targets.tflite.steps import Step, clip_bounds, constant, only_reader, parameters, quantized


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
