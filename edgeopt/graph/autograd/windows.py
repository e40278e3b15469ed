"""Sliding windows: where convolutions and pools take their pads from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F

from edgeopt.graph.autograd.operators import Call, Tensor


@dataclass(frozen=True, slots=True)
class Window:
    """A window that slides over the spatial axes.

    Attributes:
        kernel: Its sizes.
        strides: How far it moves.
        dilations: The distance of its taps.
        pads: How much is added before and after each axis.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: tuple[list[int], list[int]]

    @classmethod
    def of(cls, call: Call, kernel: list[int], sizes: Sequence[int]) -> Window:
        """Reads strides, dilations, pads and auto_pad of a node for inputs of these sizes."""
        rank = len(kernel)
        strides = call.integers("strides") or [1] * rank
        dilations = call.integers("dilations") or [1] * rank
        mode = call.text("auto_pad", "NOTSET")
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            total = [
                max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
                for size, stride, width, dilation in zip(sizes, strides, kernel, dilations, strict=True)
            ]
            half = [item // 2 for item in total]
            rest = [item - part for item, part in zip(total, half, strict=True)]
            return cls(kernel, strides, dilations, (half, rest) if mode == "SAME_UPPER" else (rest, half))
        pads = (call.integers("pads") if mode == "NOTSET" else None) or [0] * (2 * rank)
        return cls(kernel, strides, dilations, (pads[:rank], pads[rank:]))

    def missing(self, sizes: Sequence[int]) -> list[int]:
        """How much more is needed behind each axis for ``ceil_mode``: a last window begins within the
        input or its pads before, as torch and newer ONNX have it."""
        missing = []
        for size, stride, width, dilation, before, after in zip(
            sizes, self.strides, self.kernel, self.dilations, *self.pads, strict=True
        ):
            span = (width - 1) * dilation + 1
            count = -(-(size + before + after - span) // stride) + 1
            if (count - 1) * stride >= size + before:
                count -= 1
            missing.append(max((count - 1) * stride + span - size - before - after, 0))
        return missing


def pad(x: Tensor, begin: Sequence[int], end: Sequence[int], value: float = 0.0) -> Tensor:
    """Pads the last axes with a constant; negative pads cut off."""
    if not any(begin) and not any(end):
        return x
    pairs = [item for both in zip(reversed(begin), reversed(end), strict=True) for item in both]
    return F.pad(x, pairs, value=value)
