"""QuantizeLinear and DequantizeLinear, with gradients.

Rounding passes gradients straight through (Bengio et al., Estimating or Propagating Gradients Through
Stochastic Neurons, 2013); what lies beyond the range of the integers gets none. With that the ordinary
derivatives of a pair by its scale are those of learned step sizes (Esser et al., Learned Step Size
Quantization, ICLR 2020): round(x / s) - x / s within the range, its end beyond.

The integers stay in floating-point tensors (see ``operators``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir
import torch

from edgeopt.graph.autograd.operators import Call, Tensor, operator
from edgeopt.graph.quantization import integer_range


class _Quantize(torch.autograd.Function):  # type: ignore[misc]  # torch is not installed everywhere
    """clamp(round(x / scale) + zero, low, high), with straight-through gradients for x and scale."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int
    ) -> Tensor:
        ratio = x / scale
        grid = torch.round(ratio).add_(zero)
        inside = (grid >= low) & (grid <= high)
        ctx.save_for_backward(ratio if ctx.needs_input_grad[1] else inside, scale, inside)
        return grid.clamp_(low, high)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ratio, scale, inside = ctx.saved_tensors
        through = gradients[0] * inside / scale
        by_scale = None
        if ctx.needs_input_grad[1]:
            by_scale = (-through * ratio).sum_to_size(scale.shape)
        return through, by_scale, None, None, None


def quantize(x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """Computes integers as floats, with straight-through gradients.

    Args:
        x: Floats.
        scale: Broadcasts with x.
        zero: Broadcasts with x.
        low: The smallest integer.
        high: The largest.
    """
    integers: Tensor = _Quantize.apply(x, scale, zero, low, high)
    return integers


class _RoundTrip(torch.autograd.Function):  # type: ignore[misc]  # torch is not installed everywhere
    """Quantizes and dequantizes in one, with the gradients of the two: a quarter of their time."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        scale: Tensor,
        low: float | Tensor,
        high: float | Tensor,
    ) -> Tensor:
        ratio = x / scale
        steps = torch.round(ratio)
        ctx.ends = low, high
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(ratio, scale)
        else:
            ctx.save_for_backward((steps >= low) & (steps <= high))
        return steps.clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        outer = gradients[0]
        if not ctx.needs_input_grad[1]:
            return outer * ctx.saved_tensors[0], None, None, None
        ratio, scale = ctx.saved_tensors
        low, high = ctx.ends
        steps = torch.round(ratio)
        through = outer * ((steps >= low) & (steps <= high))
        steps.clamp_(low, high)
        if scale.numel() == 1:  # of a whole tensor: no product of its size is needed
            both = torch.dot(outer.reshape(-1), steps.reshape(-1))
            both = both - torch.dot(through.reshape(-1), ratio.reshape(-1))
            return through, both.reshape(scale.shape), None, None
        return through, (outer * steps - through * ratio).sum_to_size(scale.shape), None, None


def round_trip(first: Call, second: Call, arguments: Sequence[Tensor | None]) -> Tensor:
    """Runs a QuantizeLinear and the DequantizeLinear behind it that has the same scale and zero point.

    Args:
        first: The QuantizeLinear.
        second: The DequantizeLinear.
        arguments: What the first reads.
    """
    x, scale, *rest = arguments
    assert x is not None and scale is not None
    zero = rest[0] if rest else None
    kind = _kind(first, zero)
    plain = kind.is_integer() and x.dtype == scale.dtype and not first.integer("precision")
    if not plain or not x.is_floating_point():
        return dequantize_linear(second, quantize_linear(first, x, scale, zero), scale, zero)
    low, high = integer_range(kind)
    offset: float | Tensor = 0.0
    if zero is not None:  # a number where there is one: comparing with it takes a fraction of the time
        offset = float(zero) if zero.numel() == 1 else _spread(first, x, zero.to(x.dtype))
    made: Tensor = _RoundTrip.apply(x, _spread(first, x, scale), low - offset, high - offset)
    return made


def soft_round(x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int, logits: Tensor) -> Tensor:
    """Quantizes and dequantizes with rounding that is learned: floor(x / scale) + h(logits).

    h is the rectified sigmoid clip(1.2 sigmoid(logits) - 0.1, 0, 1) of AdaRound (Nagel et al., Up or Down?
    Adaptive Rounding for Post-Training Quantization, ICML 2020). Give the result to ``run`` as the value
    behind the weight's DequantizeLinear.
    """
    integers = torch.clamp(torch.floor(x / scale) + rounding_share(logits) + zero, low, high)
    return (integers - zero) * scale


def rounding_share(logits: Tensor) -> Tensor:
    """Returns h of ``soft_round``: how far each number is rounded up, 0 to 1."""
    return torch.clamp(1.2 * torch.sigmoid(logits) - 0.1, 0, 1)


def rounding_logits(x: Tensor, scale: Tensor) -> Tensor:
    """Returns the logits for which ``soft_round`` changes nothing."""
    rest = x / scale - torch.floor(x / scale)
    return -torch.log(1.2 / (rest + 0.1) - 1)


def gradient_scale(count: int, high: int) -> float:
    """Returns 1 / sqrt(count * high), by which learned step sizes scale the gradient of one scale.

    Args:
        count: How many elements it quantizes.
        high: The largest integer.
    """
    return 1 / math.sqrt(max(count * high, 1))


def _spread(call: Call, x: Tensor, parameter: Tensor) -> Tensor:
    """Shapes a scale or zero point to broadcast with x: per tensor, per channel or per block."""
    if parameter.dim() == 0 or (parameter.numel() == 1 and parameter.dim() <= 1 and x.dim() != 1):
        return parameter.reshape(())
    axis = call.integer("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    if block := call.integer("block_size"):
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    if parameter.dim() == x.dim():
        return parameter
    shape = [1] * x.dim()
    shape[axis if x.dim() > 1 else 0] = parameter.numel()
    return parameter.reshape(shape)


def _kind(call: Call, zero: Tensor | None) -> ir.DataType:
    value = call.node.inputs[2] if len(call.node.inputs) > 2 else None
    if zero is not None and value is not None and value.dtype is not None:
        return value.dtype
    output = call.node.outputs[0].dtype
    chosen = call.integer("output_dtype")
    return ir.DataType(chosen) if chosen else output or ir.DataType.UINT8


@operator("QuantizeLinear")
def quantize_linear(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Rounds x / scale and adds the zero point."""
    kind = _kind(call, zero)
    if not kind.is_integer():
        raise call.refuse(f"to {kind.name.lower()}")
    if call.integer("precision") or not x.is_floating_point():
        raise call.refuse("of integers, or in a precision of its own,")
    wide = scale.to(x.dtype)
    offset = torch.zeros((), dtype=x.dtype, device=x.device) if zero is None else zero.to(x.dtype)
    low, high = integer_range(kind)
    return quantize(x, _spread(call, x, wide), _spread(call, x, offset), low, high)


@operator("DequantizeLinear")
def dequantize_linear(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """(x - zero point) times scale."""
    value = call.node.inputs[0]
    if value is not None and value.dtype is not None and not value.dtype.is_integer():
        raise call.refuse(f"of {value.dtype.name.lower()}")
    if not x.is_floating_point():
        x = x.to(torch.float64 if x.dtype == torch.int32 else scale.dtype)
    if zero is not None:
        x = x - _spread(call, x, zero.to(x.dtype))
    return x.to(scale.dtype) * _spread(call, x, scale)


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(call: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantizes to uint8 with the range of the tensor itself, zero included."""
    low, high = x.detach().min().clamp(max=0), x.detach().max().clamp(min=0)
    scale = (high - low) / 255
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.clamp(torch.round(-low / safe), 0, 255)
    return quantize(x, safe, zero, 0, 255), scale, zero
