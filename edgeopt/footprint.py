"""What loading and running a model takes, seen in a fresh process: memory and time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt.errors import RuntimeFailure
from edgeopt.evidence import Evidence
from edgeopt.runners.base import Footprint

__all__ = ["Footprint", "measure", "peak_memory"]


def measure(
    model: Path, *, threads: int = 1, calls: int = 3, shapes: Mapping[str, Sequence[int]] | None = None
) -> Footprint:
    """Loads and runs a model or artifact in a fresh process of this Python and returns what it took.

    Raises:
        RuntimeFailure: The process fails.
    """
    request = json.dumps(
        {"model": os.fspath(model), "threads": threads, "calls": calls, "shapes": dict(shapes or {})}
    )
    done = subprocess.run(
        [sys.executable, "-c", "from edgeopt.footprint import report; report()"],
        input=request,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        raise RuntimeFailure(f"the process that measures memory fails: {lines[-1]}")
    return Footprint(**json.loads(done.stdout))


def report() -> None:
    """The fresh process: reads a request on stdin and writes what it took on stdout, as JSON."""
    from edgeopt.data.seeded import SeededSamples
    from edgeopt.runners.host import open_sessions

    request = json.load(sys.stdin)
    before = _resident("VmRSS")
    start = time.perf_counter()
    sessions = open_sessions(request["model"], threads=request["threads"])
    load = time.perf_counter() - start
    first = 0.0
    for session in sessions.values():
        own = {spec.name for spec in session.inputs}
        shapes = {name: shape for name, shape in request["shapes"].items() if name in own}
        feeds = next(SeededSamples(session.inputs, 1, shapes=shapes).feeds())
        start = time.perf_counter()
        session.run(feeds)
        first += time.perf_counter() - start
        for _ in range(request["calls"] - 1):
            session.run(feeds)
    found = {"peak": _resident("VmHWM"), "before": before, "load": load, "first": first}
    sys.stdout.write(json.dumps(found))


def _resident(key: str) -> int:
    """Resident memory now (VmRSS) or at its peak (VmHWM), in bytes.

    Linux's own counters belong to the program in memory; getrusage's peak is inherited from the process
    that started it, and serves only where there are no others.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_memory(found: Footprint, *, where: str, runtime: str, conditions: Mapping[str, Any]) -> Evidence:
    """Turns a footprint into evidence on the whole process's peak memory."""
    note = {"note": "host, not device"} if where == "host" else {}
    return Evidence(
        quantity="peak_memory",
        value=float(found.peak),
        unit="B",
        how="measured",
        where=where,
        n=1,
        runtime=runtime,
        conditions={**conditions, **note},
        detail={"before_load": found.before, "load_time": found.load, "first_call": found.first},
    )
