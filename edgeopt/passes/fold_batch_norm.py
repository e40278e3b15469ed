"""Fold BatchNormalization into the weights beside it.

In inference the normalization of channel c is y = a·x + b with a = gamma / sqrt(var + epsilon) and
b = beta - a·mean (Ioffe and Szegedy 2015). A Conv, ConvTranspose, Gemm or MatMul that makes x takes it
into its weight and bias: (a·W) * z + (a·bias + b). A Conv without padding that reads y takes it into its
own: (W·a) * x + (bias + Σ W·b), and so does a Gemm or MatMul of matrices. What stays can be written as
Mul and Add on request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.graph.change import Change, NoMatch
from edgeopt.graph.linear import Linear, linear
from edgeopt.graph.rewriting import (
    Result,
    another_reader,
    constant,
    initializer,
    node,
    opset,
    rewrite,
    rule,
)
from edgeopt.graph.shapes import dims
from edgeopt.passes.base import Context, Pass


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold BatchNormalization into the Conv, ConvTranspose, Gemm or MatMul beside it.

    Attributes:
        split: Write a normalization that cannot be folded as Mul and Add.
    """

    name: ClassVar[str] = "fold-batch-norm"
    split: bool = False

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Edits the model in place."""
        change = rewrite(model, RULES + ((write_as_affine,) if self.split else ()), context)
        error = max((item.error for item in change.rewrites if item.error is not None), default=0.0)
        change.summary = f"{len(change.rewrites)} folded, max |d| {error:.0e}" if change.rewrites else "none"
        return change


@rule("Conv|ConvTranspose|Gemm|MatMul -> BatchNormalization")
def fold_into_producer(producer: ir.Node, norm: ir.Node) -> Result:
    """Scales the weight of the node that makes the normalized value."""
    affine = _affine(norm)
    if isinstance(affine, NoMatch):
        return affine
    layer = linear(producer)
    if isinstance(layer, NoMatch):
        return layer
    if producer.op_type in ("Gemm", "MatMul") and len(dims(producer.outputs[0]) or ()) != 2:
        return NoMatch("channels are not the last axis of the product")
    scale, shift = affine
    if len(scale) != layer.channels:
        return NoMatch(f"{len(scale)} channels are normalized and {layer.channels} are made")
    return layer.scaled(scale, shift)


@rule("BatchNormalization -> Conv")
def fold_into_reader(norm: ir.Node, conv: ir.Node) -> Result:
    """Takes the normalization of an input into an unpadded convolution."""
    affine = _affine(norm)
    if isinstance(affine, NoMatch):
        return affine
    if any(conv.attributes.get_ints("pads", ())) or conv.attributes.get_string("auto_pad", "NOTSET") not in (
        "NOTSET",
        "VALID",
    ):
        return NoMatch("the convolution pads with zeros, which the normalization would shift")
    layer = linear(conv)
    if isinstance(layer, NoMatch):
        return layer
    return _scale_inputs(layer, norm, *affine)


@rule("BatchNormalization -> Gemm|MatMul")
def fold_into_product(norm: ir.Node, product: ir.Node) -> Result:
    """Takes the normalization of the rows of a matrix into the product that reads them."""
    affine = _affine(norm)
    if isinstance(affine, NoMatch):
        return affine
    if product.inputs[0] is not norm.outputs[0] or len(dims(norm.inputs[0]) or ()) != 2:
        return None
    layer = linear(product)
    if isinstance(layer, NoMatch):
        return layer
    if product.attributes.get_int("transA", 0):
        return NoMatch("the product transposes what it reads")
    scale, shift = affine
    weight = layer.weight.astype(np.float64)
    transposed = product.attributes.get_int("transB", 0)
    if weight.shape[1 if transposed else 0] != len(scale):
        return NoMatch(f"{len(scale)} channels are normalized and {weight.shape[0]} are read")
    if another_reader(norm.outputs[0], than=product):
        return NoMatch("the normalized value has another reader")
    added = shift @ (weight.T if transposed else weight) * product.attributes.get_float("alpha", 1.0)
    scaled = weight * scale if transposed else weight * scale[:, None]
    return layer.with_numbers(scaled, layer.bias + added, data=norm.inputs[0])


@rule("BatchNormalization", name="BatchNormalization as Mul and Add")
def write_as_affine(norm: ir.Node) -> Result:
    """a·x + b with one constant of each a channel."""
    affine = _affine(norm)
    if isinstance(affine, NoMatch):
        return affine
    rank = len(dims(norm.inputs[0]) or ())
    if rank < 2:
        return NoMatch("the rank of the input is not known")
    dtype = _dtype(norm)
    scale, shift = (item.reshape(-1, *[1] * (rank - 2)).astype(dtype) for item in affine)
    product = node("Mul", [norm.inputs[0], initializer(f"{norm.name}.scale", scale)])
    return node("Add", [product.outputs[0], initializer(f"{norm.name}.shift", shift)])


RULES = (fold_into_producer, fold_into_reader, fold_into_product)


def _affine(norm: ir.Node) -> tuple[np.ndarray, np.ndarray] | NoMatch:
    """The factor and the shift of each channel, in float64."""
    if norm.attributes.get_int("training_mode", 0):
        return NoMatch("it normalizes by the statistics of the batch (training mode)")
    if opset(norm) < 9 and not norm.attributes.get_int("spatial", 1):
        return NoMatch("it normalizes every position by itself (spatial = 0)")
    if opset(norm) < 7 and not norm.attributes.get_int("is_test", 0):
        return NoMatch("it normalizes by the statistics of the batch (is_test = 0)")
    if any(output.uses() or output.is_graph_output() for output in norm.outputs[1:]):
        return NoMatch("its running statistics are read")
    parameters = [constant(value) for value in norm.inputs[1:5]]
    if len(parameters) < 4 or any(item is None for item in parameters):
        return NoMatch("its parameters are computed")
    gamma, beta, mean, variance = (np.asarray(item, np.float64) for item in parameters)
    spread = variance + norm.attributes.get_float("epsilon", 1e-5)
    if not (spread > 0).all():
        return NoMatch("a variance is zero or negative")
    scale = gamma / np.sqrt(spread)
    if not np.isfinite(scale).all():
        return NoMatch("a parameter is not finite")
    return scale, beta - mean * scale


def _scale_inputs(layer: Linear, norm: ir.Node, scale: np.ndarray, shift: np.ndarray) -> Result:
    weight = layer.weight.astype(np.float64)
    groups = layer.node.attributes.get_int("group", 1)
    if weight.shape[1] * groups != len(scale):
        return NoMatch(f"{len(scale)} channels are normalized and {weight.shape[1] * groups} are read")
    split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    by_group = (groups, 1, weight.shape[1], 1)
    bias = layer.bias + (split * shift.reshape(by_group)).sum(axis=(2, 3)).reshape(-1)
    scaled = (split * scale.reshape(by_group)).reshape(weight.shape)
    if another_reader(norm.outputs[0], than=layer.node):
        return NoMatch("the normalized value has another reader")
    return layer.with_numbers(scaled, bias, data=norm.inputs[0])


def _dtype(norm: ir.Node) -> np.dtype:
    parameter = constant(norm.inputs[1])
    return np.dtype(np.float32) if parameter is None else parameter.dtype
