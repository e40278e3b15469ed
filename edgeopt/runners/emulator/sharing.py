"""A harness over several emulated processes: it runs once in each, and they share the samples out."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from edgeopt.data.sources import Sample
from edgeopt.errors import DataError
from edgeopt.harness import Harness, Items
from edgeopt.runners.emulator.spread import START, Spread
from edgeopt.session import Session

TRIED = 2
"""Items that are run before more processes are thought of; the first translates code, the last is timed."""


class SharedHarness(Harness):
    """A harness that runs in several threads, each with samples of its own, over sessions that stand it.

    A harness takes one sample for one item, so items do not depend on each other. One that reads several
    samples before it yields gets other ones together than it would alone. Sessions of other kinds, as those
    of the float original, run as ever.

    Args:
        harness: The user's.
        processes: In how many threads.
        tell: Told the seconds of one item, as soon as they are known, and in how many threads it goes on.
    """

    def __init__(self, harness: Harness, processes: int, tell: Callable[[float, int], None]) -> None:
        super().__init__(harness.function, harness.name)
        self._processes, self._tell = processes, tell

    def run(self, sessions: Mapping[str, Session], samples: Items) -> Iterator[Mapping[str, Any]]:
        """Runs the harness; see the base class. Outputs come in the order of the samples."""
        if not all(isinstance(session, Spread) for session in sessions.values()):
            yield from super().run(sessions, samples)
            return
        stream = _Stream(samples)
        found: queue.SimpleQueue[_Found] = queue.SimpleQueue()

        def work(first: bool) -> None:
            share = _Share(stream, found.put if first else None)
            try:
                if share.has_any():
                    for outputs in super(SharedHarness, self).run(sessions, share):
                        found.put((share.waiting.popleft(), outputs))
            except Exception as failure:  # raised again where the outputs are awaited
                found.put(failure)
            found.put(None)

        threading.Thread(target=work, args=[True], daemon=True).start()
        running, came = 1, 0
        outputs: dict[int, Mapping[str, Any]] = {}
        try:
            for index in range(len(samples)):
                while index not in outputs:
                    item = found.get()
                    if isinstance(item, Exception):
                        raise item
                    if isinstance(item, float):
                        more = self._processes - 1 if (len(samples) - came) * item > 2 * START else 0
                        self._tell(item, more + 1)
                        for _ in range(more):
                            threading.Thread(target=work, args=[False], daemon=True).start()
                        running += more
                    elif item is None:
                        running -= 1
                        if not running:
                            raise DataError(
                                f"the harness {self.name} yielded only {came} outputs "
                                f"for {len(samples)} samples"
                            )
                    else:
                        outputs[item[0]] = item[1]
                        came += 1
                yield outputs.pop(index)
        finally:
            stream.stop()


_Found = tuple[int, Mapping[str, Any]] | Exception | float | None
"""A position with its outputs, what went wrong, the seconds of one item, or the end of a thread."""


class _Stream:
    """The samples, given out one by one to whoever asks."""

    def __init__(self, samples: Items) -> None:
        self._items = enumerate(samples.items(labels=False))
        self._lock = threading.Lock()
        self._stopped = False

    def take(self) -> tuple[int, Sample] | None:
        with self._lock:
            return None if self._stopped else next(self._items, None)

    def stop(self) -> None:
        self._stopped = True


class _Share:
    """The samples of one thread, which are known only as they are taken.

    Args:
        stream: Where they come from.
        tell: Told once how many seconds an item takes.

    Attributes:
        waiting: The positions of those whose outputs are not there yet.
    """

    def __init__(self, stream: _Stream, tell: Callable[[float], None] | None = None) -> None:
        self.waiting: deque[int] = deque()
        self._stream, self._tell = stream, tell
        self._first: tuple[int, Sample] | None = None
        self._count, self._round, self._since = 0, 0, time.monotonic()

    def has_any(self) -> bool:
        """Takes the first one, so that no harness is started with nothing."""
        self._first = self._stream.take()
        return self._first is not None

    def __len__(self) -> int:
        return self._count

    def items(self, *, labels: bool = True) -> Iterator[Sample]:
        """Streams the samples, never with labels."""
        taken = self._first
        while taken is not None:
            self._count += 1
            self.waiting.append(taken[0])
            yield taken[1]
            if not self.waiting:
                self._end_round()
            taken = self._stream.take()

    def _end_round(self) -> None:
        """A harness has given the outputs of all samples that it took: so many at a time it runs."""
        if self._count >= TRIED and self._tell is not None:
            self._tell((time.monotonic() - self._since) / (self._count - self._round))
            self._tell = None
        self._round, self._since = self._count, time.monotonic()
