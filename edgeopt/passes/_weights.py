"""How constant weights are laid out and rounded where they are stored in few bits.

A *layout* says which integers a weight gets and which of its elements share a scale. 8-bit weights have a
scale per output channel. 4-bit weights have one per block of inputs where that fits: of rows of a matrix
product, of input channels of a convolution (at each place of its kernel), of columns of an embedding.
Convolutions with fewer channels than a block have one per output channel, and depthwise ones, of a handful
of weights each, keep 8 bits, as do recurrent layers.

Scales are those of the least squared error. With data they and the rounding are chosen by what the
products multiply (``graph/gptq.py``), and biases take up the mean error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeopt.graph import gptq
from edgeopt.graph.execute import Feeds
from edgeopt.graph.observers import channel_scales
from edgeopt.graph.placement import is_constant, weight_axis
from edgeopt.graph.quantization import QuantParams, dequantize_array, integer_range, spread

SMALLEST_BLOCK = 16
"""Convolutions and embeddings of fewer channels than this are not laid out in blocks."""

Progress = Callable[[Iterable[gptq.Product], str, int], Iterable[gptq.Product]]

Reader = tuple[ir.Node, int, int | None]
"""A node, the index of its input, and the axis of channels that the runtime's rules give it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How one weight becomes integers.

    Attributes:
        dtype: The integers.
        axis: The axis of channels or blocks; ``None`` for one scale.
        block: Elements along ``axis`` that share a scale; 0 for channels.
    """

    dtype: ir.DataType
    axis: int | None
    block: int = 0


def choose_layout(readers: Sequence[Reader], shape: Sequence[int], sizes: Sequence[int], bits: int) -> Layout:
    """Chooses the layout of a weight by all who read it.

    Args:
        readers: Who reads it quantized.
        shape: Its shape.
        sizes: Block sizes, the preferred first.
        bits: 8, or 4 where that fits.
    """
    if bits == 4:
        wanted = {_four(node, index, shape, sizes) for node, index, _ in readers}
        if len(wanted) == 1 and (layout := wanted.pop()) is not None:
            return layout
    axes = {weight_axis(node, index, axis, len(shape)) for node, index, axis in readers}
    return Layout(ir.DataType.INT8, axes.pop() if len(axes) == 1 else None)


def _four(node: ir.Node, index: int, shape: Sequence[int], sizes: Sequence[int]) -> Layout | None:
    int4 = ir.DataType.INT4
    if node.op_type == "MatMul" and index == 1 and len(shape) == 2:
        return Layout(int4, 0, sizes[0])
    if node.op_type == "Gemm" and index == 1 and not node.attributes.get_int("transA"):
        axis = 1 if node.attributes.get_int("transB", 0) else 0
        block = _dividing(shape[axis], sizes)
        return Layout(int4, axis, block) if block else Layout(int4, 1 - axis)
    if node.op_type == "Gather" and index == 0 and len(shape) == 2 and not node.attributes.get_int("axis", 0):
        block = _dividing(shape[1], sizes)
        return Layout(int4, 1, block) if block else None
    if node.op_type == "Conv" and index == 1:
        if block := _dividing(shape[1], sizes):
            return Layout(int4, 1, block)
        return Layout(int4, 0) if node.attributes.get_int("group", 1) == 1 else None
    return None


def _dividing(size: int, sizes: Sequence[int]) -> int:
    """The first block size that divides a size; 0 for none."""
    return next((block for block in sizes if block >= SMALLEST_BLOCK and size % block == 0), 0)


def nearest_params(array: np.ndarray, layout: Layout) -> QuantParams:
    """Chooses scales of a weight by itself: of extremes at 8 bits, of least squared error at 4."""
    if layout.dtype == ir.DataType.INT8:
        scale = channel_scales(array, layout.axis, layout.dtype)
        return QuantParams(layout.dtype, scale, None, layout.axis)
    return _searched(array, layout, np.ones(array.shape, np.float32) if array.size < 2**20 else None)


def _searched(array: np.ndarray, layout: Layout, importance: np.ndarray | None) -> QuantParams:
    """Searches scales of least squared error, weighted by an importance of the weight's shape."""
    low, high = integer_range(layout.dtype)
    axis = layout.axis or 0
    if not layout.block:  # per channel: the channels become columns
        columns = np.moveaxis(array, axis, -1).reshape(1, -1, array.shape[axis])
        costs = None if importance is None else np.moveaxis(importance, axis, -1).reshape(columns.shape)
        scale = gptq.search_scales(columns, _costs(costs, columns), 0, low, high)[0, 0]
        return QuantParams(layout.dtype, scale, None, axis)
    moved = np.moveaxis(array, axis, 0)
    columns = moved.reshape(1, len(moved), -1)
    costs = None if importance is None else np.moveaxis(importance, axis, 0).reshape(columns.shape)
    found = gptq.search_scales(columns, _costs(costs, columns), layout.block, low, high)[0]
    scale = np.moveaxis(found.reshape(len(found), *moved.shape[1:]), 0, axis)
    return QuantParams(layout.dtype, np.ascontiguousarray(scale), None, axis, layout.block)


def _costs(costs: np.ndarray | None, columns: np.ndarray) -> np.ndarray:
    return np.ones(columns.shape[:2], np.float32) if costs is None else costs


def learn(
    model: ir.Model,
    layouts: Mapping[ir.Value, Layout],
    samples: Iterable[Feeds],
    progress: Progress,
) -> dict[ir.Value, QuantParams]:
    """Moves the weights of products onto their grids, by what the products multiply, in place.

    Args:
        model: The model, without quantization.
        layouts: The layouts of weights.
        samples: Calls that can be repeated.
        progress: Shows a progress bar.

    Returns:
        The parameters of the weights that were moved; others, as of embeddings, are left alone.
    """
    products = [
        item
        for node in model.graph
        if (item := gptq.product(node)) is not None
        and item.weight in layouts
        and len(item.weight.uses()) == 1
    ]
    found: dict[ir.Value, QuantParams] = {}
    for group in gptq.parted(products):
        moments = gptq.accumulate(model, group, samples)
        for item in progress(group, "rounding weights", len(group)):
            own = moments.get(item.node.name or "")
            if own is not None and own.count:
                found[item.weight] = _round(item, layouts[item.weight], own)
    return found


def _round(item: gptq.Product, layout: Layout, moments: gptq.Moments) -> QuantParams:
    tensor = item.weight.const_value
    assert tensor is not None
    array = tensor.numpy().astype(np.float32)
    matrices = gptq.as_matrices(item, array)
    bias = _bias(item)
    second = moments.second if bias is None else moments.centered()
    diagonal = np.einsum("gkk->gk", second)[:, :, None]
    importance = gptq.from_matrices(item, np.broadcast_to(diagonal, matrices.shape), array.shape)
    if layout.dtype == ir.DataType.INT8:
        params = nearest_params(array, layout)
    else:
        params = _searched(array, layout, importance.astype(np.float32))
    scale, zero = (
        gptq.as_matrices(item, np.broadcast_to(part, array.shape)) for part in spread(params, array.shape)
    )
    low, high = integer_range(layout.dtype)
    integers = gptq.round_rows(matrices, second, scale, zero, low, high)
    rounded = gptq.from_matrices(item, integers, array.shape).astype(layout.dtype.numpy())
    kept = dequantize_array(rounded, params)
    item.weight.const_value = ir.tensor(kept, name=item.weight.name)
    if bias is not None and bias.const_value is not None:
        before = bias.const_value.numpy()
        lost = np.einsum("gk,gkn->gn", moments.mean, matrices - gptq.as_matrices(item, kept))
        shifted = (before + lost.reshape(before.shape)).astype(before.dtype)
        bias.const_value = ir.tensor(shifted, name=bias.name)
    return params


def _bias(item: gptq.Product) -> ir.Value | None:
    """The bias of a product, its own or of the sum that alone reads it, if nobody else reads the bias."""
    node = item.node
    matrices = gptq.as_matrices(item, np.broadcast_to(np.int8(0), gptq.shape_of(item)))
    own = node.inputs[2] if len(node.inputs) > 2 else None
    if node.op_type == "Gemm" and node.attributes.get_float("beta", 1.0) != 1:
        return None
    readers = list(node.outputs[0].uses())
    summed = len(readers) == 1 and readers[0].node.op_type == "Add"
    if node.op_type == "MatMul" and summed and not node.outputs[0].is_graph_output():
        own = readers[0].node.inputs[1 - readers[0].idx]
    if own is None or not is_constant(own) or len(own.uses()) > 1 or own.const_value is None:
        return None
    channels = matrices.shape[0] * matrices.shape[2]
    shape = tuple(own.const_value.shape.numpy())
    return own if shape[-1:] == (channels,) and own.const_value.size == channels else None
