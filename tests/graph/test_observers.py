"""Ranges come from all that was seen, and marks such as a mask's -3.4e38 set none."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.graph.observers import BINS, Observer, channel_scales, parameters
from edgeopt.graph.quantization import dequantize_array, quantize_array

INT8 = ir.DataType.INT8


def test_extremes_are_exact_over_many_calls() -> None:
    random = np.random.default_rng(0)
    arrays = [random.standard_normal((3, 50)) * scale for scale in (1, 10, 0.1, 100)]
    observer = Observer()
    for array in arrays:
        observer.see(array)
    everything = np.concatenate(arrays).astype(np.float32)
    assert observer.range("min-max", INT8) == (everything.min(), everything.max())
    assert observer.counts.sum() == everything.size
    assert len(observer.counts) == BINS


@pytest.mark.parametrize("mark", [-np.inf, np.inf, np.nan, -3.4e38])
def test_marks_set_no_range(mark: float) -> None:
    observer = Observer()
    observer.see(np.array([1.0, mark, -2.0]))
    assert observer.marks == 1
    assert observer.range("min-max", INT8) == (-2.0, 1.0)


def test_only_marks_give_an_empty_range() -> None:
    observer = Observer()
    observer.see(np.full(4, -np.inf))
    assert observer.range("mse", INT8) == (0.0, 0.0)


def test_a_constant_then_a_range_is_covered() -> None:
    observer = Observer()
    observer.see(np.full(10, 3.0))
    observer.see(np.array([-1.0, 5.0]))
    assert observer.range("min-max", INT8) == (-1.0, 5.0)
    assert observer.counts.sum() == 12


def test_mse_cuts_off_a_lone_outlier() -> None:
    values = np.random.default_rng(0).standard_normal(30000).astype(np.float32)
    values[0] = 7.0
    observer = Observer()
    observer.see(values)

    def error(method: str) -> float:
        params = parameters(*observer.range(method, INT8), INT8)  # type: ignore[arg-type]
        return float(np.square(dequantize_array(quantize_array(values, params), params) - values).sum())

    assert error("mse") < 0.95 * error("min-max")


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 3.0), (-3.0, -1.0), (0.0, 0.0)])
def test_zero_and_both_ends_are_representable(
    low: float, high: float, dtype: ir.DataType, symmetric: bool
) -> None:
    params = parameters(low, high, dtype, symmetric)
    assert params.scale is not None
    array = np.array([0.0, low, high], np.float32)
    result = dequantize_array(quantize_array(array, params), params)
    assert result[0] == 0
    np.testing.assert_allclose(result, array, atol=float(params.scale) * 0.51)


def test_a_dead_channel_has_a_usable_scale() -> None:
    weight = np.zeros((2, 3), np.float32)
    weight[1] = [1.27, -0.5, 0]
    np.testing.assert_allclose(channel_scales(weight, 0, INT8), [1.0, 0.01])
    np.testing.assert_allclose(channel_scales(weight, None, INT8), 0.01)


def test_negative_numbers_before_a_leaky_relu_may_be_cut() -> None:
    observer = Observer()
    observer.see(np.random.default_rng(0).standard_normal(4096).astype(np.float32) * 3)
    plain = observer.range("mse", ir.DataType.UINT8)
    leaky = observer.range("mse", ir.DataType.UINT8, slope=0.1)
    assert plain[0] < leaky[0] < 0
    assert leaky[1] > 0.9 * plain[1]
