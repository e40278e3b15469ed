"""Rewriting what TFLite has no operator for into what it has, still as ONNX.

Each function takes a node, makes the change and returns whether it did. All are exact up to float
rounding. The nodes that they make carry the original's names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.graph.change import Change, Rewrite
from edgeopt.graph.layout import shape_of
from edgeopt.graph.names import carry_names, original_names
from edgeopt.targets.tflite.constants import settle
from edgeopt.targets.tflite.steps import Parameters, attribute, constant, only_reader, plain, quantized

Legalization = Callable[["Splice", ir.Node], bool]
RULES: dict[str, list[Legalization]] = {}


def legalizes(*op_types: str, first: bool = False) -> Callable[[Legalization], Legalization]:
    """Registers a legalization of one or several operators.

    Args:
        op_types: The operators.
        first: Try it before those registered so far.
    """

    def register(function: Legalization) -> Legalization:
        for op_type in op_types:
            rules = RULES.setdefault(op_type, [])
            rules.insert(0 if first else len(rules), function)
        return function

    return register


class Splice:
    """Builds the nodes that replace one node."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph = graph
        self.node = node
        self.made: list[ir.Node] = []

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | np.ndarray | None,
        outputs: int = 1,
        shape: Sequence[int] | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Makes a node and returns its first output; arrays become initializers."""
        number = len(self.made)
        base = f"{self.node.name}/{op_type}{number}"
        values = [
            self.array(item, f"{base}/{index}") if isinstance(item, np.ndarray) else item
            for index, item in enumerate(inputs)
        ]
        node = ir.node(op_type, values, attributes=attributes, num_outputs=outputs, name=base)
        carry_names([self.node], node)
        first = inputs[0]
        dtype = first.dtype if isinstance(first, ir.Value) else None
        for index, output in enumerate(node.outputs):
            output.name = f"{base}:{index}"
            if dtype is not None:
                output.dtype = dtype
        if shape is not None:
            node.outputs[0].shape = ir.Shape(shape)
        self.made.append(node)
        return node.outputs[0]

    def array(self, array: np.ndarray, name: str) -> ir.Value:
        """Makes an initializer."""
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            const_value=ir.tensor(array, name=name),
        )
        self.graph.register_initializer(value)
        return value

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """Makes a Reshape to a known shape."""
        return self.op("Reshape", value, np.array(shape, np.int64), shape=shape)

    def grid(self, value: ir.Value, params: Parameters) -> ir.Value:
        """Quantizes and dequantizes a value whose range is known from its formula."""
        scale, zero = np.array(params.scale, np.float32), np.array(params.zero_point, params.dtype)
        shape = shape_of(value)
        integers = self.op("QuantizeLinear", value, scale, zero, shape=shape)
        integers.type = ir.TensorType(ir.DataType.from_numpy(zero.dtype))
        real = self.op("DequantizeLinear", integers, scale, zero, shape=shape)
        real.type = value.type
        return real

    def replace(self, *results: ir.Value) -> bool:
        """Puts the nodes made into the node's place; its outputs are those values from here on."""
        self.graph.insert_before(self.node, self.made)
        for old, new in zip(self.node.outputs, results, strict=True):
            name, shape = old.name, old.shape
            old.name = f"{name}/before"
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            new.name, new.shape, new.type = name, shape, old.type
        self.graph.remove(self.node, safe=True)
        return True


def legalize(model: ir.Model) -> Change:
    """Applies every legalization to the main graph, in place, until none applies."""
    change = Change()
    for _ in range(8):
        before = len(change.rewrites)
        for node in list(model.graph):
            if node.graph is None or node.domain not in ("", "ai.onnx") or not _shapes_known(node):
                continue
            for rule in RULES.get(node.op_type, ()):
                names = original_names(node)
                if rule(Splice(model.graph, node), node):
                    site = names[0] if names else ""
                    change.rewrites.append(Rewrite(rule.__name__.replace("_", "-"), site, names))
                    break
        if len(change.rewrites) == before:
            break
        settle(model)
    return change


def _shapes_known(node: ir.Node) -> bool:
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name]
    return all(value.shape is not None for value in values)


# ---- normalization


@legalizes("BatchNormalization")
def fold_batch_normalization(splice: Splice, node: ir.Node) -> bool:
    """Into the convolution before it where there is one, else Mul and Add."""
    arrays = [plain(value) for value in node.inputs[1:5]]
    if attribute(node, "training_mode", 0) or any(array is None for array in arrays):
        return False
    scale, bias, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    factor = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    offset = bias - mean * factor
    source = node.inputs[0]
    conv = source.producer() if source is not None else None
    if source is None:
        return False
    if conv is not None and conv.op_type == "Conv" and only_reader(source) is node:
        weight = plain(conv.inputs[1])
        old = conv.inputs[2] if len(conv.inputs) > 2 else None
        known = np.zeros(len(factor)) if old is None else plain(old)
        if weight is not None and known is not None:
            column = factor.reshape(-1, *[1] * (weight.ndim - 1))
            folded = (weight * column).astype(weight.dtype)
            vector = (known * factor + offset).astype(weight.dtype)
            out = splice.op("Conv", conv.inputs[0], folded, vector, **plain_attributes(conv))
            carry_names([conv, node], splice.made[-1])
            splice.replace(out)
            splice.graph.remove(conv, safe=True)
            return True
    spread = [-1] + [1] * (len(shape_of(source)) - 2)
    product = splice.op("Mul", source, factor.astype(np.float32).reshape(spread), shape=shape_of(source))
    return splice.replace(splice.op("Add", product, offset.astype(np.float32).reshape(spread)))


def plain_attributes(node: ir.Node) -> dict[str, Any]:
    """A node's attributes as plain values."""
    return {name: attribute(node, name) for name in node.attributes}


# ---- matrices


@legalizes("Gemm")
def normalize_gemm(splice: Splice, node: ir.Node) -> bool:
    """alpha, beta, transA and computed operands out of Gemm: into constants, or as nodes of their own."""
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    first, second = node.inputs[0], node.inputs[1]
    third = node.inputs[2] if len(node.inputs) > 2 else None
    units = shape_of(node.outputs[0])[-1]
    weight, bias = constant(second), constant(third)
    vector = third is None or (bias is not None and bias.data.size in (1, units) and bias.data.ndim < 3)
    if vector and bias is not None and bias.data.ndim == 2 and bias.data.shape[0] != 1:
        vector = False
    if (alpha, beta) == (1.0, 1.0) and not attribute(node, "transA", 0) and weight is not None and vector:
        return False
    if first is None or second is None:
        return False
    if attribute(node, "transA", 0):
        first = splice.op("Transpose", first, perm=[1, 0])
    if attribute(node, "transB", 0):
        second = splice.op("Transpose", second, perm=[1, 0])
    out = splice.op("MatMul", first, second)
    if alpha != 1.0:
        out = splice.op("Mul", out, np.array(alpha, np.float32))
    if third is not None:
        scaled = third if beta == 1.0 else splice.op("Mul", third, np.array(beta, np.float32))
        out = splice.op("Add", out, scaled)
    return splice.replace(out)


@legalizes("MatMul")
def raise_vectors(splice: Splice, node: ir.Node) -> bool:
    """A product with a vector as one with a matrix of one row or column."""
    first, second = node.inputs
    if first is None or second is None:
        return False
    one, two = shape_of(first), shape_of(second)
    if min(len(one), len(two)) > 1 or not one or not two:
        return False
    left = splice.reshape(first, (1, *one)) if len(one) == 1 else first
    right = splice.reshape(second, (*two, 1)) if len(two) == 1 else second
    product = splice.op("MatMul", left, right)
    return splice.replace(splice.reshape(product, shape_of(node.outputs[0])))


# ---- convolutions and pooling


@legalizes("Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
def raise_to_images(splice: Splice, node: ir.Node) -> bool:
    """An operator over one spatial axis as one over two, the first of size 1."""
    source = node.inputs[0]
    if source is None or len(shape_of(source)) != 3:
        return False
    if any(output.name and list(output.uses()) for output in node.outputs[1:]):
        return False
    if node.op_type.startswith("Global"):
        axes = np.array([2], np.int64)
        reduction = "ReduceMean" if node.op_type == "GlobalAveragePool" else "ReduceMax"
        return splice.replace(splice.op(reduction, source, axes, keepdims=1), *node.outputs[1:])
    attributes = plain_attributes(node)
    for name, fill in (("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("output_padding", 0)):
        if name in attributes:
            attributes[name] = [fill, *attributes[name]]
    if "output_shape" in attributes:
        attributes["output_shape"] = [1, *attributes["output_shape"]]
    if "pads" in attributes:
        attributes["pads"] = [0, attributes["pads"][0], 0, attributes["pads"][1]]
    shape = shape_of(source)
    inputs: list[ir.Value | np.ndarray | None] = [splice.reshape(source, (*shape[:2], 1, shape[2]))]
    if node.op_type in ("Conv", "ConvTranspose"):
        weight = node.inputs[1]
        raised = None if weight is None else _with_axis(splice, weight)
        if raised is None:
            return False
        inputs += [raised, *node.inputs[2:]]
    result = shape_of(node.outputs[0])
    wide = (*result[:2], 1, result[2])
    out = splice.op(node.op_type, *inputs, shape=wide, **attributes)
    return splice.replace(splice.reshape(out, result), *node.outputs[1:])


def _with_axis(splice: Splice, weight: ir.Value) -> ir.Value | np.ndarray | None:
    """A weight with a spatial axis of size 1 before its last, integers staying integers."""
    if (array := plain(weight)) is not None:
        return np.ascontiguousarray(array[:, :, None])
    node = weight.producer()
    if node is None or node.op_type != "DequantizeLinear" or (array := plain(node.inputs[0])) is None:
        return None
    return splice.op(
        "DequantizeLinear",
        np.ascontiguousarray(array[:, :, None]),
        *node.inputs[1:],
        **plain_attributes(node),
    )


@legalizes("ConvTranspose")
def split_groups(splice: Splice, node: ir.Node) -> bool:
    """A grouped transposed convolution as one per group."""
    group = attribute(node, "group", 1)
    weight, source = plain(node.inputs[1]), node.inputs[0]
    bias = plain(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if group == 1 or group > 64 or weight is None or source is None:
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None and bias is None:
        return False
    shape = shape_of(source)
    each = shape[1] // group
    attributes = plain_attributes(node) | {"group": 1}
    splice.op("Split", source, np.full(group, each, np.int64), outputs=group, axis=1)
    parts = list(splice.made[-1].outputs)
    made = []
    for index, part in enumerate(parts):
        part.shape = ir.Shape((shape[0], each, *shape[2:]))
        inputs: list[ir.Value | np.ndarray | None] = [part, weight[index * each : (index + 1) * each]]
        if bias is not None:
            width = len(bias) // group
            inputs.append(bias[index * width : (index + 1) * width])
        made.append(splice.op("ConvTranspose", *inputs, **attributes))
    return splice.replace(splice.op("Concat", *made, axis=1))


@legalizes("AveragePool")
def count_windows(splice: Splice, node: ir.Node) -> bool:
    """Pads that do not count, and that are not SAME's: the sum with zeros, times one over each count."""
    from edgeopt.targets.tflite.operators.convolution import same_pads, spatial_pads
    from edgeopt.targets.tflite.steps import Step

    source = node.inputs[0]
    if source is None or len(shape_of(source)) != 4 or any(d != 1 for d in attribute(node, "dilations", [1])):
        return False
    step = Step(node, list(node.inputs), list(node.outputs))
    kernel, strides = attribute(node, "kernel_shape"), attribute(node, "strides", [1, 1])
    sizes, outs = shape_of(source)[2:], shape_of(node.outputs[0])[2:]
    pads = spatial_pads(step, sizes, kernel, strides, [1, 1])
    ends = [
        max((out - 1) * s + k - n - before, 0)
        for n, out, k, s, (before, _) in zip(sizes, outs, kernel, strides, pads, strict=True)
    ]
    include = bool(attribute(node, "count_include_pad", 0))
    spans = [(before, end) for (before, _), end in zip(pads, ends, strict=True)]
    sames = [same_pads(n, k, s) for n, k, s in zip(sizes, kernel, strides, strict=True)]
    if not any(map(any, spans)) or (not include and spans == sames):
        return False
    if include and all(end <= after for end, (_, after) in zip(ends, pads, strict=True)):
        return False
    counts = []
    for n, out, k, s, (before, after), end in zip(sizes, outs, kernel, strides, pads, ends, strict=True):
        counted = np.zeros(before + n + max(after, end))
        counted[before : before + n] = 1
        if include:
            counted[: before + n + after] = 1
        counts.append(np.array([counted[i * s : i * s + k].sum() for i in range(out)]))
    correction = np.prod(kernel) / np.outer(*counts)
    padded = splice.op(
        "Pad",
        source,
        np.array([0, 0, spans[0][0], spans[1][0], 0, 0, spans[0][1], spans[1][1]], np.int64),
        shape=(*shape_of(source)[:2], *(n + sum(span) for n, span in zip(sizes, spans, strict=True))),
    )
    mean = splice.op(
        "AveragePool", padded, shape=shape_of(node.outputs[0]), kernel_shape=kernel, strides=strides
    )
    return splice.replace(splice.op("Mul", mean, correction.astype(np.float32)[None, None]))


# ---- elementwise


@legalizes(
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Max",
    "Min",
    "Sum",
    "Mean",
    "Where",
    "PRelu",
    "Expand",
    "Mod",
    "Equal",
    "Less",
    "LessOrEqual",
    "Greater",
    "GreaterOrEqual",
    "And",
    "Or",
    "Xor",
)
def raise_rank(splice: Splice, node: ir.Node) -> bool:
    """Computed operands of fewer axes get axes of size 1, so that all share one layout."""
    rank = len(shape_of(node.outputs[0]))
    inputs: list[ir.Value | None] = []
    for index, value in enumerate(node.inputs):
        if value is None or constant(value) is not None or (node.op_type == "Expand" and index > 0):
            inputs.append(value)
        elif len(shape := shape_of(value)) < rank:
            inputs.append(splice.reshape(value, (*[1] * (rank - len(shape)), *shape)))
        else:
            inputs.append(value)
    if not splice.made:
        return False
    return splice.replace(splice.op(node.op_type, *inputs, **plain_attributes(node)))


@legalizes("HardSigmoid")
def spell_hard_sigmoid(splice: Splice, node: ir.Node) -> bool:
    """x · HardSigmoid(x) of the usual slope as HardSwish; else a clipped line."""
    alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    source = node.inputs[0]
    if source is None:
        return False
    usual = abs(alpha - 1 / 6) < 1e-6 and beta == 0.5
    if usual:
        shifted = splice.op("Add", source, np.array(3, np.float32), shape=shape_of(source))
        clipped = splice.op(
            "Clip", shifted, np.array(0, np.float32), np.array(6, np.float32), shape=shape_of(source)
        )
        if quantized(source) is not None:
            clipped = splice.grid(clipped, Parameters("int8", 6 / 255, -128))
        return splice.replace(splice.op("Mul", clipped, np.array(1 / 6, np.float32)))
    line = splice.op("Mul", source, np.array(alpha, np.float32), shape=shape_of(source))
    line = splice.op("Add", line, np.array(beta, np.float32), shape=shape_of(source))
    return splice.replace(splice.op("Clip", line, np.array(0, np.float32), np.array(1, np.float32)))


@legalizes("Mul")
def join_hard_swish(splice: Splice, node: ir.Node) -> bool:
    """x · HardSigmoid(x) of slope 1/6 as HardSwish."""
    for mine, other in ((0, 1), (1, 0)):
        value, source = node.inputs[mine], node.inputs[other]
        gate = value.producer() if value is not None else None
        if gate is None or gate.op_type != "HardSigmoid" or gate.inputs[0] is not source or value is None:
            continue
        if only_reader(value) is not node or attribute(gate, "beta", 0.5) != 0.5:
            continue
        if abs(attribute(gate, "alpha", 0.2) - 1 / 6) < 1e-6:
            return splice.replace(splice.op("HardSwish", source))
    return False


def _spelled(formula: Callable[[Splice, ir.Node, ir.Value], ir.Value]) -> Legalization:
    def rule(splice: Splice, node: ir.Node) -> bool:
        source = node.inputs[0]
        if source is None or source.dtype != ir.DataType.FLOAT:
            return False
        return splice.replace(formula(splice, node, source))

    rule.__name__ = "spell_activation"
    return rule


def _number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def _softplus(splice: Splice, node: ir.Node, x: ir.Value) -> ir.Value:
    """max(x, 0) + log(1 + exp(-|x|)), which does not overflow."""
    shape = shape_of(x)
    tail = splice.op("Exp", splice.op("Neg", splice.op("Abs", x, shape=shape), shape=shape), shape=shape)
    tail = splice.op("Log", splice.op("Add", tail, _number(1), shape=shape), shape=shape)
    return splice.op("Add", splice.op("Relu", x, shape=shape), tail, shape=shape)


def _mish(splice: Splice, node: ir.Node, x: ir.Value) -> ir.Value:
    return splice.op("Mul", x, splice.op("Tanh", _softplus(splice, node, x), shape=shape_of(x)))


def _softsign(splice: Splice, node: ir.Node, x: ir.Value) -> ir.Value:
    shape = shape_of(x)
    return splice.op("Div", x, splice.op("Add", splice.op("Abs", x, shape=shape), _number(1), shape=shape))


def _swish(splice: Splice, node: ir.Node, x: ir.Value) -> ir.Value:
    alpha, shape = attribute(node, "alpha", 1.0), shape_of(x)
    line = x if alpha == 1.0 else splice.op("Mul", x, _number(alpha), shape=shape)
    gate = splice.op("Sigmoid", line, shape=shape)
    if quantized(x) is not None and line is x:
        gate = splice.grid(gate, Parameters("int8", 1 / 256, -128))
    return splice.op("Mul", x, gate)


def _exponential(splice: Splice, x: ir.Value, alpha: float, gamma: float, inner: float) -> ir.Value:
    """gamma · (max(x, 0) + alpha · (exp(min(x, 0) / inner) - 1))."""
    shape = shape_of(x)
    low = splice.op("Min", x, _number(0), shape=shape)
    if inner != 1.0:
        low = splice.op("Mul", low, _number(1 / inner), shape=shape)
    low = splice.op("Sub", splice.op("Exp", low, shape=shape), _number(1), shape=shape)
    low = splice.op("Mul", low, _number(alpha * gamma), shape=shape)
    high = splice.op("Relu", x, shape=shape)
    if gamma != 1.0:
        high = splice.op("Mul", high, _number(gamma), shape=shape)
    return splice.op("Add", high, low)


def _selu(splice: Splice, node: ir.Node, x: ir.Value) -> ir.Value:
    alpha, gamma = (
        attribute(node, "alpha", 1.67326319217681884765625),
        attribute(node, "gamma", 1.05070102214813232421875),
    )
    return _exponential(splice, x, alpha, gamma, 1.0)


def _celu(splice: Splice, node: ir.Node, x: ir.Value) -> ir.Value:
    alpha = attribute(node, "alpha", 1.0)
    return _exponential(splice, x, alpha, 1.0, alpha)


def _thresholded(splice: Splice, node: ir.Node, x: ir.Value) -> ir.Value:
    over = splice.op("Greater", x, _number(attribute(node, "alpha", 1.0)), shape=shape_of(x))
    over.dtype = ir.DataType.BOOL
    out = splice.op("Where", over, x, _number(0))
    out.type = x.type
    return out


for _name, _formula in (
    ("Softplus", _softplus),
    ("Mish", _mish),
    ("Softsign", _softsign),
    ("Swish", _swish),
    ("Selu", _selu),
    ("Celu", _celu),
    ("ThresholdedRelu", _thresholded),
):
    legalizes(_name)(_spelled(_formula))


@legalizes("Elu")
def spell_elu(splice: Splice, node: ir.Node) -> bool:
    """ELU with another alpha than 1."""
    alpha, source = attribute(node, "alpha", 1.0), node.inputs[0]
    if alpha == 1.0 or source is None:
        return False
    return splice.replace(_exponential(splice, source, alpha, 1.0, 1.0))


# ---- types and rare forms


@legalizes("Pow")
def cast_exponent(splice: Splice, node: ir.Node) -> bool:
    """Base and exponent of one type: the exponent's follows the base's, but integers by a float's."""
    base, exponent = node.inputs
    if base is None or exponent is None or base.dtype is None or base.dtype == exponent.dtype:
        return False
    real = ir.DataType.FLOAT
    shape = shape_of(node.outputs[0])
    first = base if base.dtype == real else _cast(splice, base, real)
    second = exponent if exponent.dtype == real else _cast(splice, exponent, real)
    out = splice.op("Pow", first, second, shape=shape)
    return splice.replace(out if base.dtype == real else _cast(splice, out, base.dtype))


def _cast(splice: Splice, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    out = splice.op("Cast", value, shape=shape_of(value), to=int(dtype))
    out.dtype = dtype
    return out


@legalizes("Mod")
def spell_remainder(splice: Splice, node: ir.Node) -> bool:
    """A remainder with the sign of the dividend, by that of the absolute values."""
    first, second = node.inputs
    if not attribute(node, "fmod", 0) or first is None or second is None or first.dtype is None:
        return False
    one, two, shape = shape_of(first), shape_of(second), shape_of(node.outputs[0])
    left = splice.op("Max", first, splice.op("Neg", first, shape=one), shape=one)
    right = splice.op("Max", second, splice.op("Neg", second, shape=two), shape=two)
    rest = splice.op("Mod", left, right, shape=shape)
    negative = splice.op("Less", first, np.array(0, first.dtype.numpy()), shape=one)
    negative.dtype = ir.DataType.BOOL
    out = splice.op("Where", negative, splice.op("Neg", rest, shape=shape), rest)
    out.dtype = first.dtype
    return splice.replace(out)


@legalizes("ArgMax", "ArgMin")
def find_last(splice: Splice, node: ir.Node) -> bool:
    """The last of equal elements as the first in reverse."""
    source = node.inputs[0]
    if not attribute(node, "select_last_index", 0) or source is None:
        return False
    axis = attribute(node, "axis", 0) % len(shape_of(source))
    bounds = [np.array([item], np.int64) for item in (-1, -(2**31), axis, -1)]
    reverse = splice.op("Slice", source, *bounds, shape=shape_of(source))
    first = splice.op(node.op_type, reverse, **plain_attributes(node) | {"select_last_index": 0})
    first.dtype, first.shape = ir.DataType.INT64, node.outputs[0].shape
    last = np.array(shape_of(source)[axis] - 1, np.int64)
    out = splice.op("Sub", splice.array(last, f"{node.name}/last"), first)
    out.dtype = ir.DataType.INT64
    return splice.replace(out)


@legalizes("LpNormalization")
def spell_sum_norm(splice: Splice, node: ir.Node) -> bool:
    """The 1-norm: division by the sum of absolute values, zeros staying zeros."""
    source = node.inputs[0]
    if attribute(node, "p", 2) != 1 or source is None:
        return False
    shape = shape_of(source)
    axis = attribute(node, "axis", -1) % len(shape)
    kept = tuple(1 if index == axis else size for index, size in enumerate(shape))
    total = splice.op("ReduceL1", source, np.array([axis], np.int64), keepdims=1, shape=kept)
    # Where the sum is zero so is every element; the smallest float keeps the quotient zero.
    safe = splice.op("Max", total, np.array(np.finfo(np.float32).tiny, np.float32), shape=kept)
    return splice.replace(splice.op("Div", source, safe))


@legalizes("Dropout")
def drop_nothing(splice: Splice, node: ir.Node) -> bool:
    """Inference keeps everything; a mask that is wanted says so."""
    training = plain(node.inputs[2]) if len(node.inputs) > 2 else None
    ratio = plain(node.inputs[1]) if len(node.inputs) > 1 else None
    random = training is not None and training.any() and (ratio is None or ratio.any())
    if len(node.outputs) < 2 or node.inputs[0] is None or random:
        return False
    mask = splice.op("Identity", np.ones(shape_of(node.outputs[0]), np.bool_))
    return splice.replace(splice.op("Identity", node.inputs[0]), mask)


@legalizes("BatchNormalization")
def spell_training_mode(splice: Splice, node: ir.Node) -> bool:
    """Statistics of the batch itself, and the running ones that come of it."""
    source = node.inputs[0]
    if not attribute(node, "training_mode", 0) or source is None or len(node.outputs) != 3:
        return False
    shape = shape_of(source)
    axes = np.array([axis for axis in range(len(shape)) if axis != 1], np.int64)
    kept, spread = (1, shape[1], *[1] * (len(shape) - 2)), [shape[1], *[1] * (len(shape) - 2)]
    scale, bias, old_mean, old_variance = node.inputs[1:5]
    if scale is None or bias is None or old_mean is None or old_variance is None:
        return False
    mean = splice.op("ReduceMean", source, axes, keepdims=1, shape=kept)
    centred = splice.op("Sub", source, mean, shape=shape)
    squares = splice.op("Mul", centred, centred, shape=shape)
    variance = splice.op("ReduceMean", squares, axes, keepdims=1, shape=kept)
    steady = splice.op("Add", variance, np.array(attribute(node, "epsilon", 1e-5), np.float32), shape=kept)
    unit = splice.op("Div", centred, splice.op("Sqrt", steady, shape=kept), shape=shape)
    scaled = splice.op("Mul", unit, splice.reshape(scale, spread), shape=shape)
    out = splice.op("Add", scaled, splice.reshape(bias, spread), shape=shape)
    momentum = attribute(node, "momentum", 0.9)
    running = []
    for old, new in ((old_mean, mean), (old_variance, variance)):
        flat = splice.reshape(new, [shape[1]])
        aged = splice.op("Mul", old, np.array(momentum, np.float32), shape=[shape[1]])
        fresh = splice.op("Mul", flat, np.array(1 - momentum, np.float32), shape=[shape[1]])
        running.append(splice.op("Add", aged, fresh, shape=[shape[1]]))
    return splice.replace(out, *running)
