"""Runs on a board over SSH with faults at random moments: does anything get lost, hang or stay behind?

    python -m benchmarks.ssh_faults --runs 100

A real OpenSSH server on 127.0.0.1 is the board. Every run sends a model of 3 MB, makes 40 calls whose
answers are known and times 5 blocks. Meanwhile it meets up to three faults: the agent, the server's end or
the client's end of the connection is killed, the agent or the connection freezes for some seconds, or the
connection is cut at a certain request, before or while its answer travels, often half-way through the file.

One run in four is on a board with a trouble of its own: the wrong key, a key that is taken away half-way, no
runtime, too little memory, a disk that fills up half-way through the file, or a clock that is a day slow. All
but the last must end in the sentence that names the trouble, and nothing else.

A run counts as good when all answers are right, each exactly once, all blocks are whole (or the sentence
came), it ends within its time, and no process and no file is left. It is the runner that is tried: a
stand-in of 30 lines for onnxruntime keeps a run cheap (``--real`` takes onnxruntime itself).
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "runners")]

import loopback  # noqa: E402

from edgeopt.errors import EdgeoptError  # noqa: E402
from edgeopt.runners.link import Link  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 120.0
"""Seconds after which a run counts as hanging."""
CALLS, BLOCKS, BLOCK = 40, 5, 4
PATIENCE = replace(loopback.QUICK, silence=4.0, attempts=10)
FAULTS = ("kill agent", "kill connection", "kill client", "freeze agent", "freeze connection")
TROUBLES = {
    "wrong key": "refuses the login",
    "key taken away": "refuses the login",
    "runtime missing": "is not installed for",
    "memory too small": "MB of memory free",
    "disk full half-way": "cannot write the file",
    "clock skew": None,
}
"""Troubles of a board, and the words in which a run must end; ``None`` where it must not."""

STAND_IN = """
import numpy
__version__ = "0"
class SessionOptions: pass
class Item:
    type, shape = "tensor(float)", ["batch", 1]
    def __init__(self, name): self.name = name
class InferenceSession:
    def __init__(self, path, *_, **__):
        with open(path, "rb") as file:
            if len(file.read()) < 3 << 20: raise RuntimeError("the model is not whole")
    def get_inputs(self): return [Item("x")]
    def get_outputs(self): return [Item("y")]
    def run(self, names, feeds): return [feeds["x"] + numpy.float32(1)]
"""
SITES = {
    "runtime missing": "import sys\nsys.modules['onnxruntime'] = None\n",
    "clock skew": "import time\n_now = time.time\ntime.time = lambda: _now() - 86400\n",
}
"""What the board's Python runs first."""


def make_model(folder: Path) -> Path:
    """A model of 3 MB that adds a constant."""
    model = ir.from_onnx_text("""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[batch, 1] x, float[1, 786432] w) => (float[batch, 1] y) {
          s = ReduceMax <keepdims = 0> (w)
          y = Add (x, s)
        }
    """)
    value = model.graph.inputs.pop()
    weights = np.random.default_rng(0).random((1, 786432), np.float32)
    weights[0, 0] = 1.0
    value.const_value = ir.tensor(weights, name="w")
    model.graph.register_initializer(value)
    ir.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def make_python(folder: Path, trouble: str | None, real: bool) -> Path:
    """A Python for the board with a trouble of its own."""
    place = folder / (trouble or "sound").replace(" ", "-")
    if not place.exists():
        (place / "root" / "proc").mkdir(parents=True)
        free = 0 if trouble == "memory too small" else 1 << 20
        (place / "root" / "proc" / "meminfo").write_text(f"MemTotal: {1 << 20} kB\nMemAvailable: {free} kB\n")
        (place / "sitecustomize.py").write_text(SITES.get(trouble or "", ""))
        if not real:
            (place / "onnxruntime.py").write_text(STAND_IN)
        limit = "ulimit -f 2048; " if trouble == "disk full half-way" else ""  # files of 1 or 2 MB at most
        given = f"PYTHONPATH={place} EDGEOPT_BOARD_ROOT={place / 'root'}"
        (place / "python").write_text(f'#!/bin/sh\n{limit}{given} exec {sys.executable} "$@"\n')
        (place / "python").chmod(0o755)
    return place / "python"


def inject(server: loopback.Server, draw: random.Random, stop: threading.Event, done: list[str]) -> None:
    """One to three faults, spread over the seconds that a run takes."""
    for _ in range(draw.randint(1, 3)):
        if stop.wait(draw.expovariate(1 / 0.7)):
            return
        fault = draw.choice(FAULTS)
        verb, _, whom = fault.partition(" ")
        found = {"agent": server.agents, "connection": server.connections, "client": server.clients}[whom]()
        if not found:
            continue
        done.append(fault)
        if verb == "kill":
            loopback.kill(draw.choice(found))
            continue
        for number in found:
            loopback.kill(number, signal.SIGSTOP)
        stop.wait(draw.uniform(0.5, 8.0))
        for number in found:
            loopback.kill(number, signal.SIGCONT)


@contextmanager
def cut(server: loopback.Server, draw: random.Random, done: list[str]) -> Iterator[None]:
    """Cuts the connection at one request in one run of three, often one of the first, which send the file."""
    whole, count = Link.send, itertools.count()
    at = draw.randint(0, draw.choice((8, 60))) if draw.random() < 1 / 3 else -1
    delay = draw.choice((0.0, draw.uniform(0.0, 0.004)))

    def end() -> None:
        for number in server.connections():
            loopback.kill(number)

    def send(self, *arguments, **named):  # type: ignore[no-untyped-def]
        if next(count) == at:
            done.append(f"cut at {arguments[0]}")
            if delay:
                threading.Timer(delay, end).start()
            else:
                end()
        return whole(self, *arguments, **named)

    Link.send = send  # type: ignore[method-assign]
    try:
        yield
    finally:
        Link.send = whole  # type: ignore[method-assign]


@contextmanager
def locked(server: loopback.Server, trouble: str | None, draw: random.Random) -> Iterator[None]:
    """A server that knows another key than the client's, from the start or from a moment on."""
    authorized = server.folder / "authorized"

    def lock() -> None:
        authorized.write_text((server.folder / "other.pub").read_text())
        for number in server.connections():
            loopback.kill(number)

    timer = threading.Timer(draw.uniform(0.2, 1.5), lock)
    if trouble == "wrong key":
        lock()
    elif trouble == "key taken away":
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join(10) if timer.ident else None
        authorized.write_text((server.folder / "user.pub").read_text())


def run(server: loopback.Server, model: Path, python: Path) -> tuple[int, list[str]]:
    """One run; returns how often the connection was lost, and the notes."""
    answered = 0
    with server.board(PATIENCE, python=python) as board:
        session = board.open(model)["model"]
        timer = board.timer(session, {"x": np.zeros((1, 1), np.float32)})
        for number in range(CALLS):
            value = np.full((1, 1), number, np.float32)
            answer = session.run({"x": value})["y"]
            if answer.shape != (1, 1) or answer[0, 0] != number + 1:
                raise AssertionError(f"call {number} was answered {answer.tolist()}")
            answered += 1
            if number % (CALLS // BLOCKS) == 0:
                times = timer.time(BLOCK)
                if len(times) != BLOCK or min(times) <= 0:
                    raise AssertionError(f"a block of {BLOCK} calls came back as {times}")
            time.sleep(0.02)
        if answered != CALLS:
            raise AssertionError(f"{answered} calls of {CALLS} were answered")
        return board.losses, board.notes


def judge(server: loopback.Server, model: Path, python: Path, trouble: str | None) -> tuple[int, str]:
    """One run on a board that may have a trouble; returns losses, and what is wrong with how it ended."""
    expected = TROUBLES.get(trouble or "")
    try:
        losses, notes = run(server, model, python)
    except EdgeoptError as error:
        good = expected is not None and expected in error.message
        return 0, "" if good else f"{type(error).__name__}: {error.message}"
    except Exception as failure:  # whatever it is, it is what this script counts
        return 0, f"{type(failure).__name__}: {failure}"
    if expected is not None and trouble != "key taken away":  # it may have been done before
        return losses, "it ended as if nothing were wrong"
    if trouble == "clock skew" and not any("behind this machine's" in note for note in notes):
        return losses, "the clock's skew was not noted"
    return losses, ""


@dataclass
class Tally:
    """What became of some runs."""

    runs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    losses: int = 0
    slowest: float = 0.0
    bad: list[str] = field(default_factory=list)


def work(runs: int, seed: int, real: bool) -> Tally:
    """Makes some runs, one after another, on a server of their own."""
    draw, tally = random.Random(seed), Tally()
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as text:
        folder = Path(text)
        server = loopback.start(folder / "ssh")
        os.environ["EDGEOPT_SSH"] = server.client
        try:
            model = make_model(folder)
            for number in range(runs):
                trouble = draw.choice(list(TROUBLES)) if draw.random() < 0.25 else None
                python = make_python(folder, trouble, real)
                stop, met = threading.Event(), []
                injector = threading.Thread(target=inject, args=(server, draw, stop, met))
                started = time.monotonic()
                injector.start()
                with locked(server, trouble, draw), cut(server, draw, met):
                    losses, wrong = judge(server, model, python, trouble)
                    took = time.monotonic() - started
                    stop.set()
                    injector.join()
                label = f"seed {seed} run {number} ({', '.join([*([trouble] if trouble else []), *met])})"
                if wrong:
                    tally.bad.append(f"{label}: {wrong}")
                try:
                    server.wait_until_clean(40)
                except AssertionError as failure:
                    tally.bad.append(f"{label}: {failure}")
                    for process in server.agents() + server.cleaners():
                        loopback.kill(process)
                if took > LIMIT:
                    tally.bad.append(f"{label}: took {took:.0f} s")
                tally.runs += 1
                tally.losses += losses
                tally.slowest = max(tally.slowest, took)
                tally.faults.update(met)
                tally.troubles.update([trouble] if trouble else [])
                if tally.runs % 25 == 0:
                    print(
                        f"seed {seed}: {tally.runs} runs, {tally.faults.total()} faults, "
                        f"{len(tally.bad)} bad",
                        flush=True,
                    )
        finally:
            server.stop()
    return tally


def main() -> int:
    """Makes the runs and prints what they lost."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--runs", type=int, default=100)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--jobs", type=int, default=1, help="servers at a time")
    options.add_argument("--real", action="store_true", help="onnxruntime itself")
    chosen = options.parse_args()
    shares = [len(range(job, chosen.runs, chosen.jobs)) for job in range(chosen.jobs)]
    seeds = [chosen.seed + job for job in range(chosen.jobs)]
    with ProcessPoolExecutor(chosen.jobs, get_context("spawn")) as pool:
        tallies = list(pool.map(work, shares, seeds, [chosen.real] * chosen.jobs))
    faults, troubles = Counter[str](), Counter[str]()
    for tally in tallies:
        faults.update(tally.faults)
        troubles.update(tally.troubles)
    runs = sum(tally.runs for tally in tallies)
    bad = [line for tally in tallies for line in tally.bad]
    print(f"{runs} runs with {faults.total()} faults ({_told(faults)})")
    print(f"boards with a trouble of their own: {troubles.total()} ({_told(troubles)})")
    lost = sum(tally.losses for tally in tallies)
    slowest = max(tally.slowest for tally in tallies)
    print(f"connections lost and taken up again: {lost}; slowest run {slowest:.1f} s")
    print(f"runs that lost an answer, hung, ended in other words or left something behind: {len(bad)}")
    for line in bad:
        print(" ", line)
    return 1 if bad else 0


def _told(counted: Counter[str]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in counted.most_common())


if __name__ == "__main__":
    sys.exit(main())
