"""How a latency is measured honestly.

Candidates are warmed up until their times are steady, then timed in short blocks, interleaved, in an
order drawn anew for every round, so that whatever else the machine does hits all of them alike. The
baseline takes part twice: how far it seems to be from itself is the noise floor, below which no
difference is believed. Intervals are bootstrapped over rounds, since calls within a block are not
independent; ratios are taken round by round, and their interval has room for what opening the same model
anew would change.

It works on callables, so one call may run on this host or on a board at the end of a wire. A board times
its blocks itself (``Remote``), so that the wire has no part in the figures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from edgeopt import intervals
from edgeopt.evidence import Evidence

Call = Callable[[], Any]
Verdict = Literal["faster", "slower", "inconclusive"]
Progress = Callable[[Iterable[Any], str, int | None], Iterable[Any]]


@runtime_checkable
class Remote(Protocol):
    """A candidate that is timed where it runs."""

    def __call__(self) -> Any:
        """Makes one call."""

    def time(self, count: int) -> list[float]:
        """Makes so many calls over there and returns what each took, in seconds."""
        ...


RUNS = (40, 2000)
"""Timed calls a candidate: at least, where ``SECONDS`` allow it, and at most."""
ROUNDS = 20
"""Blocks that they are timed in."""
SECONDS = 5.0
"""About how long all timed calls together take, unless the number of runs is given."""
WARM_UP = 3.0
"""Seconds after which the warm-up of a candidate ends, steady or not."""
STEADY = 0.03
"""Two windows of the warm-up are steady when their medians differ by at most this share."""
SESSIONS = 0.01
"""What opening a model anew changes, as half a 95 % interval of the ratio: its memory lies elsewhere
(``benchmarks/verdicts.py``: 0.992 to 1.012 in 120 benchmarks of a model against itself). Rounds within one
benchmark cannot see it."""
DRIFT = 0.1
"""The baseline's share of change between the first and last quarter that is worth a note."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The times of one candidate.

    Attributes:
        median: In seconds.
        interval: The median's 95 % interval.
        percentiles: p50, p90 and p99, in seconds.
        runs: The number of timed calls.
        warm_up: Calls before it was steady.
        steady: Whether it became steady at all.
    """

    median: float
    interval: tuple[float, float] | None
    percentiles: Mapping[str, float]
    runs: int
    warm_up: int
    steady: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """One candidate's time over the baseline's.

    Attributes:
        ratio: Below 1 is faster.
        interval: Its 95 % interval, over rounds and over sessions of the same models.
        verdict: Faster or slower only where the interval lies beyond the noise floor.
    """

    ratio: float
    interval: tuple[float, float]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Result:
    """What a benchmark found.

    Attributes:
        timings: By candidate.
        comparisons: By candidate, the baseline aside; empty where there is no baseline.
        noise: How far the baseline seems to be from itself: 0.02 means 2 %.
        notes: Sentences: not steady, drifting.
    """

    timings: Mapping[str, Timing]
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    noise: float | None = None
    notes: tuple[str, ...] = ()


def measure(
    candidates: Mapping[str, Call],
    baseline: str | None = None,
    *,
    runs: int | None = None,
    seconds: float = SECONDS,
    warm_up: float = WARM_UP,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress | None = None,
) -> Result:
    """Times candidates against each other.

    Args:
        candidates: Each makes one call when called.
        baseline: The candidate that the others are compared with.
        runs: Timed calls a candidate; by default what ``seconds`` allow, 2000 at most.
        seconds: About how long the timed calls of all candidates take.
        warm_up: Seconds after which a candidate's warm-up ends, steady or not.
        seed: Of the order and the bootstrap.
        clock: Gives seconds.
        progress: Wraps an iterable with a progress bar: (items, label, total).
    """
    warmed = {name: _warm(call, clock, warm_up) for name, call in candidates.items()}
    entries: list[tuple[str, Call]] = list(candidates.items())
    if baseline is not None:
        entries.append((_AGAIN, candidates[baseline]))
    a_round = sum(warm.seconds for warm in warmed.values())
    if baseline is not None:
        a_round += warmed[baseline].seconds
    if runs is None:
        runs = min(RUNS[1], int(seconds / max(a_round, 1e-9)))
        runs = max(runs, RUNS[0] if a_round * RUNS[0] < 3 * seconds else 5)
    rounds = min(ROUNDS, runs)
    block = math.ceil(runs / rounds)
    times: dict[str, list[list[float]]] = {name: [] for name, _ in entries}
    draw = np.random.default_rng(seed)
    steps: Iterable[int] = range(rounds)
    for _ in steps if progress is None else progress(steps, "benchmark", rounds):
        for position in draw.permutation(len(entries)):
            name, call = entries[position]
            times[name].append(_block(call, block, clock))
    medians = {name: np.array([np.median(row) for row in rows]) for name, rows in times.items()}
    timings = {
        name: _timing(np.asarray(times[name]), medians[name], warmed[name], seed) for name in candidates
    }
    notes = [
        f"{name} did not become steady within {warm_up:g} s: the machine may be busy"
        for name, warm in warmed.items()
        if not warm.steady
    ]
    if baseline is None:
        return Result(timings, notes=tuple(notes))
    drift = _drift(medians[baseline])
    if abs(drift) > DRIFT:
        notes.append(f"the baseline's time changed by {drift:+.0%} during the measurement")
    noise = _noise(medians[_AGAIN] / medians[baseline], seed)
    comparisons = {
        name: _compare(medians[name] / medians[baseline], noise, seed)
        for name in candidates
        if name != baseline
    }
    return Result(timings, comparisons, noise, tuple(notes))


_AGAIN = "\0baseline again"


@dataclass(frozen=True, slots=True)
class _Warm:
    calls: int
    steady: bool
    seconds: float


def _warm(call: Call, clock: Callable[[], float], limit: float) -> _Warm:
    """Calls until the medians of the last two windows agree: at least three windows of five calls."""
    start = clock()
    times: list[float] = []
    while True:
        times += _block(call, 5, clock)
        size = max(5, len(times) // 3)
        if len(times) >= 15:
            before, last = float(np.median(times[-2 * size : -size])), float(np.median(times[-size:]))
            if abs(before - last) <= STEADY * max(before, last):
                return _Warm(len(times), True, last)
        if clock() - start > limit:
            return _Warm(len(times), False, float(np.median(times[-size:])))


def _block(call: Call, count: int, clock: Callable[[], float]) -> list[float]:
    if isinstance(call, Remote):
        return call.time(count)
    times = []
    for _ in range(count):
        start = clock()
        call()
        times.append(clock() - start)
    return times


def _timing(times: np.ndarray, medians: np.ndarray, warm: _Warm, seed: int) -> Timing:
    flat = times.ravel()
    p50, p90, p99 = (float(value) for value in np.quantile(flat, (0.5, 0.9, 0.99)))

    def median(index: np.ndarray) -> float:
        return float(np.median(times[index]))

    return Timing(
        median=p50,
        interval=intervals.bootstrap(median, len(medians), seed=seed),
        percentiles={"p50": p50, "p90": p90, "p99": p99},
        runs=len(flat),
        warm_up=warm.calls,
        steady=warm.steady,
    )


def _ratio(ratios: np.ndarray, seed: int) -> tuple[float, tuple[float, float]]:
    """The median of ratios taken round by round, with its interval."""
    value = float(np.median(ratios))
    found = intervals.bootstrap(lambda index: float(np.median(ratios[index])), len(ratios), seed=seed)
    return value, found or (value, value)


def _noise(ratios: np.ndarray, seed: int) -> float:
    """How far the interval of the baseline over itself reaches from 1."""
    _, (lower, upper) = _ratio(ratios, seed)
    return max(abs(1 - lower), abs(upper - 1))


def _compare(ratios: np.ndarray, noise: float, seed: int) -> Comparison:
    value, (lower, upper) = _ratio(ratios, seed)
    lower = value - math.hypot(value - lower, value * SESSIONS)
    upper = value + math.hypot(upper - value, value * SESSIONS)
    verdict: Verdict = "inconclusive"
    if upper < 1 - noise:
        verdict = "faster"
    elif lower > 1 + noise:
        verdict = "slower"
    return Comparison(value, (lower, upper), verdict)


def _drift(medians: np.ndarray) -> float:
    quarter = max(1, len(medians) // 4)
    return float(np.median(medians[-quarter:]) / np.median(medians[:quarter])) - 1


def latency(timing: Timing, *, where: str, runtime: str, conditions: Mapping[str, Any]) -> Evidence:
    """Turns times into evidence; ``conditions`` say threads, batch and shapes."""
    note = {"note": "host, not device"} if where == "host" else {}
    return Evidence(
        quantity="latency",
        value=timing.median,
        unit="s",
        how="measured",
        where=where,
        interval=timing.interval,
        n=timing.runs,
        runtime=runtime,
        conditions={**conditions, **note},
        detail={**timing.percentiles, "warm_up": timing.warm_up, "steady": timing.steady},
    )
