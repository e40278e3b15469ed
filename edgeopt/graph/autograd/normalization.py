"""Normalizations and softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edgeopt.graph.autograd.operators import Call, Tensor, operator


def _channels(x: Tensor, parameter: Tensor) -> Tensor:
    """Shapes a parameter per channel to broadcast with [N, C, ...]."""
    return parameter.reshape(-1, *[1] * (x.dim() - 2))


@operator("BatchNormalization")
def batch_normalization(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    """Normalizes by running statistics."""
    if call.integer("training_mode"):
        raise call.refuse("in training mode")
    factor = scale / torch.sqrt(variance + call.number("epsilon", 1e-5))
    if x.dim() == 1:
        return (x - mean) * factor + bias
    return (x - _channels(x, mean)) * _channels(x, factor) + _channels(x, bias)


@operator("InstanceNormalization")
def instance_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalizes each channel of each sample."""
    axes = tuple(range(2, x.dim()))
    centred = x - x.mean(axes, keepdim=True)
    variance = (centred * centred).mean(axes, keepdim=True)
    normal = centred * torch.rsqrt(variance + call.number("epsilon", 1e-5))
    return normal * _channels(x, scale) + _channels(x, bias)


@operator("LayerNormalization")
def layer_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> object:
    """Normalizes over the last axes, from ``axis`` on."""
    axis = call.integer("axis", -1) % x.dim()
    epsilon = call.number("epsilon", 1e-5)
    if not call.wants(1) and not call.wants(2):
        shape = x.shape[axis:]
        if scale.shape == shape and (bias is None or bias.shape == shape):
            return F.layer_norm(x, shape, scale, bias, epsilon)
    axes = tuple(range(axis, x.dim()))
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    inverse = torch.rsqrt((centred * centred).mean(axes, keepdim=True) + epsilon)
    result = centred * inverse * scale
    result = result if bias is None else result + bias
    return result, mean, inverse


@operator("RMSNormalization")
def rms_normalization(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    """Divides by the root mean square over the last axes."""
    axes = tuple(range(call.integer("axis", -1) % x.dim(), x.dim()))
    return x * torch.rsqrt((x * x).mean(axes, keepdim=True) + call.number("epsilon", 1e-5)) * scale


@operator("GroupNormalization")
def group_normalization(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalizes groups of channels; scale and bias per channel, or (before opset 21) per group."""
    groups = call.integer("num_groups", 1)
    epsilon = call.number("epsilon", 1e-5)
    repeats = x.shape[1] // scale.numel()
    return F.group_norm(x, groups, scale.repeat_interleave(repeats), bias.repeat_interleave(repeats), epsilon)


@operator("LpNormalization")
def lp_normalization(call: Call, x: Tensor) -> Tensor:
    """Divides by the p-norm along an axis; zeros stay zeros."""
    norm = torch.linalg.vector_norm(x, call.integer("p", 2), call.integer("axis", -1), keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, 1.0, norm))


@operator("MeanVarianceNormalization")
def mean_variance_normalization(call: Call, x: Tensor) -> Tensor:
    """Centres, and divides by the standard deviation over the axes."""
    axes = tuple(call.integers("axes") or (0, 2, 3))
    centred = x - x.mean(axes, keepdim=True)
    return centred / (torch.sqrt((x * x).mean(axes, keepdim=True) - x.mean(axes, keepdim=True) ** 2) + 1e-9)


@operator("LRN")
def local_response(call: Call, x: Tensor) -> Tensor:
    """Divides by the energy of neighbouring channels."""
    size = call.integer("size", 1)
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    squares = F.pad((x * x).movedim(1, -1), (before, after)).unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    alpha, beta, bias = call.number("alpha", 1e-4), call.number("beta", 0.75), call.number("bias", 1.0)
    return x / (bias + alpha / size * squares) ** beta


def _axis(call: Call) -> int:
    """Returns the axis; before opset 13 it was the first of those that are flattened."""
    if call.opset < 13:
        raise call.refuse(f"of opset {call.opset}")
    return call.integer("axis", -1)


@operator("Softmax")
def softmax(call: Call, x: Tensor) -> Tensor:
    """Exponentials that sum to one along an axis."""
    return torch.softmax(x, _axis(call))


@operator("LogSoftmax")
def log_softmax(call: Call, x: Tensor) -> Tensor:
    """The logarithm of the softmax."""
    return torch.log_softmax(x, _axis(call))


@operator("Hardmax")
def hardmax(call: Call, x: Tensor) -> Tensor:
    """One at the first of the largest along an axis, else zero."""
    axis = _axis(call)
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)
