"""One simplification tool in a process of its own, for ``beside_onnxsim.py``.

    python -m benchmarks.simplifier TOOL

It imports the tool and nothing else, says how many CPU seconds that took, and then simplifies, each in a
fork: a line ``["in.onnx", "out.onnx"]`` on stdin is answered by a line with CPU seconds and the peak of the
resident set, or why it failed. The peers are called by their Python functions, which is the least they do;
edgeopt is called as its command line is.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

TIMEOUT = 400
"""Seconds after which a tool is given up on one model."""


def onnxsim() -> Callable[[str, str], None]:
    """The first peer."""
    import onnx
    import onnxsim

    def run(source: str, out: str) -> None:
        simplified, _ = onnxsim.simplify(source)
        onnx.save(simplified, out)

    return run


def onnxslim() -> Callable[[str, str], None]:
    """The second peer."""
    import onnxslim
    import onnxslim.core
    import onnxslim.utils

    return lambda source, out: onnxslim.slim(source, out)


def edgeopt(*options: str) -> Callable[[str, str], None]:
    """edgeopt's own command."""
    from edgeopt.cli import call
    from edgeopt.optimization import STANDARD, exact_passes

    exact_passes(STANDARD)

    def run(source: str, out: str) -> None:
        if call(["optimize", source, "-o", out, *options]):
            raise RuntimeError("it ended with an error")

    return run


TOOLS: dict[str, Callable[[], Callable[[str, str], None]]] = {
    "onnxsim": onnxsim,
    "onnxslim": onnxslim,
    "edgeopt-off": lambda: edgeopt("--verify", "off"),
    "edgeopt": edgeopt,
}


def in_fork(run: Callable[[str, str], None], source: str, out: str) -> dict[str, Any]:
    """Simplifies one model in a child, so that no run profits from the one before."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        signal.alarm(TIMEOUT)
        start = time.process_time()
        try:
            run(source, out)
            used = time.process_time() - start
            row: dict[str, Any] = {
                "cpu": used,
                "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        except BaseException as failure:  # a tool may raise anything; that is its result here
            row = {"failed": f"{type(failure).__name__}: {str(failure)[:200]}"}
        with os.fdopen(writer, "w") as pipe:
            json.dump(row, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        text = lines.read()
    _, status = os.waitpid(child, 0)
    if not text:
        return {"failed": f"it ended with status {status} (a signal, or more than {TIMEOUT} s)"}
    found: dict[str, Any] = json.loads(text)
    return found


def main() -> None:
    """Serves until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what tools print is no answer
    run = TOOLS[sys.argv[1]]()
    answers.write(json.dumps({"imports": time.process_time()}) + "\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(in_fork(run, *json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
