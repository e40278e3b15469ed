"""Sessions over several emulated processes: evaluation takes as many cores as there are."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from edgeopt.data.seeded import SeededSamples
from edgeopt.errors import EdgeoptError
from edgeopt.runners.emulator.runner import Emulator
from edgeopt.session import Session

MEMORY = 800 << 20
"""Bytes that a process with a runtime takes at most, without large models."""

LIMIT = 16
"""Processes at most."""

START = 15.0
"""Seconds that one more process takes to start: work below that is not worth one."""


class Pool:
    """Processes of one board; each but the first starts when there is work that no other is free for.

    Args:
        runner: The board, with one process.
        first: The sessions that it opened, by part.
        source: The model, which further processes open.
        processes: How many there may be.
    """

    def __init__(
        self, runner: Emulator, first: Mapping[str, Session], source: str | Path, processes: int
    ) -> None:
        self.processes = processes
        self._runner, self._source = runner, Path(source)
        self._threads = next(iter(getattr(session, "threads", 1) for session in first.values()))
        self._free: queue.SimpleQueue[Mapping[str, Session]] = queue.SimpleQueue()
        self._free.put(first)
        self._first = first
        self._others: list[Emulator] = []
        self._started = 1
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(processes)

    def run(self, part: str, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs one call of a part in a process that is free."""
        sessions = self._take()
        try:
            return sessions[part].run(feeds)
        finally:
            self._free.put(sessions)

    def submit(self, part: str, feeds: Mapping[str, np.ndarray]) -> Callable[[], dict[str, np.ndarray]]:
        """Begins a call as soon as a process is free."""
        future: Future[dict[str, np.ndarray]] = self._executor.submit(self.run, part, feeds)
        return future.result

    def _take(self) -> Mapping[str, Session]:
        with contextlib.suppress(queue.Empty):
            return self._free.get_nowait()
        with self._lock:
            more = self._started < self.processes
            self._started += more
        if not more:
            return self._free.get()
        try:
            other = Emulator.beside(self._runner)
            with self._lock:
                self._others.append(other)
            return other.open(self._source, threads=self._threads)
        except EdgeoptError:  # the others can do it alone; what ails them they will say
            return self._free.get()

    def close(self) -> None:
        """Ends the further processes, and the first one's sessions."""
        self._executor.shutdown(cancel_futures=True)
        for other in self._others:
            other.close()
        self._others = []
        for session in self._first.values():
            session.close()


class Spread(Session):
    """One part of a model, in as many processes as are free; calls from several threads run side by side."""

    def __init__(self, pool: Pool, part: str, first: Session) -> None:
        self.inputs, self.outputs = first.inputs, first.outputs
        self.runtime, self.threads = getattr(first, "runtime", ""), getattr(first, "threads", 1)
        self._pool, self._part = pool, part

    @property
    def width(self) -> int:
        """Calls that are handed out at once: one waits for every process."""
        return 2 * self._pool.processes

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs one call in a process that is free."""
        return self._pool.run(self._part, feeds)

    def submit(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], dict[str, np.ndarray]]:
        """Begins a call as soon as a process is free."""
        return self._pool.submit(self._part, feeds)

    def close(self) -> None:
        """Ends all processes but the board's own."""
        self._pool.close()


def spread(
    runner: Emulator, sessions: Mapping[str, Session], source: str | Path, processes: int
) -> dict[str, Session]:
    """The same sessions, by part, over several processes."""
    pool = Pool(runner, sessions, source, processes)
    return {part: Spread(pool, part, session) for part, session in sessions.items()}


def processes(wanted: int | None = None) -> int:
    """How many processes this machine can hold: one a core, as far as memory goes."""
    if wanted is not None:
        return max(1, wanted)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(cores, int(free // MEMORY), LIMIT))


def seconds_per_call(session: Session) -> float | None:
    """How long a call takes here, tried on seeded inputs; ``None`` where none can be drawn.

    It is this machine's time under emulation, for an estimate of how long an evaluation will take; it says
    nothing of a device.
    """
    try:
        feeds = next(SeededSamples(session.inputs, 1).feeds())
        session.run(feeds)
        started = time.monotonic()
        session.run(feeds)
    except EdgeoptError:
        return None
    return time.monotonic() - started


def said(samples: int, seconds: float, count: int) -> str:
    """What a user is told before an evaluation begins."""
    total = samples * seconds / count + START * (count > 1)
    duration = f"{total / 60:.0f} minutes" if total >= 90 else f"{total:.0f} s"
    several = f" in {count} processes" if count > 1 else ""
    return f"{samples} samples, emulated at about {seconds:.2g} s each{several}: about {duration}"
