"""Sessions and harnesses over several processes of one emulated board; the processes are played."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.data.sources import Sample
from edgeopt.errors import DataError, UnreachableError
from edgeopt.harness import Harness
from edgeopt.runners.emulator import sharing, spread
from edgeopt.session import Session, TensorSpec

SPEC = (TensorSpec("x", "float32", (1,)),)


class Process(Session):
    """Doubles its input; with a barrier it waits until so many processes are at work at once."""

    def __init__(self, barrier: threading.Barrier | None = None) -> None:
        self.inputs = self.outputs = SPEC
        self.calls, self.barrier, self.closed = 0, barrier, False

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.calls += 1
        if self.barrier is not None:
            self.barrier.wait(timeout=30)
        return {"x": 2 * feeds["x"]}

    def close(self) -> None:
        self.closed = True


class Board:
    """Starts processes; ``broken`` ones do not come up."""

    def __init__(self, barrier: threading.Barrier | None = None, broken: bool = False) -> None:
        self.barrier, self.broken = barrier, broken
        self.started: list[Process] = []

    def open(self, source: Path, *, threads: int = 1) -> dict[str, Session]:
        if self.broken:
            raise UnreachableError("no memory")
        self.started.append(Process(self.barrier))
        return {"model": self.started[-1]}

    def close(self) -> None:
        for process in self.started:
            process.close()


class Numbers:
    """Samples 0, 1, 2, ..."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def items(self, *, labels: bool = True) -> Iterator[Sample]:
        for number in range(self.count):
            yield {"x": np.float32([number])}


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    made = Board()
    monkeypatch.setattr(spread.Emulator, "beside", lambda other: made)
    monkeypatch.setattr(sharing, "START", 0.0)  # so that more processes always pay
    return made


def sessions(board: Board, processes: int, first: Process | None = None) -> dict[str, Session]:
    return spread.spread(board, {"model": first or Process(board.barrier)}, "model", processes)  # type: ignore[arg-type]


def run(
    function: Any, board: Board, count: int, processes: int = 3
) -> tuple[list[float], list[tuple[float, int]]]:
    told: list[tuple[float, int]] = []
    shared = sharing.SharedHarness(Harness(function), processes, lambda *said: told.append(said))
    found = [float(item["y"][0]) for item in shared.run(sessions(board, processes), Numbers(count))]  # type: ignore[arg-type]
    return found, told


def one_by_one(parts: Mapping[str, Session], samples: Iterator[Sample]) -> Iterator[dict[str, Any]]:
    for sample in samples:
        yield {"y": parts["model"].run(sample)["x"]}


def in_batches(parts: Mapping[str, Session], samples: Iterator[Sample]) -> Iterator[dict[str, Any]]:
    waiting: list[Sample] = []
    for sample in samples:
        waiting.append(sample)
        if len(waiting) == 3:
            yield from ({"y": parts["model"].run(item)["x"]} for item in waiting)
            waiting = []
    yield from ({"y": parts["model"].run(item)["x"]} for item in waiting)


def test_calls_run_in_several_processes_at_once(board: Board) -> None:
    board.barrier = threading.Barrier(2)
    (session,) = sessions(board, 2).values()
    answers = [session.submit({"x": np.float32([number])}) for number in range(6)]
    assert [float(answer()["x"][0]) for answer in answers] == [0, 2, 4, 6, 8, 10]
    assert len(board.started) == 1  # beside the first
    session.close()
    assert board.started[0].closed


def test_no_process_is_started_without_need(board: Board) -> None:
    (session,) = sessions(board, 4).values()
    for number in range(5):
        session.run({"x": np.float32([number])})
    assert not board.started


def test_a_process_that_does_not_start_is_done_without(board: Board) -> None:
    board.broken = True
    first = Process()
    (session,) = sessions(board, 2, first).values()
    answers = [session.submit({"x": np.float32([number])}) for number in range(6)]
    assert [float(answer()["x"][0]) for answer in answers] == [0, 2, 4, 6, 8, 10]
    assert first.calls == 6


@pytest.mark.parametrize("function", [one_by_one, in_batches])
@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_a_shared_harness_gives_what_it_gives_alone(board: Board, function: Any, count: int) -> None:
    found, told = run(function, board, count)
    assert found == [2.0 * number for number in range(count)]
    if count == 20:  # fewer may be done before there is anything to tell
        assert [threads for _, threads in told] == [3]


def test_threads_share_the_samples_out(board: Board) -> None:
    meeting = threading.Barrier(3)
    seen: set[int] = set()

    def meets(parts: Mapping[str, Session], samples: Iterator[Sample]) -> Iterator[dict[str, Any]]:
        for sample in samples:
            seen.add(threading.get_ident())
            if sample["x"][0] >= sharing.TRIED:
                meeting.wait(timeout=30)
            yield {"y": parts["model"].run(sample)["x"]}

    found, _ = run(meets, board, sharing.TRIED + 3)
    assert found == [2.0 * number for number in range(sharing.TRIED + 3)]
    assert len(seen) == 3


def test_what_goes_wrong_in_a_thread_is_said(board: Board) -> None:
    def fails(parts: Mapping[str, Session], samples: Iterator[Sample]) -> Iterator[dict[str, Any]]:
        for sample in samples:
            if sample["x"][0] == 7:
                raise ValueError("seven")
            yield {"y": parts["model"].run(sample)["x"]}

    with pytest.raises(DataError, match="ValueError: seven"):
        run(fails, board, 20)


def test_an_output_too_few_is_said(board: Board) -> None:
    def skips(parts: Mapping[str, Session], samples: Iterator[Sample]) -> Iterator[dict[str, Any]]:
        for sample in samples:
            if sample["x"][0] != 7:
                yield {"y": parts["model"].run(sample)["x"]}

    with pytest.raises(DataError, match="only"):
        run(skips, board, 20)


def test_a_harness_that_stops_early_is_said(board: Board) -> None:
    def stops(parts: Mapping[str, Session], samples: Iterator[Sample]) -> Iterator[dict[str, Any]]:
        yield {"y": parts["model"].run(next(samples))["x"]}

    with pytest.raises(DataError, match="yielded only 1 outputs for 20 samples"):
        run(stops, board, 20)


def test_sessions_of_the_host_run_as_ever(board: Board) -> None:
    told: list[Any] = []
    shared = sharing.SharedHarness(Harness(one_by_one), 3, lambda *said: told.append(said))
    assert len(list(shared.run({"model": Process()}, Numbers(5)))) == 5
    assert not told
