"""The peak of a process's anonymous memory (RssAnon): what cannot be dropped; pages of mapped files can.

``python -m benchmarks.anonymous_memory COMMAND...`` runs ``edgeopt COMMAND...`` and prints, after what that
prints, its exit code, the peak in bytes, and its processor seconds.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import TracebackType

INTERVAL = 0.01
"""Seconds between two looks."""


class Watch:
    """Looks at this process's anonymous memory while it is open.

    Attributes:
        peak: The largest figure seen, in bytes.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._done.wait(INTERVAL):
            lines = Path("/proc/self/status").read_text().splitlines()
            held = next(line for line in lines if line.startswith("RssAnon"))
            self.peak = max(self.peak, int(held.split()[1]) * 1024)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()


def main(arguments: list[str]) -> None:
    """Runs one command of edgeopt."""
    with Watch() as watch:
        from edgeopt.cli import call

        code = call(arguments)
    print(code, watch.peak, time.process_time())


if __name__ == "__main__":
    main(sys.argv[1:])
