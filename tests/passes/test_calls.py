"""Which samples a pass sees when it asks for some of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt import passes
from edgeopt.graph.execute import Executor
from edgeopt.graph.quantization import read
from edgeopt.harness import RecordedCalls
from edgeopt.passes import Context, Facets, Pass, _calibration
from edgeopt.passes._calibration import Calls, Reference

sys.path.insert(0, str(Path(__file__).parent))

from networks import Net, Rows, residual_net, rows


class Ordered(Rows):
    """Samples that can be read in part."""

    def limited(self, limit: int | None) -> Ordered:
        count = len(self.rows)
        if limit is None or limit >= count:
            return self
        return Ordered([self.rows[i * count // limit] for i in range(limit)])


def seen(calls: Iterator[dict[str, np.ndarray]]) -> list[float]:
    return [float(number) for feeds in calls for number in feeds["x"].reshape(-1)]


def ramp(count: int) -> list[dict[str, np.ndarray]]:
    return [{"x": np.full((1, 1), index, np.float32)} for index in range(count)]


def test_few_samples_come_from_all_over_the_data() -> None:
    assert seen(iter(Calls(Ordered(ramp(100)), 4, 10))) == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert seen(iter(Calls(Ordered(ramp(5)), 4, 10))) == [0, 1, 2, 3, 4]


def test_data_that_can_only_be_read_in_order_give_their_first_samples() -> None:
    assert seen(iter(Calls(Rows(ramp(100)), 4, 8))) == [0, 1, 2, 3, 4, 5, 6, 7]


def test_recorded_calls_come_from_all_over_the_recording(tmp_path: Path) -> None:
    files = [tmp_path / f"{index}.npz" for index in range(12)]
    for index, path in enumerate(files):
        np.savez(path, x=np.full((16, 1), index, np.float32))
    calls = list(Calls(RecordedCalls(files), 8, 24))  # each counts as the eight samples of a call
    assert [float(feeds["x"][0, 0]) for feeds in calls] == [0, 4, 8]


def test_recorded_calls_of_a_large_model_count_for_as_many_samples(tmp_path: Path) -> None:
    files = [tmp_path / f"{index}.npz" for index in range(12)]
    for index, path in enumerate(files):
        np.savez(path, x=np.full((16, 1), index, np.float32))
    assert len(list(Calls(RecordedCalls(files), 1, 24))) == 3  # memory allows one sample a call


def test_the_float_model_runs_once_for_several_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(["n", 4])
    model = net.model(net.add("MatMul", net.x, net.weight(4, 3)))
    ran: list[int] = []
    run = Executor.run

    def counted(self: Executor, *arguments: object, **options: object) -> dict[str, np.ndarray]:
        ran.append(1)
        return run(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Executor, "run", counted)
    reference = Reference(model, Calls(rows((4,), count=5), 1, 5))
    first = [(feeds["x"].copy(), outputs) for feeds, outputs in reference.pairs()]
    again = list(reference.pairs())
    assert len(ran) == 5
    for (x, outputs), (feeds, held) in zip(first, again, strict=True):
        np.testing.assert_array_equal(x, feeds["x"])
        np.testing.assert_array_equal(outputs["v0"], held["v0"])
    monkeypatch.setattr(_calibration, "BYTES_OF_OUTPUTS", 24)  # of two samples
    reference = Reference(model, Calls(rows((4,), count=5), 1, 5))
    assert [len(list(reference.pairs())) for _ in range(2)] == [5, 5]
    assert len(ran) == 15


def test_calibration_goes_in_batches_and_shows_how_many_have_gone_by(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, int | None, list[int]]] = []

    def bar(items: Iterable[Any], label: str, total: int | None) -> Iterator[Any]:
        sizes: list[int] = []
        shown.append((label, total, sizes))
        for item in items:
            sizes.append(len(item["x"]) if isinstance(item, dict) else 1)
            yield item

    found = []
    for most in (8, 1):
        monkeypatch.setattr(_calibration, "BATCH", most)
        model = residual_net()
        step = passes.make("static-int8", {"observer": "min-max"})
        assert isinstance(step, Pass)
        step.apply(model, Context(Facets(calibration=rows((3, 8, 8), 20)), show_progress=bar))
        found.append(read(model))
    assert ("calibration", 3, [8, 8, 4]) in shown
    assert ("calibration", 20, [1] * 20) in shown
    for one, other in zip(found[0].values(), found[1].values(), strict=True):
        assert one[0].scale is not None and other[0].scale is not None
        np.testing.assert_allclose(one[0].scale, other[0].scale, rtol=1e-5)
