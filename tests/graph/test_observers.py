"""Ranges come from all that was seen, and marks such as a mask's -3.4e38 set none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.graph.observers import BINS, Observer, channel_scales, observe, parameters
from edgeopt.graph.quantization import dequantize_array, quantize_array
from edgeopt.graph.thresholds import METHODS, Histogram, Method, entropy

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


def shapes(kind: str) -> list[np.ndarray]:
    """Calls of growing range: heavy tails, either sign, or none below zero."""
    random = np.random.default_rng(5)
    scales = [0.3, 1.0, 2.5, 0.7, 4.0, 1.0]
    parts = [random.standard_normal((4, 5000)) ** 3 * scale for scale in scales]
    if kind == "relu":
        parts = [np.maximum(part, 0) for part in parts]
    return [(part - 2 if kind == "shifted" else part).astype(np.float32) for part in parts]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
@pytest.mark.parametrize("kind", ["plain", "relu", "shifted"])
def test_streamed_ranges_are_those_of_all_data_at_once(kind: str, method: Method, symmetric: bool) -> None:
    streamed = Observer()
    for part in shapes(kind):
        streamed.see(part)
    everything = np.concatenate(shapes(kind))
    whole = Observer(origin=streamed.origin, width=streamed.width)  # entropy has no meaning without bins
    whole.see(everything)
    exact = whole.range(method, INT8, symmetric)
    if method == "percentile" and symmetric:
        bound = float(np.quantile(np.abs(everything), 0.9999))
        exact = (-bound, bound)
    elif method == "percentile":
        low, high = np.quantile(everything, [0.00005, 0.99995])
        exact = (min(float(low), 0.0), max(float(high), 0.0))
    np.testing.assert_allclose(streamed.range(method, INT8, symmetric), exact, atol=streamed.width * 1.01)


def test_bins_hold_every_number_whatever_the_order() -> None:
    random = np.random.default_rng(6)
    values = (random.standard_normal(100_000) * 3 + 1).astype(np.float32)
    observer = Observer()
    for part in np.array_split(values, [10, 500, 40_000]):
        observer.see(part)
    edges = observer.origin + np.arange(BINS + 1) * observer.width
    expected, _ = np.histogram(values.astype(np.float64), edges)
    assert observer.counts.sum() == len(values)
    assert np.abs(np.cumsum(observer.counts) - np.cumsum(expected)).max() <= 3  # rounding at the edges


def test_entropy_keeps_what_needs_no_clipping_and_clips_a_sparse_tail() -> None:
    even = Histogram(np.full(BINS, 100.0), -1.0, 2 / BINS)
    assert entropy(even, -1.0, 1.0, 256, False) == (-1.0, 1.0)
    random = np.random.default_rng(0)
    values = np.concatenate([random.standard_normal(200_000), [100.0, -60.0]]).astype(np.float32)
    observer = Observer()
    observer.see(values)
    low, high = observer.range("entropy", INT8)
    assert -60 < low < -2 and 2 < high < 50
    bound = observer.range("entropy", INT8, symmetric=True)
    assert bound[0] == -bound[1] and 2 < bound[1] < 50


def test_a_moving_average_forgets_a_lone_extreme() -> None:
    observer = Observer(histogram=False)
    for call in range(50):
        observer.see(np.array([-1.0, 10.0 if call == 5 else 2.0]))
    assert observer.range("min-max", INT8) == (-1.0, 10.0)
    low, high = observer.range("moving-average", INT8)
    assert low == -1.0 and 2 < high < 2.1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("values", [[0.0], [3.0], [-2.0], [3.0, 3.1], [1e-20, 2e-20], []])
def test_degenerate_values_have_a_range(method: Method, values: list[float]) -> None:
    observer = Observer()
    observer.see(np.array(values, np.float32))
    low, high = observer.range(method, INT8)
    assert min([*values, 0.0]) - 1e-6 <= low <= 0 <= high <= max([*values, 0.0]) + 1e-6
    assert parameters(low, high, INT8).scale is not None


def test_memory_does_not_grow_with_samples_or_their_shapes() -> None:
    x = ir.val("x", ir.DataType.FLOAT, ["n", "m"])
    node = ir.node("Relu", [x], name="relu")
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 21}, name="g")
    model = ir.Model(graph, ir_version=10)

    class Calls:
        def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
            for index in range(40):
                yield {"x": np.full((1 + index % 3, 10 + index), float(index), np.float32)}

    observers = observe(model, ["x", "y"], Calls())
    held = sum(item.counts.nbytes for item in observers.values())
    assert held == 2 * BINS * 8
    assert observers["y"].range("min-max", INT8) == (0.0, 39.0)
    assert observers["y"].counts.sum() == sum((1 + index % 3) * (10 + index) for index in range(40))
