"""Elementwise operators, comparisons, and activations."""

from __future__ import annotations

import numpy as np

from edgeopt.graph.layout import Choice, Layout
from edgeopt.targets.tflite.emitter import Emitter
from edgeopt.targets.tflite.operators.table import (
    all_same_scale,
    first_int8,
    fixed_output,
    int8,
    never,
    operator,
    same,
    same_scale,
)
from edgeopt.targets.tflite.program import Tensor, Unsupported
from edgeopt.targets.tflite.steps import Step, clip_bounds

ARITHMETIC = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV"}
COMPARISONS = {
    "Equal": "EQUAL",
    "Less": "LESS",
    "LessOrEqual": "LESS_EQUAL",
    "Greater": "GREATER",
    "GreaterOrEqual": "GREATER_EQUAL",
}
UNARY = {
    "Abs": "ABS",
    "Ceil": "CEIL",
    "Cos": "COS",
    "Exp": "EXP",
    "Floor": "FLOOR",
    "Log": "LOG",
    "Neg": "NEG",
    "Not": "LOGICAL_NOT",
    "Round": "ROUND",
    "Sign": "SIGN",
    "Sin": "SIN",
    "Sqrt": "SQRT",
}
TABLES = {"Abs": "AbsOptions", "Cos": "CosOptions", "Exp": "ExpOptions", "Neg": "NegOptions"}


def pair(emitter: Emitter, step: Step) -> list[Tensor | None]:
    """Both inputs of a binary operator, constants broadcast to the output's rank."""
    rank = len(step.result())
    return [emitter.read(index, rank=rank) for index in (0, 1)]


def need(tensor: Tensor, *dtypes: str) -> None:
    """Refuses other element types."""
    if tensor.dtype not in dtypes:
        raise Unsupported(f"it is not computed in {tensor.dtype}", f"one of {', '.join(dtypes)}")


def _arithmetic_int8(step: Step) -> bool:
    return step.op_type != "Div" and int8(step)


@operator("Add", "Sub", "Mul", "Div", layout=same, integer=_arithmetic_int8, fuses=True)
def arithmetic(emitter: Emitter, step: Step) -> None:
    """ADD, SUB, MUL, DIV."""
    inputs, target = pair(emitter, step), emitter.write()
    need(target, *(("float32", "int32", "int64", "int8") if step.op_type != "Div" else ("float32", "int32")))
    if target.dtype == "int8" and target.scale is None:
        raise Unsupported("plain int8 arithmetic has no kernel", "a Cast to int32")
    code = ARITHMETIC[step.op_type]
    table = f"{code.capitalize()}Options"
    emitter.op(code, inputs, [target], table, fusedActivationFunction=emitter.activation())


@operator("And", "Or", layout=same)
def logical(emitter: Emitter, step: Step) -> None:
    """LOGICAL_AND, LOGICAL_OR."""
    code = f"LOGICAL_{step.op_type.upper()}"
    emitter.op(code, pair(emitter, step), [emitter.write()], f"Logical{step.op_type}Options")


@operator("Xor", layout=same)
def exclusive(emitter: Emitter, step: Step) -> None:
    """NOT_EQUAL of booleans."""
    emitter.op("NOT_EQUAL", pair(emitter, step), [emitter.write()], "NotEqualOptions")


@operator(*COMPARISONS, layout=same)
def comparison(emitter: Emitter, step: Step) -> None:
    """EQUAL, LESS and so on."""
    code = COMPARISONS[step.op_type]
    inputs = pair(emitter, step)
    if inputs[0] is not None:
        more = ("bool",) if code == "EQUAL" else ()
        need(inputs[0], "float32", "int32", "int64", *more)
    table = "".join(word.capitalize() for word in code.split("_")) + "Options"
    emitter.op(code, inputs, [emitter.write()], table)


@operator("Pow", layout=same)
def power(emitter: Emitter, step: Step) -> None:
    """POW, or SQUARE, SQRT and so on for well-known exponents."""
    known = step.constant(1)
    exponent = float(known.real().reshape(-1)[0]) if known is not None and known.data.size == 1 else None
    first = emitter.read(0, rank=len(step.result()))
    need(first, "float32", "int32")
    if exponent == 2.0 and first.dtype == "float32":
        emitter.op("MUL", [first, first], [emitter.write()], "MulOptions", fusedActivationFunction=0)
        return
    if exponent == 0.5 and first.dtype == "float32":
        emitter.op("SQRT", [first], [emitter.write()])
        return
    second = emitter.read(1, rank=len(step.result()))
    if second.dtype != first.dtype:
        raise Unsupported(f"the base is {first.dtype} and the exponent {second.dtype}", "one type for both")
    emitter.op("POW", [first, second], [emitter.write()], "PowOptions")


@operator("Mod", layout=same)
def modulo(emitter: Emitter, step: Step) -> None:
    """FLOOR_MOD, whose sign is the divisor's."""
    if step.attribute("fmod", 0):
        raise Unsupported("a remainder with the sign of the dividend (fmod=1) has no kernel", "fmod=0")
    inputs = pair(emitter, step)
    if inputs[0] is not None:
        need(inputs[0], "float32", "int32", "int64")
    emitter.op("FLOOR_MOD", inputs, [emitter.write()], "FloorModOptions")


@operator("Max", "Min", layout=same, integer=all_same_scale)
def extremum(emitter: Emitter, step: Step) -> None:
    """MAXIMUM or MINIMUM, chained for more than two inputs."""
    many(emitter, step, "MAXIMUM" if step.op_type == "Max" else "MINIMUM", "MaximumMinimumOptions")


@operator("Sum", layout=same)
def add_all(emitter: Emitter, step: Step) -> None:
    """ADD, chained for more than two inputs."""
    many(emitter, step, "ADD", "AddOptions", fusedActivationFunction=0)


@operator("Mean", layout=same)
def mean_of(emitter: Emitter, step: Step) -> None:
    """ADD, chained, and a MUL by one over the number of inputs."""
    target = emitter.write()
    total = emitter.like(target, target.shape, "sum")
    many(emitter, step, "ADD", "AddOptions", target=total, fusedActivationFunction=0)
    share = emitter.number(1.0 / len(step.inputs), target, "share")
    emitter.op("MUL", [total, share], [target], "MulOptions", fusedActivationFunction=0)


def many(
    emitter: Emitter, step: Step, code: str, table: str, target: Tensor | None = None, **options: int
) -> None:
    """A binary operator over any number of inputs, from the left."""
    rank = len(step.result())
    made = emitter.write() if target is None else target
    need(made, "float32", "int32", "int64", "int8")
    if made.dtype == "int8" and made.scale is None:
        raise Unsupported("plain int8 arithmetic has no kernel", "a Cast to int32")
    left = emitter.read(0, rank=rank)
    if len(step.inputs) == 1:
        emitter.reshape(left, made)
    for index in range(1, len(step.inputs)):
        right = emitter.read(index, rank=rank)
        if index == len(step.inputs) - 1:
            into = made
        else:
            shape = np.broadcast_shapes(left.shape, right.shape)
            into = emitter.like(made, tuple(int(size) for size in shape), "partial")
        left = emitter.op(code, [left, right], [into], table, **options)


@operator("Where", layout=same)
def where(emitter: Emitter, step: Step) -> None:
    """SELECT_V2."""
    rank = len(step.result())
    inputs: list[Tensor | None] = [emitter.read(index, rank=rank) for index in range(3)]
    emitter.op("SELECT_V2", inputs, [emitter.write()], "SelectV2Options")


@operator(*UNARY, layout=same)
def unary(emitter: Emitter, step: Step) -> None:
    """ABS, EXP and the like."""
    source = emitter.read(0)
    kinds = {"Not": ("bool",), "Sign": ("float32", "int32"), "Neg": ("float32", "int32", "int64")}
    need(source, *kinds.get(step.op_type, ("float32", "int32") if step.op_type == "Abs" else ("float32",)))
    emitter.op(UNARY[step.op_type], [source], [emitter.write()], TABLES.get(step.op_type, ""))


@operator("Reciprocal", layout=same)
def reciprocal(emitter: Emitter, step: Step) -> None:
    """DIV of one."""
    target = emitter.write()
    inputs = [emitter.number(1.0, target, "one"), emitter.read(0)]
    need(target, "float32")
    emitter.op("DIV", inputs, [target], "DivOptions", fusedActivationFunction=0)


@operator("Cast", layout=same)
def cast(emitter: Emitter, step: Step) -> None:
    """CAST."""
    source, target = emitter.read(0), emitter.write()
    if source.dtype == target.dtype:
        emitter.define(step.outputs[0], source, emitter.layout())
        return
    api_types = {"float32": 0, "int32": 2, "uint8": 3, "int64": 4, "bool": 6, "int16": 7, "int8": 9}
    emitter.op(
        "CAST",
        [source],
        [target],
        "CastOptions",
        inDataType=api_types[source.dtype],
        outDataType=api_types[target.dtype],
    )


# ---- activations


@operator("Relu", layout=same, integer=first_int8)
def relu(emitter: Emitter, step: Step) -> None:
    """RELU where no operator before it takes it in."""
    source = emitter.read(0)
    need(source, "float32", "int8")
    emitter.op("RELU", [source], [emitter.write()])


def _clip_int8(step: Step) -> bool:
    bounds = clip_bounds(step.node)
    if bounds in ((0.0, 6.0), (-1.0, 1.0), (0.0, float("inf"))):
        return first_int8(step)
    return same_scale(step)


def _first_only_clip(step: Step, is_input: bool, index: int, layout: Layout) -> Choice | None:
    if (is_input and index > 0) or len(layout) != len(step.result()):
        return None
    return Choice((layout, *(None for _ in step.inputs[1:])), (layout,))


@operator("Clip", layout=_first_only_clip, integer=_clip_int8)
def clip(emitter: Emitter, step: Step) -> None:
    """RELU6 and its kin, or MAXIMUM and MINIMUM with constants."""
    low, high = clip_bounds(step.node)
    if np.isnan(low) or np.isnan(high):
        raise Unsupported("its bounds are computed at run time", "Max and Min")
    source, target = emitter.read(0), emitter.write()
    need(source, "float32", "int8", "int32", "int64")
    code = {(0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1", (0.0, float("inf")): "RELU"}.get((low, high))
    if code is not None and source.dtype in ("float32", "int8"):
        emitter.op(code, [source], [target])
        return
    if source.dtype in ("int32", "int64"):
        info = np.iinfo(source.dtype)
        low, high = max(low, info.min), min(high, info.max)
    if low == float("-inf") and high == float("inf"):
        emitter.reshape(source, target)
        return
    if low != float("-inf"):
        into = target if high == float("inf") else emitter.like(target, target.shape, "low")
        bound = emitter.number(low, source, "low")
        source = emitter.op("MAXIMUM", [source, bound], [into], "MaximumMinimumOptions")
    if high != float("inf"):
        bound = emitter.number(high, source, "high")
        emitter.op("MINIMUM", [source, bound], [target], "MaximumMinimumOptions")


@operator("LeakyRelu", layout=same, integer=first_int8)
def leaky_relu(emitter: Emitter, step: Step) -> None:
    """LEAKY_RELU."""
    alpha = step.attribute("alpha", 0.01)
    emitter.op("LEAKY_RELU", [emitter.read(0)], [emitter.write()], "LeakyReluOptions", alpha=alpha)


@operator("PRelu", layout=same, integer=int8)
def prelu(emitter: Emitter, step: Step) -> None:
    """PRELU; its slope loses the batch axis, as the kernel has it."""
    source, slope = emitter.read(0), emitter.read(1, rank=len(step.result()))
    need(source, "float32", "int8")
    if slope.data is not None and len(slope.shape) == len(step.result()) > 1 and slope.shape[0] == 1:
        slope.data = slope.data.reshape(slope.shape[1:])
        slope.shape, slope.axis = slope.data.shape, 0
    emitter.op("PRELU", [source, slope], [emitter.write()])


@operator("Elu", layout=same)
def elu(emitter: Emitter, step: Step) -> None:
    """ELU."""
    if step.attribute("alpha", 1.0) != 1.0:
        raise Unsupported("ELU is only computed with alpha 1", "alpha=1")
    emitter.op("ELU", [emitter.read(0)], [emitter.write()])


@operator("Gelu", layout=same)
def gelu(emitter: Emitter, step: Step) -> None:
    """GELU, exact or by tanh."""
    approximate = step.attribute("approximate", "none") == "tanh"
    emitter.op("GELU", [emitter.read(0)], [emitter.write()], "GeluOptions", approximate=approximate)


@operator("HardSwish", layout=same, integer=first_int8)
def hard_swish(emitter: Emitter, step: Step) -> None:
    """HARD_SWISH."""
    emitter.op("HARD_SWISH", [emitter.read(0)], [emitter.write()], "HardSwishOptions")


@operator("Sigmoid", layout=same, integer=fixed_output(1 / 256, -128))
def sigmoid(emitter: Emitter, step: Step) -> None:
    """LOGISTIC."""
    source = emitter.read(0)
    need(source, "float32", "int8")
    emitter.op("LOGISTIC", [source], [emitter.write()])


@operator("Tanh", layout=same, integer=fixed_output(1 / 128, 0))
def tanh(emitter: Emitter, step: Step) -> None:
    """TANH."""
    source = emitter.read(0)
    need(source, "float32", "int8")
    emitter.op("TANH", [source], [emitter.write()])


def last_axis(step: Step, is_input: bool, index: int, layout: Layout) -> Choice | None:
    """Layouts in which the operator's axis lies last in memory."""
    rank = len(step.result())
    axis = step.attribute("axis", -1) % rank
    if len(layout) != rank:
        return None
    if layout[-1] != axis:
        layout = (*(a for a in layout if a != axis), axis)
    return Choice((layout, *(None for _ in step.inputs[1:])), (layout,))


@operator("Softmax", layout=last_axis, integer=fixed_output(1 / 256, -128))
def softmax(emitter: Emitter, step: Step) -> None:
    """SOFTMAX along the axis that lies last."""
    emitter.op("SOFTMAX", [emitter.read(0)], [emitter.write()], "SoftmaxOptions", beta=1.0)


@operator("LogSoftmax", layout=last_axis, integer=never)
def log_softmax(emitter: Emitter, step: Step) -> None:
    """LOG_SOFTMAX along the axis that lies last."""
    emitter.op("LOG_SOFTMAX", [emitter.read(0)], [emitter.write()], "LogSoftmaxOptions")


@operator("QuantizeLinear", layout=same)
def quantize(emitter: Emitter, step: Step) -> None:
    """QUANTIZE from float; from another scale a MUL by one, which rounds once.

    XNNPACK's QUANTIZE between integers has a factor of 8 fraction bits: up to a quarter of a step is lost.
    """
    target = emitter.write()
    if target.scale is None or target.dtype != "int8":
        raise Unsupported(
            "only int8 with one scale is an activation's type here", "quantize for a platform of this runtime"
        )
    source = emitter.read(0)
    if source.dtype != "int8" or source.scale is None or _same_scale(source, target):
        emitter.op("QUANTIZE", [source], [target], "QuantizeOptions")
        return
    one = emitter.constant(np.array([1], np.int8), "one")
    one.scale, one.zero_point = np.array([1], np.float32), np.array([0], np.int64)
    emitter.op("MUL", [source, one], [target], "MulOptions", fusedActivationFunction=0)


def _same_scale(source: Tensor, target: Tensor) -> bool:
    """Whether the scales' ratio is one: nothing is multiplied then."""
    return source.scale is not None and target.scale is not None and bool(source.scale[0] == target.scale[0])


@operator("DequantizeLinear", layout=same)
def dequantize(emitter: Emitter, step: Step) -> None:
    """DEQUANTIZE."""
    source = emitter.read(0)
    if source.scale is None:
        raise Unsupported("its input is not quantized in the graph", "QuantizeLinear before it")
    emitter.op("DEQUANTIZE", [source], [emitter.write()], "DequantizeOptions")
