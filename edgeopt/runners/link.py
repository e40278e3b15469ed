"""One connection to an agent: a process whose stdin and stdout carry frames.

A link is good until it is lost, and then it is thrown away; ``edgeopt.runners.connection`` makes the next.
Nothing here waits for ever: the agent answers pings while it computes, and a silence counts as a loss.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.errors import EdgeoptError
from edgeopt.runners import agent

BOOT = (
    "import sys;b=sys.stdin.buffer;s=b.read(int(b.readline()));"
    "exec(compile(s,'edgeopt-agent','exec'),{'__name__':'__main__'})"
)
"""What the board's Python is started with: it reads the agent's source from stdin and becomes it."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the other side may take, in seconds.

    Attributes:
        connect: To log in and start the agent.
        silence: Without any sign of life.
        answer: For one request, alive or not.
        ping: Between two signs of life.
        grace: How long the board keeps files after a lost connection.
        attempts: Connections lost in a row without progress before giving up.
        pause: Before the second attempt; doubled for every further one.
    """

    connect: float = 30.0
    silence: float = 30.0
    answer: float = 900.0
    ping: float = 5.0
    grace: float = 30.0
    attempts: int = 5
    pause: float = 0.5


class Lost(Exception):
    """The connection is gone.

    Args:
        reason: What was seen, as part of a sentence.
        code: How the client's process ended; ``None`` where it was still alive.
        errors: What it and the board said on stderr.
    """

    def __init__(self, reason: str, code: int | None = None, errors: str = "") -> None:
        super().__init__(reason)
        self.reason, self.code, self.errors = reason, code, errors


class Refused(EdgeoptError):
    """The agent refused a request; ``edgeopt.runners.refusals`` says it in a user's words."""

    def __init__(self, kind: str, message: str, details: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.kind, self.details = kind, dict(details)


class Link:
    """Starts a client such as ``ssh``, and the agent at its other end.

    Args:
        command: The client and its arguments; its remote command reads the agent's source on stdin.
        patience: How long things may take.

    Raises:
        Lost: No agent answers.
    """

    def __init__(self, command: Sequence[str], patience: Patience) -> None:
        self._patience = patience
        self._frames: queue.Queue[tuple[dict[str, Any], bytearray] | None] = queue.Queue()
        self._errors: deque[str] = deque(maxlen=40)
        self._writing = threading.Lock()
        self._stop = threading.Event()
        self._count = 0
        try:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "SSH_ASKPASS_REQUIRE": "never"},  # a jump host may ask too
                start_new_session=True,  # Ctrl-C is for us, and the clean end needs the connection
            )
        except OSError as failure:
            raise Lost(f"{command[0]} cannot be started: {failure.strerror}") from failure
        self._ready = threading.Event()
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._read, self._read_errors)
        ]
        for thread in self._threads:
            thread.start()
        try:
            self._greet()
        except BaseException:
            self.abandon()
            raise
        threading.Thread(target=self._beat, daemon=True).start()

    def _greet(self) -> None:
        source = Path(agent.__file__).read_bytes()
        with self._writing:
            self._write(b"%d\n" % len(source) + source)
        deadline = time.monotonic() + self._patience.connect
        while not self._ready.wait(0.05):
            if self.process.poll() is not None:
                self._threads[0].join(1)
                if not self._ready.is_set():
                    raise self._lost("the agent did not start")
            if time.monotonic() > deadline:
                raise self._lost(f"no answer within {self._patience.connect:g} s")

    def request(
        self, op: str, arrays: Sequence[np.ndarray] = (), *, patience: float | None = None, **fields: Any
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Makes a request and waits for its answer.

        Args:
            op: Its name.
            arrays: What its body holds.
            patience: Seconds to wait for the answer.
            fields: Further entries of its header.

        Raises:
            Lost: The connection is gone.
            Refused: The agent refuses.
        """
        packed = [np.asarray(array, order="C") for array in arrays]
        header = {**fields, "arrays": agent.describe(packed)} if packed else fields
        return self.send(op, header, tuple(array.reshape(-1).view("uint8") for array in packed), patience)

    def send(
        self, op: str, fields: Mapping[str, Any], pieces: tuple[Any, ...] = (), patience: float | None = None
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """As ``request``, with bytes for a body."""
        self._count += 1
        self._put({**fields, "id": self._count, "op": op}, pieces)
        deadline = time.monotonic() + (patience or self._patience.answer)
        while True:
            try:
                frame = self._frames.get(
                    timeout=min(self._patience.silence, max(0.01, deadline - time.monotonic()))
                )
            except queue.Empty:
                silent = f"it has been silent for {self._patience.silence:g} s"
                late = f"no answer within {patience or self._patience.answer:g} s"
                raise self._lost(late if time.monotonic() >= deadline else silent) from None
            if frame is None:
                raise self._lost("the connection was closed")
            header, body = frame
            if header.get("id") != self._count:
                if time.monotonic() >= deadline:
                    raise self._lost(f"no answer within {patience or self._patience.answer:g} s")
                continue
            if "error" in header:
                error = header["error"]
                raise Refused(error["kind"], error["message"], error.get("details", {}))
            return header, agent.arrays_of(header.get("arrays", []), body)

    def _put(self, header: dict[str, Any], pieces: tuple[Any, ...] = ()) -> None:
        with self._writing:
            for piece in agent.pack(header, pieces):
                self._write(piece)

    def _write(self, data: Any) -> None:
        """Writes all of it, as long as the other side keeps taking some."""
        assert self.process.stdin is not None
        try:
            number = self.process.stdin.fileno()
            os.set_blocking(number, False)
            view = memoryview(data)
            while len(view):
                if not select.select([], [number], [], self._patience.silence)[1]:
                    raise self._lost(f"it has taken nothing for {self._patience.silence:g} s")
                with contextlib.suppress(BlockingIOError):
                    view = view[os.write(number, view[: 1 << 18]) :]
        except (OSError, ValueError) as failure:
            raise self._lost("the connection was closed") from failure

    def _read(self) -> None:
        assert self.process.stdout is not None
        stream = self.process.stdout
        try:
            seen = b""
            while not seen.endswith(agent.READY):
                byte = stream.read(1)
                if not byte:
                    return
                seen = seen[-200:] + byte
            self._ready.set()
            while True:
                self._frames.put(agent.unpack(stream.read1))  # type: ignore[attr-defined]
        except (EOFError, agent.Broken, OSError, ValueError):
            return
        finally:
            self._frames.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self.process.stderr:
                self._errors.append(line.decode("utf-8", "replace").rstrip())

    def _beat(self) -> None:
        while not self._stop.wait(self._patience.ping):
            with contextlib.suppress(Lost):
                self._put({"op": "ping"})

    def _lost(self, reason: str) -> Lost:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0.5)
        if self.process.returncode is not None:
            self._threads[1].join(0.5)
        return Lost(reason, self.process.returncode, "\n".join(self._errors))

    def finish(self) -> bool:
        """Asks the agent to delete everything and end; whether it did."""
        try:
            self.send("bye", {}, patience=10.0)
            done = True
        except (Lost, Refused):
            done = False
        self.abandon()
        return done

    def abandon(self) -> None:
        """Closes the connection from this side, at once."""
        self._stop.set()
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        try:
            self.process.wait(0.5)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for thread in self._threads:
            thread.join(0.5)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None and not any(thread.is_alive() for thread in self._threads):
                stream.close()
