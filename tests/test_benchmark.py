"""A benchmark on a clock of our own: no test here depends on the machine's speed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeopt import footprint
from edgeopt.benchmark import latency, measure


class Clock:
    """Time passes only in calls."""

    def __init__(self) -> None:
        self.now = 0.0
        self.draw = np.random.default_rng(0)

    def __call__(self) -> float:
        return self.now

    def call(self, seconds: float, noise: float = 0.02, cold: int = 0, factor: float = 5.0):
        state = {"calls": 0}

        def run() -> None:
            state["calls"] += 1
            slow = factor if state["calls"] <= cold else 1.0
            self.now += seconds * slow * (1 + noise * abs(self.draw.standard_normal()))

        return run


def test_faster_slower_and_inconclusive() -> None:
    clock = Clock()
    calls = {
        "float": clock.call(1e-3),
        "half": clock.call(5e-4),
        "double": clock.call(2e-3),
        "same": clock.call(1e-3),
    }
    found = measure(calls, "float", runs=100, clock=clock)
    verdicts = {name: comparison.verdict for name, comparison in found.comparisons.items()}
    assert verdicts == {"half": "faster", "double": "slower", "same": "inconclusive"}
    lower, upper = found.comparisons["half"].interval
    assert lower <= 0.5 * 1.02 and upper >= 0.5 * 0.98
    assert found.noise is not None and 0 < found.noise < 0.02
    assert all(timing.runs == 100 and timing.steady for timing in found.timings.values())


def test_a_difference_below_the_noise_floor_is_not_believed() -> None:
    clock = Clock()
    calls = {"float": clock.call(1e-3, noise=0.5), "other": clock.call(0.98e-3, noise=0.5)}
    assert measure(calls, "float", runs=40, clock=clock).comparisons["other"].verdict == "inconclusive"


def test_a_difference_that_two_sessions_of_one_model_may_show_is_not_believed() -> None:
    clock = Clock()
    calls = {
        "baseline": clock.call(1e-3, noise=1e-4),
        "near": clock.call(1.006e-3, noise=1e-4),
        "far": clock.call(1.03e-3, noise=1e-4),
    }
    found = measure(calls, "baseline", runs=100, clock=clock)
    assert {name: item.verdict for name, item in found.comparisons.items()} == {
        "near": "inconclusive",
        "far": "slower",
    }


def test_cold_calls_are_left_out() -> None:
    clock = Clock()
    found = measure({"model": clock.call(1e-3, noise=0.001, cold=12)}, runs=40, clock=clock)
    assert found.timings["model"].percentiles["p99"] < 1.1e-3
    assert found.timings["model"].warm_up > 12
    assert found.comparisons == {} and found.noise is None


def test_what_never_gets_steady_is_said() -> None:
    clock = Clock()
    state = {"seconds": 1e-3}

    def slower_and_slower() -> None:
        state["seconds"] *= 1.02
        clock.now += state["seconds"]

    found = measure({"model": slower_and_slower}, "model", runs=20, clock=clock)
    assert not found.timings["model"].steady
    assert any("did not become steady" in note for note in found.notes)
    assert any("the baseline's time changed" in note for note in found.notes)


def test_a_slow_model_gets_fewer_runs() -> None:
    clock = Clock()
    found = measure({"model": clock.call(10.0)}, seconds=5, clock=clock)
    assert found.timings["model"].runs == 5


def test_host_evidence_says_that_it_is_no_device() -> None:
    clock = Clock()
    timing = measure({"model": clock.call(1e-3)}, runs=20, clock=clock).timings["model"]
    evidence = latency(timing, where="host", runtime="test", conditions={"threads": 1})
    assert evidence.how == "measured" and evidence.conditions["note"] == "host, not device"
    assert evidence.interval is not None and evidence.n == 20


def test_the_footprint_of_a_fresh_process_holds_the_weights(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((4096, 4096)).astype(np.float32)
    model = ir.from_onnx_text("""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[b, 4096] x, float[4096, 4096] w) => (float[b, 4096] y) { y = MatMul (x, w) }
    """)
    value = model.graph.inputs.pop()
    value.const_value = ir.tensor(weights, name="w")
    model.graph.register_initializer(value)
    ir.save(model, tmp_path / "m.onnx")
    found = footprint.measure(tmp_path / "m.onnx")
    assert found.peak - found.before > weights.nbytes
    assert found.load > 0 and found.first > 0
