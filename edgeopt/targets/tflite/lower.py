"""Lowering: from a prepared ONNX model to a TFLite program."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from edgeopt.graph.layout import Assignment, Choice, Layout, assign, identity, permutation
from edgeopt.targets.base import Adapter, Problem
from edgeopt.targets.tflite.emitter import Emitter
from edgeopt.targets.tflite.operators import OPERATORS
from edgeopt.targets.tflite.planning import Plan, plan
from edgeopt.targets.tflite.program import Program, Tensor, Unsupported, drop_reduced_axes, join_reshapes
from edgeopt.targets.tflite.steps import Step, constant, parameters


@dataclass(slots=True)
class Lowered:
    """A program with what led to it.

    Attributes:
        program: What the file holds.
        adapters: How the model's inputs and outputs map onto the program's.
        transposes: The TRANSPOSE operations in it.
        problems: Nodes that could not be said; the program is then not whole.
    """

    program: Program
    adapters: tuple[Adapter, ...] = ()
    transposes: int = 0
    problems: list[Problem] = field(default_factory=list)


def lower(model: ir.Model, io: str = "float") -> Lowered:
    """Lowers a prepared model, of static shapes, to a program.

    Args:
        model: The model; it is not changed.
        io: ``int8`` for quantized inputs and outputs, ``float`` for the model's own.
    """
    planned = plan(model.graph, fuses=_fuses, integer=_integer, io=io)
    problems = [_problem(step, *reason) for step, reason in _unsayable(planned)]
    if problems:
        return Lowered(Program(), problems=problems)
    offers = [OPERATORS[step.op_type].layout for step in planned.steps]
    asked: dict[tuple[int, bool, int, Layout], Choice | None] = {}

    def offer(number: int, is_input: bool, index: int, layout: Layout) -> Choice | None:
        key = (number, is_input, index, layout)
        if key not in asked:
            asked[key] = offers[number](planned.steps[number], is_input, index, layout)
        return asked[key]

    used = [value for _, value in planned.inputs]
    found = assign(planned.steps, offer, inputs=used, constant=lambda value: constant(value) is not None)
    return _emit(planned, found)


def _fuses(step: Step) -> bool:
    entry = OPERATORS.get(step.op_type)
    if entry is None or not entry.fuses or len(step.outputs) != 1:
        return False
    first = step.outputs[0]
    if first.dtype != ir.DataType.FLOAT:
        return False
    return step.op_type != "MatMul" or (constant(step.inputs[1]) is not None and len(step.shape(1)) == 2)


def _integer(step: Step) -> bool:
    entry = OPERATORS.get(step.op_type)
    return entry is not None and entry.integer(step)


def _unsayable(planned: Plan) -> Iterator[tuple[Step, tuple[str, str]]]:
    for step in planned.steps:
        if step.node.domain not in ("", "ai.onnx") or step.op_type not in OPERATORS:
            yield step, ("the operator cannot be said in TFLite", "")
            continue
        for value in (*step.inputs, *step.outputs):
            if value is None or constant(value) is not None:
                continue
            shape = value.shape
            if shape is None:
                yield step, (f"the shape of {value.name!r} is not known before it runs", "static shapes")
                break
            open_ = [str(dim) for dim in shape if not isinstance(dim, int)]
            if open_:
                yield step, (f"{value.name!r} has the open dimension {open_[0]}", "--shape with its size")
                break


def _problem(step: Step, reason: str, hint: str) -> Problem:
    return Problem(step.name, step.op_type, reason, hint)


def _emit(planned: Plan, found: Assignment) -> Lowered:
    emitter = Emitter(found.layouts)
    problems: list[Problem] = []
    failed: set[ir.Value] = set()
    for _, value in planned.inputs:
        layout = found.layouts[value.name or ""]
        tensor = emitter.tensor(value, layout)
        emitter.program.inputs.append(tensor)
        emitter.define(value, tensor, layout)
    for step, choice in zip(planned.steps, found.choices, strict=True):
        emitter.step, emitter.choice = step, choice
        try:
            if not any(value in failed for value in step.inputs):
                OPERATORS[step.op_type].emit(emitter, step)
                continue
        except Unsupported as refusal:
            problems.append(_problem(step, refusal.reason, refusal.hint))
        failed.update(step.outputs)
    if problems:
        return Lowered(emitter.program, problems=problems)
    adapters = [
        _adapter(original, value, "input", tensor, found.layouts[value.name or ""])
        for (original, value), tensor in zip(planned.inputs, emitter.program.inputs, strict=True)
    ]
    for original, value in planned.outputs:
        tensor, layout = _output(emitter, value)
        emitter.program.outputs.append(tensor)
        adapters.append(_adapter(original, value, "output", tensor, layout))
    join_reshapes(emitter.program)
    drop_reduced_axes(emitter.program)
    return Lowered(emitter.program, tuple(adapters), emitter.transposes)


def _output(emitter: Emitter, value: ir.Value) -> tuple[Tensor, Layout]:
    """The tensor that a graph output ends in, copied where it is an input, a constant or taken."""
    emitter.step = None
    known = constant(value)
    if known is not None:
        layout = identity(known.data.ndim)
        source = emitter.constant(known.real(), value.name or "constant")
    else:
        source, layout = emitter._made[value]
        taken = (*emitter.program.inputs, *emitter.program.outputs)
        if not any(source is tensor for tensor in taken):
            return source, layout
    target = emitter.like(source, source.shape, "output")
    return emitter.reshape(source, target), layout


def _adapter(original: ir.Value, value: ir.Value, side: str, tensor: Tensor, layout: Layout) -> Adapter:
    known = parameters(value)
    order = permutation(identity(len(layout)), layout)
    return Adapter(
        name=original.name or "",
        side="input" if side == "input" else "output",
        runtime_name=tensor.name,
        permutation=() if order == identity(len(layout)) else order,
        dtype=tensor.dtype,
        scale=known.scale if known is not None else None,
        zero_point=known.zero_point if known is not None else 0,
    )
