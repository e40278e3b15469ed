"""Ranges come from all that was seen, and marks such as a mask's -3.4e38 set none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.graph import observers
from edgeopt.graph.observers import BINS, Observer, channel_scales, observe, parameters
from edgeopt.graph.quantization import dequantize_array, quantize_array
from edgeopt.graph.thresholds import METHODS, Histogram, Method, entropy, least_damage

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
    leaky = observer.range("mse", ir.DataType.UINT8, behind=lambda x: np.where(x < 0, 0.1 * x, x))
    assert plain[0] < leaky[0] < 0
    assert leaky[1] > 0.9 * plain[1]


@st.composite
def streams(draw: st.DrawFn) -> list[np.ndarray]:
    """Calls with heavy tails, lone outliers, zeros, an offset, and a scale that changes from call to call."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    freedom = draw(st.sampled_from([1.0, 1.5, 3.0, 30.0]))  # Cauchy's distribution has 1, Gauss' infinity
    relu, offset = draw(st.booleans()), draw(st.sampled_from([0.0, 0.0, 0.5, -3.0, 100.0]))
    parts = []
    for _ in range(draw(st.integers(1, 6))):
        size, scale = draw(st.sampled_from([1, 7, 500, 20_000])), 10.0 ** draw(st.floats(-3, 3))
        part = random.standard_t(freedom, size) * scale + offset
        if draw(st.booleans()):
            part[:] = part[0]
        parts.append(np.clip(np.maximum(part, 0) if relu else part, -1e12, 1e12).astype(np.float32))
    return parts


def second_run(parts: list[np.ndarray]) -> Histogram | None:
    """The histogram that is filled in double precision once the exact range is known."""
    numbers = np.concatenate(parts).astype(np.float64)
    low, high, width = numbers.min(), numbers.max(), 2.0**-100
    if low == high:
        return None
    while np.floor(high / width) - np.floor(low / width) >= BINS:
        width *= 2
    first = np.floor(low / width)
    counts = np.bincount((np.floor(numbers / width) - first).astype(np.intp)).astype(np.float64)
    return Histogram(counts, first * width, width)


def ranked(numbers: np.ndarray, share: Fraction) -> float:
    """The smallest number that so large a share of all does not exceed."""
    return float(np.sort(numbers)[max(math.ceil(share * numbers.size), 1) - 1])


@settings(max_examples=150, deadline=None)
@given(streams())
def test_streamed_histograms_are_those_of_a_second_run(parts: list[np.ndarray]) -> None:
    observer = Observer()
    for part in parts:
        observer.see(part)
    seen, exact = observer.seen(), second_run(parts)
    if exact is None:
        assert seen is None
        return
    assert seen is not None
    assert (seen.origin, seen.width) == (exact.origin, exact.width)
    np.testing.assert_array_equal(seen.counts, exact.counts)
    assert (observer.high - observer.low) / exact.width >= BINS / 2 - 1  # no coarser than that


@settings(max_examples=60, deadline=None)
@given(streams(), st.booleans(), st.sampled_from([99.0, 99.9, 99.99, 100.0]))
def test_streamed_thresholds_are_within_a_bin_of_the_exact_ones(
    parts: list[np.ndarray], symmetric: bool, share: float
) -> None:
    observer = Observer()
    for part in parts:
        observer.see(part)
    numbers, exact = np.concatenate(parts).astype(np.float64), second_run(parts)
    low, high = min(float(numbers.min()), 0.0), max(float(numbers.max()), 0.0)
    if exact is None:
        for method in METHODS:
            assert observer.range(method, INT8, symmetric, percentile=share) == (low, high)
        return
    cut = 1 - Fraction(str(share)) / 100
    bound = ranked(np.abs(numbers), 1 - cut)
    ends = (-bound, bound)
    if not symmetric:
        ends = min(ranked(numbers, cut / 2), 0.0), max(ranked(numbers, 1 - cut / 2), 0.0)
    wanted = {
        "percentile": ends,
        "entropy": entropy(exact, low, high, 256, symmetric),
        "mse": least_damage(exact, low, high, 256, symmetric),
    }
    for method, range_ in wanted.items():
        got = observer.range(method, INT8, symmetric, percentile=share)  # type: ignore[arg-type]
        np.testing.assert_allclose(got, range_, rtol=0, atol=exact.width, err_msg=method)


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


def test_large_values_are_tapped_in_stages_and_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    x = ir.val("x", ir.DataType.FLOAT, ["n", 4])
    value, nodes, constants = x, [], []
    for index in range(6):
        array = random.standard_normal((4, 4)).astype(np.float32)
        weight = ir.val(
            f"w{index}", ir.DataType.FLOAT, [4, 4], const_value=ir.tensor(array, name=f"w{index}")
        )
        constants.append(weight)
        # the input and the first result are read again at the end
        inputs = [value, weight] if index < 4 else [value, nodes[0].outputs[0] if index == 4 else x]
        nodes.append(ir.node("MatMul" if index < 4 else "Add", inputs, name=f"node{index}"))
        value = nodes[-1].outputs[0]
        value.name, value.type, value.shape = (
            f"v{index}",
            ir.TensorType(ir.DataType.FLOAT),
            ir.Shape(["n", 4]),
        )
    graph = ir.Graph([x], [value], nodes=nodes, initializers=constants, opset_imports={"": 21}, name="g")
    model = ir.Model(graph, ir_version=10)
    calls = [{"x": random.standard_normal((3, 4)).astype(np.float32)} for _ in range(3)]
    names = ["v5", "x", "v0", "v2", "v4"]

    def seen() -> dict[str, list[np.ndarray]]:
        found: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for name, array in observers.tapped(model, names, calls):
            found[name].append(array)
        return found

    whole = seen()
    stages: list[int] = []
    init = observers.Stages.__init__

    def counted(self: observers.Stages, model: ir.Model, groups: list[list[ir.Value]]) -> None:
        stages.append(len(groups))
        init(self, model, groups)

    monkeypatch.setattr(observers.Stages, "__init__", counted)
    for limit, count in ((3 * 16, 4), (2 * 3 * 16, 2)):
        monkeypatch.setattr(observers, "BYTES_PER_RUN", limit)
        for name, arrays in seen().items():
            assert len(arrays) == len(calls)
            for one, other in zip(arrays, whole[name], strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-6)
        assert stages[-1] == count
    value.type = None  # what is handed on must be known to be a tensor
    assert all(len(arrays) == len(calls) for arrays in seen().values())
    assert len(stages) == 2
