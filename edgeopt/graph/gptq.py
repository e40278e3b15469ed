"""Rounding the weights of products so that their outputs, not the weights, keep the least squared error.

Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, 2022
(after Hassibi and Stork's Optimal Brain Surgeon, 1993): the rows of a weight are rounded one after
another, and the error of each is made good in the rows that are still to come, as far as the data's
second moments allow. Everything is closed form, in numpy, for any grid: 4 or 8 bits, per tensor, per
channel or in blocks.

A weight is seen as ``groups`` matrices of K inputs x N outputs: Conv (grouped, depthwise), Gemm and MatMul
alike. Moments are streamed through taps: nothing of the data is kept.

    moments = accumulate(model, products, calls)
    integers = round_rows(as_matrices(product, weight), moments[name], scale, zero, low, high)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeopt.graph.execute import Feeds
from edgeopt.graph.observers import tapped

ROWS_PER_CALL = 4096
"""Positions of one value that enter the moments per call, evenly spaced."""

MOMENT_BYTES = 2**29
"""Moments that are held at a time stay below this."""

DAMPING = 0.01
"""What is added to the diagonal of the moments, relative to its mean, as in the paper."""

SEARCHED = 2**21
"""Elements of a weight whose scales are searched at a time."""

INVERTED = 64
"""Triangular matrices up to this size are inverted as any others."""

LAZY = 32
"""Rows whose errors are handed on together to all later rows."""


@dataclass(frozen=True, slots=True)
class Product:
    """A product with a constant weight.

    Attributes:
        node: Conv, Gemm or MatMul.
        source: The value that it multiplies, as it reads it: quantized, where it is.
        weight: The constant behind its weight, quantized or not.
        groups: Groups of channels that do not mix; 1 for matrix products.
    """

    node: ir.Node
    source: ir.Value
    weight: ir.Value
    groups: int


@dataclass(slots=True)
class Moments:
    """Sums over rows x of what a product multiplies.

    Attributes:
        second: Sum of the outer products, float64 [groups, K, K].
        first: Sum of the rows, float64 [groups, K].
        count: The number of rows.
    """

    second: np.ndarray
    first: np.ndarray
    count: int = 0

    def see(self, rows: np.ndarray) -> None:
        """Takes in rows [count, groups, K]."""
        grouped = np.ascontiguousarray(rows.transpose(1, 0, 2), np.float32)
        self.second += grouped.transpose(0, 2, 1) @ grouped
        self.first += grouped.sum(1)
        self.count += len(rows)

    @property
    def mean(self) -> np.ndarray:
        """The mean row, [groups, K]."""
        mean: np.ndarray = self.first / max(self.count, 1)
        return mean

    def centered(self) -> np.ndarray:
        """The second moments around the mean: what counts where a bias takes up the mean error."""
        centered: np.ndarray = self.second - self.mean[:, :, None] * self.first[:, None, :]
        return centered


def product(node: ir.Node) -> Product | None:
    """Reads a node as a product whose weight can be rounded, quantized or not; ``None`` if it is none."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
        return None
    source, weight = node.inputs[0], _origin(node.inputs[1])
    if source is None or weight is None or weight.const_value is None or weight.is_graph_input():
        return None
    rank = len(weight.const_value.shape)
    if rank < 3 if node.op_type == "Conv" else rank != 2:
        return None
    if node.op_type == "Gemm" and node.attributes.get_int("transA"):
        return None
    if node.op_type == "Conv" and node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    groups = node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1
    return Product(node, source, weight, groups or 1)


def _origin(value: ir.Value | None) -> ir.Value | None:
    """The constant that a value is, or is the quantized form of."""
    while value is not None and value.const_value is None:
        node = value.producer()
        if node is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            return None
        value = node.inputs[0]
    return value if value is not None and value.is_initializer() else None


def as_matrices(item: Product, weight: np.ndarray) -> np.ndarray:
    """Returns a weight, or anything of its shape, as [groups, K, N]."""
    if item.node.op_type == "Conv":
        flat = weight.reshape(item.groups, weight.shape[0] // item.groups, -1)
        return flat.transpose(0, 2, 1)
    return (weight.T if _transposed(item) else weight)[None]


def from_matrices(item: Product, matrices: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Returns matrices [groups, K, N] in the shape of the node's weight; inverse of ``as_matrices``."""
    if item.node.op_type == "Conv":
        return np.ascontiguousarray(matrices.transpose(0, 2, 1)).reshape(shape)
    return np.ascontiguousarray(matrices[0].T if _transposed(item) else matrices[0])


def _transposed(item: Product) -> bool:
    return item.node.op_type == "Gemm" and bool(item.node.attributes.get_int("transB", 0))


def rows_of(item: Product, array: np.ndarray, limit: int = ROWS_PER_CALL) -> np.ndarray:
    """Returns the rows that a product multiplies with its weight, [count, groups, K].

    Args:
        item: The product.
        array: The value it reads: [..., K], or [batch, channels, spatial...] for Conv.
        limit: At most so many rows, evenly spaced.
    """
    if item.node.op_type != "Conv":
        flat = array.reshape(-1, array.shape[-1])
        rows: np.ndarray = flat[_even(len(flat), limit)][:, None, :]
        return rows
    kernel = shape_of(item)[2:]
    rank = len(kernel)
    attributes = item.node.attributes
    strides = attributes.get_ints("strides", None) or [1] * rank
    dilations = attributes.get_ints("dilations", None) or [1] * rank
    pads = attributes.get_ints("pads", None) or [0] * (2 * rank)
    padded = np.pad(array, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    sizes = [
        (size - dilation * (length - 1) - 1) // stride + 1
        for size, length, stride, dilation in zip(padded.shape[2:], kernel, strides, dilations, strict=True)
    ]
    chosen = _even(array.shape[0] * int(np.prod(sizes)), limit)
    sample, *places = np.unravel_index(chosen, (array.shape[0], *sizes))
    index: list[np.ndarray] = [sample.reshape(-1, *[1] * (rank + 1))]
    index.append(np.arange(array.shape[1]).reshape(1, -1, *[1] * rank))
    for axis, (place, length) in enumerate(zip(places, kernel, strict=True)):
        offsets = np.arange(length) * dilations[axis]
        taps = (place * strides[axis])[:, None] + offsets
        index.append(taps.reshape(len(chosen), 1, *(length if other == axis else 1 for other in range(rank))))
    windows: np.ndarray = padded[tuple(index)]
    return windows.reshape(len(chosen), item.groups, -1)


def _even(count: int, limit: int) -> np.ndarray:
    if count <= limit:
        return np.arange(count)
    return np.linspace(0, count - 1, limit).astype(np.int64)


def accumulate(
    model: ir.Model,
    products: Sequence[Product],
    samples: Iterable[Feeds],
    limit: int = ROWS_PER_CALL,
) -> dict[str, Moments]:
    """Streams the moments of what products multiply.

    Products that read one value in one way share their moments. See ``parted`` for what fits in memory.

    Args:
        model: The model of the products: float, or quantized as far as it is.
        products: Their nodes have unique names.
        samples: The calls' inputs.
        limit: Rows per call and product.

    Returns:
        Moments per node name.
    """
    by_source: dict[str, dict[tuple[str, ...], list[Product]]] = {}
    for item in products:
        by_source.setdefault(item.source.name or "", {}).setdefault(_reading(item), []).append(item)
    found: dict[str, Moments] = {}
    for name, array in tapped(model, list(by_source), samples):
        for same in by_source[name].values():
            rows = rows_of(same[0], np.asarray(array, np.float32), limit)
            own = found.get(same[0].node.name or "")
            if own is None:
                groups, size = rows.shape[1:]
                own = Moments(np.zeros((groups, size, size)), np.zeros((groups, size)))
                found.update(dict.fromkeys((item.node.name or "" for item in same), own))
            own.see(rows)
    return found


def parted(products: Sequence[Product]) -> list[list[Product]]:
    """Parts products, in order, so that the moments of each part take at most 512 MB."""
    parts: list[list[Product]] = [[]]
    seen: set[tuple[str, ...]] = set()
    total = 0
    for item in products:
        inputs = as_matrices(item, np.broadcast_to(np.int8(0), shape_of(item))).shape[1]
        size = 0 if _reading(item) in seen else 8 * item.groups * inputs * inputs
        if parts[-1] and total + size > MOMENT_BYTES:
            parts.append([])
            seen, total = set(), 0
            size = 8 * item.groups * inputs * inputs
        seen.add(_reading(item))
        parts[-1].append(item)
        total += size
    return [part for part in parts if part]


def _reading(item: Product) -> tuple[str, ...]:
    """What makes the rows of two products equal."""
    name = item.source.name or ""
    if item.node.op_type != "Conv":
        return (name, "rows")
    windows = (str(item.node.attributes.get_ints(key, None)) for key in ("strides", "dilations", "pads"))
    return (name, str(shape_of(item)[2:]), str(item.groups), *windows)


def shape_of(item: Product) -> tuple[int, ...]:
    """The shape of a product's weight, as the node has it."""
    tensor = item.weight.const_value
    return () if tensor is None else tuple(tensor.shape.numpy())


def round_rows(
    weight: np.ndarray,
    second: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray,
    low: int,
    high: int,
    damping: float = DAMPING,
    order: np.ndarray | None = None,
) -> np.ndarray:
    """Rounds weights to a grid with the least squared error of the products' outputs.

    Rows that matter most are rounded first, while most others can still make good their error.

    Args:
        weight: float32 or float64 [groups, K, N]; all is computed in its type.
        second: Second moments of the rows multiplied, [groups, K, K].
        scale: Broadcasts to [groups, K, N]; positive.
        zero: Zero points, as the scale.
        low: The smallest integer.
        high: The largest.
        damping: Added to the diagonal of the moments, relative to its mean.
        order: The order in which rows are rounded, [groups, K]; without it each group has its own, by its
            second moments.

    Returns:
        The integers, in the weight's type and shape; the rounded weight is ``(integers - zero) * scale``.
    """
    groups, size, _ = weight.shape
    scale = np.broadcast_to(scale, weight.shape)
    zero = np.broadcast_to(zero, weight.shape)
    hessian = second.astype(np.float64, copy=False)
    if order is None:
        order = np.argsort(-np.einsum("gkk->gk", hessian), axis=1, kind="stable")
    inverse_order = np.argsort(order, axis=1, kind="stable")
    index = np.arange(groups)[:, None]
    rows = weight[index, order]
    scales, zeros = scale[index, order], zero[index, order]
    hessian = hessian[index[:, :, None], order[:, :, None], order[:, None, :]]
    factor = _factor(hessian, damping).astype(weight.dtype)
    result: np.ndarray = np.empty_like(rows)
    for start in range(0, size, LAZY):
        end = min(start + LAZY, size)
        errors = np.empty((groups, end - start, rows.shape[2]), weight.dtype)
        for row in range(start, end):
            integers = np.rint(rows[:, row] / scales[:, row]) + zeros[:, row]
            integers = np.clip(integers, low, high)
            result[:, row] = integers
            kept = (integers - zeros[:, row]) * scales[:, row]
            error = (rows[:, row] - kept) / factor[:, row, row, None]
            errors[:, row - start] = error
            if row + 1 < end:
                rows[:, row + 1 : end] -= factor[:, row, row + 1 : end, None] * error[:, None]
        if end < size:
            rows[:, end:] -= factor[:, start:end, end:].transpose(0, 2, 1) @ errors
    return result[index, inverse_order]


def _factor(hessian: np.ndarray, damping: float) -> np.ndarray:
    """Returns the upper triangular U with U^T U = H^-1, float64 [groups, K, K]."""
    size = hessian.shape[1]
    diagonal = np.einsum("gkk->gk", hessian)
    mean = diagonal.mean(1)
    mean = np.where(mean > 0, mean, 1.0)
    damped = hessian + (damping * mean)[:, None, None] * np.eye(size)
    damped[:, np.arange(size), np.arange(size)] += np.where(diagonal <= 0, mean[:, None], 0.0)
    # with the order reversed, H = R R^T for an upper triangular R, and then U = R^-1
    reversed_lower = np.linalg.cholesky(damped[:, ::-1, ::-1])
    return _inverse(reversed_lower[:, ::-1, ::-1])


def _inverse(upper: np.ndarray) -> np.ndarray:
    """The inverse of upper triangular matrices [groups, K, K], by halves: most of it is one product."""
    size = upper.shape[1]
    if size <= INVERTED:
        found: np.ndarray = np.triu(np.linalg.inv(upper))
        return found
    half = size // 2
    first, last = _inverse(upper[:, :half, :half]), _inverse(upper[:, half:, half:])
    result = np.zeros_like(upper)
    result[:, :half, :half], result[:, half:, half:] = first, last
    result[:, :half, half:] = -(first @ upper[:, :half, half:] @ last)
    return result


def search_scales(
    weight: np.ndarray,
    importance: np.ndarray,
    block: int,
    low: int,
    high: int,
    steps: int = 24,
) -> np.ndarray:
    """Returns symmetric scales with the least squared error weighted by importance.

    Args:
        weight: float [groups, K, N].
        importance: What an error costs, [groups, K] or [groups, K, N]: the diagonal of the second
            moments, or ones.
        block: Rows that share a scale; 0 for all.
        low: The smallest integer.
        high: The largest.
        steps: How many shrunken ranges are tried, down to 0.4 of the extremes.

    Returns:
        float32 [groups, blocks, N]; a block of zeros has the scale 1.
    """
    groups, size, columns = weight.shape
    block = block or size
    count = -(-size // block)
    costs = importance if importance.ndim == 3 else importance[:, :, None]
    result = np.empty((groups, count, columns), np.float32)
    width = max(1, SEARCHED // (groups * count * block))
    for start in range(0, columns, width):  # in parts, so that a large weight takes little memory
        part = slice(start, start + width)
        own = costs if costs.shape[2] == 1 else costs[:, :, part]
        blocks = _in_blocks(weight[:, :, part], count, block)
        result[:, :, part] = _least_error(blocks, _in_blocks(own, count, block), low, high, steps)
    return result


def _in_blocks(array: np.ndarray, count: int, block: int) -> np.ndarray:
    """Pads the rows with zeros and parts them: [groups, count, block, N]."""
    groups, size, columns = array.shape
    padded = np.zeros((groups, count * block, columns), np.float32)
    padded[:, :size] = array
    return padded.reshape(groups, count, block, columns)


def _least_error(blocks: np.ndarray, costs: np.ndarray, low: int, high: int, steps: int) -> np.ndarray:
    """Tries shrunken ranges for each block [groups, count, block, N]."""
    mean = costs.mean(2, keepdims=True)
    costs = costs / np.where(mean > 0, mean, 1) + np.float32(1e-3)
    bound = np.maximum(blocks.max(2) / max(high, 1), -blocks.min(2) / -low if low else 0)
    bound = np.where(bound < np.finfo(np.float32).tiny, 1, bound).astype(np.float32)
    best = np.full(bound.shape, np.inf)
    chosen = bound
    for fraction in np.linspace(1.0, 0.4, steps):
        scale = (bound * np.float32(fraction))[:, :, None]
        rounded = np.clip(np.rint(blocks / scale), low, high) * scale
        error = (costs * np.square(blocks - rounded)).sum(2)
        better = error < best
        best, chosen = np.where(better, error, best), np.where(better, scale[:, :, 0], chosen)
    return chosen.astype(np.float32)


def spread_rows(scale: np.ndarray, block: int, size: int) -> np.ndarray:
    """Repeats scales [groups, blocks, N] so that there is one for each of ``size`` rows."""
    return np.repeat(scale, block or size, axis=1)[:, :size]
