"""Which samples a pass sees when it asks for some of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgeopt.harness import RecordedCalls
from edgeopt.passes._calibration import Calls

sys.path.insert(0, str(Path(__file__).parent))

from networks import Rows


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
