"""Runs on a board over SSH with faults at random moments: does anything get lost, hang or stay behind?

    python -m benchmarks.ssh_faults --runs 100

A real OpenSSH server on 127.0.0.1 is the board. Every run sends a model of 3 MB, makes 40 calls whose
answers are known, times 5 blocks, and meets one to three faults: the agent, the server's end or the
client's end of the connection is killed, or the agent or the connection freezes for some seconds. A run
counts as good when all answers are right, each exactly once, all blocks are whole, it ends within its time,
and no process and no file is left.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "runners")]

import loopback  # noqa: E402

LIMIT = 120.0
"""Seconds after which a run counts as hanging."""
CALLS, BLOCKS, BLOCK = 40, 5, 4
PATIENCE = replace(loopback.QUICK, silence=4.0, attempts=10)
FAULTS = ("kill agent", "kill connection", "kill client", "freeze agent", "freeze connection")


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


def run(server: loopback.Server, model: Path) -> int:
    """One run; returns how often the connection was lost."""
    answered = 0
    with server.board(PATIENCE) as board:
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
        return board.losses


def main() -> int:
    """Makes the runs and prints what they lost."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--runs", type=int, default=100)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    draw = random.Random(chosen.seed)
    faults: Counter[str] = Counter()
    bad: list[str] = []
    losses, slowest = 0, 0.0
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        server = loopback.start(Path(folder) / "ssh")
        os.environ["EDGEOPT_SSH"] = server.client
        try:
            model = make_model(Path(folder))
            for number in range(chosen.runs):
                stop, met = threading.Event(), []
                injector = threading.Thread(target=inject, args=(server, draw, stop, met))
                started = time.monotonic()
                injector.start()
                try:
                    losses += run(server, model)
                except Exception as failure:  # whatever it is, it is what this script counts
                    bad.append(f"run {number} ({', '.join(met)}): {type(failure).__name__}: {failure}")
                took = time.monotonic() - started
                stop.set()
                injector.join()
                try:
                    server.wait_until_clean(40)
                except AssertionError as failure:
                    bad.append(f"run {number} ({', '.join(met)}): {failure}")
                    for process in server.agents():
                        loopback.kill(process)
                if took > LIMIT:
                    bad.append(f"run {number} ({', '.join(met)}): took {took:.0f} s")
                slowest = max(slowest, took)
                faults.update(met)
                if (number + 1) % 10 == 0:
                    print(f"{number + 1} runs, {sum(faults.values())} faults, {len(bad)} bad", flush=True)
        finally:
            server.stop()
    told = ", ".join(f"{count} x {fault}" for fault, count in faults.most_common())
    print(f"{chosen.runs} runs with {sum(faults.values())} faults ({told})")
    print(f"connections lost and taken up again: {losses}; slowest run {slowest:.1f} s")
    print(f"runs that lost an answer, hung or left something behind: {len(bad)}")
    for line in bad:
        print(" ", line)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
