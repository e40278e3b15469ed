"""How much of a product's difficulty to move from its activations to its weights, group by group.

A group is a value x [..., channels] and the products x W + b that read it. For any s > 0 and z

    x W + b = ((x - z) / s) (diag(s) W) + (b + z W),

so the ranges of channels can be made alike, and centred, before they are quantized together. With a_k the
half width of channel k and w_k the largest of its weights,

    s_k = a_k^alpha / w_k^(1 - alpha)

is SmoothQuant (Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
Language Models, ICML 2023), and z, the middle of the channel's range, is the shift of Outlier Suppression+
(Wei et al., EMNLP 2023). Each group gets the alpha that leaves the least error in its own output, over a
sample of rows, with both operands quantized as the runtime wants.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeopt.graph.observers import channel_scales, parameters
from edgeopt.graph.quantization import QuantParams, dequantize_array, quantize_array
from edgeopt.passes._rows import Rows
from edgeopt.platform import QuantizationRules

ALPHAS = (0.5, 0.6, 0.7, 0.8)
"""Higher ones leave no slack for numbers that calibration has not seen."""

COLUMNS = 192
"""Columns of the weights by which alphas are compared, evenly spaced."""

GAIN = 0.5
"""dB in a group's output that a shift, or a smoothing that costs operators, must bring."""

SMALLEST = 1e-5
"""Channels below this share of the largest count as that share."""


@dataclass(frozen=True, slots=True)
class Smoothing:
    """A choice for one group.

    Attributes:
        alpha: The exponent.
        scale: s, float32 [channels].
        shift: z, float32 [channels], or ``None``.
        before: The signal-to-noise ratio of the group's output in dB without smoothing.
        after: The same with it.
    """

    alpha: float
    scale: np.ndarray
    shift: np.ndarray | None
    before: float
    after: float


def search(rows: Rows, weight: np.ndarray, rules: QuantizationRules, *, shift: bool) -> Smoothing | None:
    """Finds the smoothing of a group that leaves the least error in its output.

    Args:
        rows: What was seen of the value.
        weight: The weights of all its products side by side, float32 [channels, outputs].
        rules: How operands are quantized.
        shift: Shifts are tried as well.

    Returns:
        The best, or ``None`` where none is better than leaving the group alone.
    """
    largest = np.abs(weight).max(1)
    columns = weight[:, np.linspace(0, weight.shape[1] - 1, min(weight.shape[1], COLUMNS)).astype(np.int64)]
    trial = _Trial(rows, columns, rules)
    channels = weight.shape[0]
    before = trial.decibels(np.ones(channels, np.float32), None)
    best: Smoothing | None = None
    for middle in (None, ((rows.low + rows.high) / 2).astype(np.float32)) if shift else (None,):
        low, high = (rows.low, rows.high) if middle is None else (rows.low - middle, rows.high - middle)
        for alpha in ALPHAS:
            scale = _scale(np.maximum(-low, high), largest, alpha)
            after = trial.decibels(scale, middle)
            if after > (before if best is None else best.after) + (GAIN if middle is not None else 0.0):
                best = Smoothing(alpha, scale, middle, before, after)
    return best


def _scale(made: np.ndarray, read: np.ndarray, alpha: float) -> np.ndarray:
    if not made.max(initial=0.0) or not read.max(initial=0.0):
        return np.ones(len(made), np.float32)
    made = np.maximum(made, made.max() * SMALLEST).astype(np.float64)
    read = np.maximum(read, read.max() * SMALLEST).astype(np.float64)
    scale = made**alpha / read ** (1 - alpha)
    scale /= np.exp(np.log(scale).mean())  # what all share moves nothing
    return scale.astype(np.float32)


class _Trial:
    """Measures the error of a group's output in dB."""

    def __init__(self, rows: Rows, weight: np.ndarray, rules: QuantizationRules) -> None:
        self.rows, self.weight, self.rules = rows, weight, rules
        self.expected = rows.sample @ weight
        self.signal = float(np.square(self.expected, dtype=np.float64).sum())

    def decibels(self, scale: np.ndarray, shift: np.ndarray | None) -> float:
        rows, weight = self.rows, self.weight
        middle = np.zeros_like(scale) if shift is None else shift
        sample = (rows.sample - middle) / scale
        low = float(((rows.low - middle) / scale).min(initial=0.0))
        high = float(((rows.high - middle) / scale).max(initial=0.0))
        expected = self.expected if shift is None else self.expected - shift @ weight
        rounded = self._weight(weight * scale[:, None])
        rule = self.rules.activation
        params = parameters(low, high, ir.DataType[rule.dtype.upper()], rule.symmetric)
        noise = self._noise(sample, params, rounded, expected)
        return float(10 * np.log10(max(self.signal, 1e-30) / max(noise, 1e-30)))

    def _weight(self, weight: np.ndarray) -> np.ndarray:
        dtype = ir.DataType[self.rules.weight.dtype.upper()]
        axis = 1 if self.rules.weight.per_channel else None
        params = QuantParams(dtype, channel_scales(weight, axis, dtype), None, axis)
        return dequantize_array(quantize_array(weight, params), params)

    @staticmethod
    def _noise(sample: np.ndarray, params: QuantParams, weight: np.ndarray, expected: np.ndarray) -> float:
        rounded = dequantize_array(quantize_array(sample, params), params)
        return float(np.square(rounded @ weight - expected, dtype=np.float64).sum())
