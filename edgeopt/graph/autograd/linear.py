"""Products: convolutions, matrix products, Einsum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from edgeopt.graph.autograd.operators import Call, Tensor, operator
from edgeopt.graph.autograd.windows import Window, pad

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@operator("Conv")
def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolves in one, two or three dimensions."""
    rank = x.dim() - 2
    if rank not in _CONV:
        raise call.refuse(f"in {rank} dimensions")
    window = Window.of(call, list(weight.shape[2:]), list(x.shape[2:]))
    begin, end = window.pads
    groups = call.integer("group", 1)
    if begin == end:
        return _CONV[rank](x, weight, bias, window.strides, begin, window.dilations, groups)
    return _CONV[rank](pad(x, begin, end), weight, bias, window.strides, 0, window.dilations, groups)


@operator("ConvTranspose")
def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolves backwards; what the pads cut off is cut off after the full result."""
    rank = x.dim() - 2
    if rank not in _TRANSPOSED:
        raise call.refuse(f"in {rank} dimensions")
    kernel = list(weight.shape[2:])
    strides = call.integers("strides") or [1] * rank
    dilations = call.integers("dilations") or [1] * rank
    extra = call.integers("output_padding") or [0] * rank
    full = [
        (size - 1) * stride + (width - 1) * dilation + 1 + more
        for size, stride, width, dilation, more in zip(
            x.shape[2:], strides, kernel, dilations, extra, strict=True
        )
    ]
    begin, end = _transposed_pads(call, full, list(x.shape[2:]), strides)
    # torch computes the full result without padding; output_padding beyond it is zeros plus bias
    result = _TRANSPOSED[rank](x, weight, None, strides, 0, 0, call.integer("group", 1), dilations)
    grown = [want - have for want, have in zip(full, result.shape[2:], strict=True)]
    result = pad(
        result, [-item for item in begin], [more - item for more, item in zip(grown, end, strict=True)]
    )
    return result if bias is None else result + bias.reshape(-1, *[1] * rank)


def _transposed_pads(
    call: Call, full: Sequence[int], sizes: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int]]:
    rank = len(full)
    mode = call.text("auto_pad", "NOTSET")
    shape = call.integers("output_shape")
    if shape is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        shape = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    if shape is None:
        pads = call.integers("pads") if mode == "NOTSET" else None
        pads = pads or [0] * (2 * rank)
        return pads[:rank], pads[rank:]
    total = [have - want for have, want in zip(full, shape[-rank:], strict=True)]
    half = [item // 2 for item in total]
    rest = [item - part for item, part in zip(total, half, strict=True)]
    return (half, rest) if mode == "SAME_UPPER" else (rest, half)


@operator("MatMul")
def matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Multiplies matrices, as numpy does."""
    return torch.matmul(a, b)


@operator("Gemm")
def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """alpha a b + beta c."""
    a = a.transpose(0, 1) if call.integer("transA") else a
    b = b.transpose(0, 1) if call.integer("transB") else b
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)
    if alpha == beta == 1 and c is not None and c.dim() == 1 and a.is_floating_point():
        return torch.addmm(c, a, b)
    product = torch.matmul(a, b)
    product = product if alpha == 1 else alpha * product
    return product if c is None else product + (c if beta == 1 else beta * c)


@operator("Einsum")
def einsum(call: Call, *values: Tensor) -> Tensor:
    """Sums products over repeated indices."""
    return torch.einsum(call.text("equation", "").replace(" ", ""), *values)
