"""Normalizations in terms of means and elementwise operators.

LayerNormalization         d = x - mean(x); d / √(mean(d²) + ε) · scale + bias (Ba et al., 2016)
RMSNormalization           x / √(mean(x²) + ε) · scale (Zhang and Sennrich, 2019)
GroupNormalization         layer normalization of every group of channels (Wu and He, 2018)
InstanceNormalization      layer normalization over the spatial axes of every channel
MeanVarianceNormalization  d / (√mean(d²) + 1e-9) over the axes given
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from edgeopt.graph.legalize.table import (
    decomposition,
    first,
    integers,
    make,
    optional,
    rank,
    reduce,
    scalar,
)
from edgeopt.graph.rewriting import NoMatch, Replacement, Result, constant, initializer, opset


def _normalized(
    item: ir.Node, x: ir.Value, axes: Sequence[int], epsilon: float
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Returns d / √(mean(d²) + ε), the mean and the root."""
    mean = reduce("ReduceMean", item, x, axes)
    centred = make("Sub", [x, mean], x)
    variance = reduce("ReduceMean", item, make("Mul", [centred, centred], x), axes)
    root = make("Sqrt", [make("Add", [variance, scalar(epsilon, x, "epsilon")], variance)], variance)
    return make("Div", [centred, root], x), mean, root


def _trailing(item: ir.Node, x: ir.Value) -> list[int] | None:
    count = rank(x)
    if count is None:
        return None
    axis = item.attributes.get_int("axis", -1)
    return list(range((-1 if axis is None else axis) % count, count))


@decomposition("LayerNormalization")
def layer_normalization(item: ir.Node) -> Result:
    """Opset 17."""
    x, scale = first(item), first(item, 1)
    axes = _trailing(item, x)
    if axes is None:
        return NoMatch("the rank of its input is not known")
    if x.dtype != ir.DataType.FLOAT:
        return NoMatch("it does not compute in float32")
    normal, mean, root = _normalized(item, x, axes, item.attributes.get_float("epsilon", 1e-5) or 0.0)
    result = make("Mul", [normal, scale], x)
    if (bias := optional(item, 2)) is not None:
        result = make("Add", [result, bias], x)
    values = {item.outputs[0]: result}
    for output, value in zip(item.outputs[1:], (mean, None), strict=False):
        if output.uses() or output.is_graph_output():
            values[output] = value if value is not None else make("Div", [scalar(1, x), root], root)
    return Replacement(values, [item])


@decomposition("RMSNormalization")
def rms_normalization(item: ir.Node) -> Result:
    """Opset 23."""
    x, scale = first(item), first(item, 1)
    axes = _trailing(item, x)
    if axes is None:
        return NoMatch("the rank of its input is not known")
    if x.dtype != ir.DataType.FLOAT:
        return NoMatch("it does not compute in float32")
    epsilon = scalar(item.attributes.get_float("epsilon", 1e-5) or 0.0, x, "epsilon")
    power = reduce("ReduceMean", item, make("Mul", [x, x], x), axes)
    root = make("Sqrt", [make("Add", [power, epsilon], power)], power)
    return make("Mul", [make("Div", [x, root], x), scale], x)


@decomposition("GroupNormalization", below=21)
def group_normalization(item: ir.Node) -> Result:
    """Opset 18, where scale and bias belonged to groups; since opset 21 they belong to channels."""
    x, scale, bias = first(item), first(item, 1), first(item, 2)
    count, groups = rank(x), item.attributes.get_int("num_groups", 0)
    channels = None if x.shape is None or count is None or count < 2 else x.shape[1]
    if count is None or not groups or not isinstance(channels, int):
        return NoMatch("the number of its channels is not known")
    grouped = make("Reshape", [x, integers([0, groups, -1])], x, same=False)
    assert x.shape is not None
    grouped.shape = ir.Shape([x.shape[0], groups, None])
    normal, _, _ = _normalized(item, grouped, [2], item.attributes.get_float("epsilon", 1e-5) or 0.0)
    if opset(item) < 21:
        scale, bias = (_per_group(value) for value in (scale, bias))
        normal = make("Add", [make("Mul", [normal, scale], normal), bias], normal)
        return _unfold(normal, x, channels)
    whole = _unfold(normal, x, channels)
    scale, bias = (_per_channel(value, count) for value in (scale, bias))
    return make("Add", [make("Mul", [whole, scale], x), bias], x)


def _unfold(grouped: ir.Value, x: ir.Value, channels: int) -> ir.Value:
    """Gives the groups the shape of the input again."""
    assert x.shape is not None
    unknown = [index for index, dim in enumerate(x.shape) if not isinstance(dim, int) and index != 0]
    if not unknown or (len(unknown) == 1 and isinstance(x.shape[0], int)):
        target = [int(dim) if isinstance(dim, int) else -1 for dim in x.shape]
        if not unknown and not isinstance(x.shape[0], int):
            target[0] = -1
        return make("Reshape", [grouped, integers(target)], x)
    shape = make("Shape", [x], x, dtype=ir.DataType.INT64, same=False)
    shape.shape = ir.Shape([len(x.shape)])
    return make("Reshape", [grouped, shape], x)


def _per_group(value: ir.Value) -> ir.Value:
    return make("Unsqueeze", [value, integers([1], "axes")], value, same=False)


def _per_channel(value: ir.Value, count: int) -> ir.Value:
    """A vector of channels as [C, 1, ...], folded where it is constant."""
    known = constant(value)
    if known is not None:
        return initializer(f"{value.name}_channels", known.reshape([-1, *[1] * (count - 2)]))
    axes = integers(list(range(1, count - 1)), "axes")
    return make("Unsqueeze", [value, axes], value, same=False) if count > 2 else value


@decomposition("InstanceNormalization", always=True)
def instance_normalization(item: ir.Node) -> Result:
    """Only where TensorRT 8 refuses it: scale or bias computed, or an input of more than 5 axes."""
    x, scale, bias = first(item), first(item, 1), first(item, 2)
    count = rank(x)
    if count is None or count < 3:
        return None
    if count <= 5 and constant(scale) is not None and constant(bias) is not None:
        return None
    axes = list(range(2, count))
    normal, _, _ = _normalized(item, x, axes, item.attributes.get_float("epsilon", 1e-5) or 0.0)
    scale, bias = (_per_channel(value, count) for value in (scale, bias))
    return make("Add", [make("Mul", [normal, scale], x), bias], x)


@decomposition("MeanVarianceNormalization")
def mean_variance_normalization(item: ir.Node) -> Result:
    """Opset 9."""
    x = first(item)
    axes = list(item.attributes.get_ints("axes", [0, 2, 3]) or [])
    mean = reduce("ReduceMean", item, x, axes)
    centred = make("Sub", [x, mean], x)
    variance = reduce("ReduceMean", item, make("Mul", [centred, centred], x), axes)
    root = make("Add", [make("Sqrt", [variance], variance), scalar(1e-9, x, "epsilon")], variance)
    return make("Div", [centred, root], x)


DECOMPOSITIONS = (
    layer_normalization,
    rms_normalization,
    group_normalization,
    instance_normalization,
    mean_variance_normalization,
)
