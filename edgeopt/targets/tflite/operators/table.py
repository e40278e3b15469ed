"""The table of operators, and the kinds of layout rule that they choose from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgeopt.graph.layout import Choice, Layout, channels_last, identity, shape_of
from edgeopt.targets.tflite.emitter import Emitter
from edgeopt.targets.tflite.steps import Step, constant, parameters

Emit = Callable[[Emitter, Step], None]
Rule = Callable[[Step, bool, int, Layout], "Choice | None"]
Test = Callable[[Step], bool]


@dataclass(frozen=True, slots=True)
class Operator:
    """How one ONNX operator is said in TFLite.

    Attributes:
        emit: Writes it; raises ``Unsupported`` for a form that cannot be said.
        layout: The choices of layouts that it has.
        integer: Whether a step on quantized values can run in integers.
        fuses: It takes in a following activation.
    """

    emit: Emit
    layout: Rule
    integer: Test
    fuses: bool = False


OPERATORS: dict[str, Operator] = {}


def operator(
    *names: str, layout: Rule, integer: Test | None = None, fuses: bool = False
) -> Callable[[Emit], Emit]:
    """Registers the function that writes one or several ONNX operators."""

    def register(emit: Emit) -> Emit:
        for name in names:
            OPERATORS[name] = Operator(emit, layout, integer or never, fuses)
        return emit

    return register


# ---- layouts


def _rank(step: Step, is_input: bool, index: int) -> int:
    value = step.inputs[index] if is_input else step.outputs[index]
    return 0 if value is None else len(shape_of(value))


def same(step: Step, is_input: bool, index: int, layout: Layout) -> Choice | None:
    """Everything in one layout: elementwise operators, and those whose axes are only renamed."""
    rank = len(step.result())
    if len(layout) != rank:
        return None
    inputs = tuple(
        None if value is None or (constant(value) is None and len(shape_of(value)) != rank) else layout
        for value in step.inputs
    )
    return Choice(inputs, (layout,) * len(step.outputs))


def first_only(step: Step, is_input: bool, index: int, layout: Layout) -> Choice | None:
    """The first input and all outputs in one layout; further inputs are parameters."""
    if is_input and index > 0:
        return None
    if len(layout) != len(step.result()) or len(step.shape()) != len(layout):
        return None
    return Choice((layout, *(None for _ in step.inputs[1:])), (layout,) * len(step.outputs))


def fixed_channels_last(step: Step, is_input: bool, index: int, layout: Layout) -> Choice | None:
    """The first input and the output with channels last; further inputs are weights."""
    rest = (None,) * (len(step.inputs) - 1)
    outputs = tuple(channels_last(len(shape_of(value))) for value in step.outputs)
    return Choice((channels_last(len(step.shape())), *rest), outputs)


def in_order(step: Step, is_input: bool, index: int, layout: Layout) -> Choice | None:
    """Everything in the order of its axes."""
    return Choice(
        tuple(None if value is None else identity(len(shape_of(value))) for value in step.inputs),
        tuple(identity(len(shape_of(value))) for value in step.outputs),
    )


def without_axes(layout: Layout, axes: list[int]) -> Layout:
    """The layout that is left when axes are taken out of the shape."""
    kept = [axis for axis in range(len(layout)) if axis not in axes]
    return tuple(kept.index(axis) for axis in layout if axis not in axes)


# ---- integers


def never(step: Step) -> bool:
    """It runs in float only."""
    return False


def int8(step: Step) -> bool:
    """All that is quantized is int8; constants are quantized too."""
    for value in (*step.inputs, *step.outputs):
        if value is None:
            continue
        if (known := parameters(value)) is not None:
            if known.dtype != "int8":
                return False
        elif value.dtype is not None and value.dtype.is_floating_point():
            fixed = constant(value)
            if fixed is None or fixed.scale is None or fixed.data.dtype.name not in ("int8", "int32"):
                return False
    return True


def first_int8(step: Step) -> bool:
    """The first input and the outputs are int8; further inputs are parameters."""
    known = [parameters(step.inputs[0]), *(parameters(value) for value in step.outputs)]
    return all(item is not None and item.dtype == "int8" for item in known)


def same_scale(step: Step) -> bool:
    """The first input and the outputs are int8 with one scale and zero point."""
    first = parameters(step.inputs[0])
    return first_int8(step) and first is not None and all(first.same(parameters(v)) for v in step.outputs)


def all_same_scale(step: Step) -> bool:
    """Everything is int8 with one scale and zero point, constants included."""
    known = parameters(step.outputs[0])
    if not int8(step) or known is None:
        return False
    for value in step.inputs:
        fixed = constant(value)
        if fixed is not None and fixed.scale is not None and fixed.zero_point is not None:
            if fixed.scale.size != 1 or float(fixed.scale.reshape(())) != known.scale:
                return False
            if int(fixed.zero_point.reshape(())) != known.zero_point:
                return False
        elif fixed is None and value is not None and not known.same(parameters(value)):
            return False
    return True


def fixed_output(scale: float, zero_point: int) -> Test:
    """The output must be quantized in the one way that the kernel knows."""

    def test(step: Step) -> bool:
        known = parameters(step.outputs[0])
        return (
            first_int8(step) and known is not None and (known.scale, known.zero_point) == (scale, zero_point)
        )

    return test


def input_int8(step: Step) -> bool:
    """The first input is int8, the output an integer of its own kind, as of ArgMax."""
    known = parameters(step.inputs[0])
    return known is not None and known.dtype == "int8"
