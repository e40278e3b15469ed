"""Ranges around a leaky ReLU."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.observers import Observer, parameters
from edgeopt.graph.quantization import QuantParams, dequantize_array, quantize_array
from edgeopt.passes._leaky import around

SLOPE = 0.1


def seen(values: np.ndarray) -> Observer:
    observer = Observer()
    observer.see(values)
    return observer


def noise(values: np.ndarray, before: QuantParams, behind: QuantParams) -> float:
    passed = dequantize_array(quantize_array(values, before), before)
    passed = np.where(passed < 0, SLOPE * passed, passed).astype(np.float32)
    made = dequantize_array(quantize_array(passed, behind), behind)
    return float(np.square(made - np.where(values < 0, SLOPE * values, values)).mean())


def test_the_pair_does_less_damage_than_min_max_on_both_sides() -> None:
    values = np.random.default_rng(0).laplace(size=40_000).astype(np.float32)
    chosen = around(seen(values), SLOPE, ir.DataType.UINT8)
    assert chosen is not None
    low, high = float(values.min()), float(values.max())
    before = parameters(low, high, ir.DataType.UINT8)
    behind = parameters(SLOPE * low, high, ir.DataType.UINT8)
    assert noise(values, *chosen) < 0.8 * noise(values, before, behind)
    assert noise(values, *chosen) < 0.8 * noise(values, before, before)


def test_numbers_of_one_sign_leave_nothing_to_choose() -> None:
    assert around(seen(np.array([1.0, 2.0], np.float32)), SLOPE, ir.DataType.UINT8) is None
    assert around(Observer(), SLOPE, ir.DataType.UINT8) is None


def test_a_kernel_in_fixed_point_gets_scales_that_it_can_say() -> None:
    values = np.random.default_rng(1).laplace(size=40_000).astype(np.float32)
    chosen = around(seen(values), SLOPE, ir.DataType.INT8, 256)
    free = around(seen(values), SLOPE, ir.DataType.INT8)
    assert chosen is not None and free is not None
    before, behind = (float(params.scale) for params in chosen if params.scale is not None)
    k = 256 * before / behind
    assert abs(k - round(k)) < 1e-3
    assert abs(round(round(k) * SLOPE) / round(k) - SLOPE) < 0.01 * SLOPE
    assert noise(values, *chosen) < 1.2 * noise(values, *free)
