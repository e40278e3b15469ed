"""How an accuracy is judged: the only place where evaluation data are opened.

Original and artifact see the same samples, so every figure of their difference is paired. The metric is
given with its sample count and 95 % interval, and fidelity always stands beside it. Which interval is
for what, and where it comes from, is said in ``edgeopt.intervals``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from edgeopt import intervals
from edgeopt.data.evaluation import Evaluation, unseal
from edgeopt.data.samples import Call, DataSamples
from edgeopt.errors import DataError
from edgeopt.evidence import Evidence
from edgeopt.fidelity import Fidelity
from edgeopt.harness import SINGLE, Harness
from edgeopt.host import distortion, isa
from edgeopt.judgement import Judgement, drop_evidence, metric_evidence, relative_drop_evidence
from edgeopt.metrics.base import Metric
from edgeopt.metrics.top1 import TopK
from edgeopt.passes._calibration_lint import unlike
from edgeopt.session import Session

Sessions = Session | Mapping[str, Session]
Progress = Callable[[Iterable[Any], str, int | None], Iterable[Any]]

INPUTS = 4
"""Calls whose inputs are compared with those of the calibration samples."""

__all__ = ["BATCH", "Judgement", "judge"]

BATCH = 16
"""Samples a call, where the model takes several."""

CALL_BYTES = 2**18
"""Inputs of a call stay below this where fewer samples can do that: a large image's activations take
hundreds of times the memory of the image itself."""


def judge(
    original: Sessions | None,
    artifact: Sessions,
    evaluation: Evaluation,
    metric: Metric | None = None,
    *,
    harness: Harness | None = None,
    limit: int | None = None,
    batch: int = BATCH,
    progress: Progress | None = None,
    where: str = "host",
    how: str = "measured",
    there: Mapping[str, Any] | None = None,
    digest: str = "",
    seed: int = 0,
    relative: bool = False,
    calibration: Iterable[Mapping[str, np.ndarray]] | None = None,
) -> Judgement:
    """Judges an artifact against its original, streamed, opening the evaluation data once.

    Args:
        original: The float original's session, or one per part; ``None`` to measure the metric alone.
        artifact: The artifact's.
        evaluation: The data.
        metric: The metric; without one fidelity alone is judged.
        harness: Runs the parts, where one call cannot be judged.
        limit: Use at most this many samples, evenly spread.
        batch: Samples a call at most, where the model takes several. Dynamic quantization computes ranges per
            call: judge such models with the batch that they will run with.
        progress: Wraps an iterable with a progress bar: (items, label, total).
        where: The machine that the artifact runs on.
        how: ``measured`` or ``emulated``.
        there: The conditions on that machine; the original always runs on the host.
        digest: The artifact's digest.
        seed: Of the bootstrap.
        relative: Determine the drop in % of the original too, for a budget in %.
        calibration: Calls that the artifact was calibrated on, for a note where they look unlike the data.

    Raises:
        DataError: Data, metric and outputs do not fit each other.
        RuntimeFailure: A runtime fails.
    """
    samples = unseal(evaluation).limited(limit)
    first = _by_part(original) if original is not None else None
    second = _by_part(artifact)
    tally = _Tally(metric)
    if harness is None:
        one = _single(first) if first is not None else None
        batch = _fitting(samples, batch)
        stream = _calls(one, _single(second), samples, batch, tally)
    else:
        stream = _items(first, second, samples, harness, tally)
    shown = stream if progress is None else progress(stream, "judge", len(samples))
    for _ in shown:
        pass
    conditions: dict[str, Any] = {
        "batch": batch if harness is None else None,
        **({"host": isa()} if there is None else there),
    }
    if harness is not None:
        conditions["harness"] = harness.name
    if limit is not None and len(samples) < len(evaluation):
        conditions["limit"] = f"{len(samples)} of {len(evaluation)}"
    notes = [] if calibration is None else list(unlike(calibration, tally.inputs, "evaluation"))
    distorted = distortion() if where == "host" else None
    if distorted is not None:
        conditions["distorts"] = distorted
        notes.append(distorted)
    threads = getattr(next(iter(second.values())), "threads", None)
    if threads is not None:
        conditions["threads"] = threads
    stamp = Evidence(
        quantity="",
        value=0.0,
        unit="",
        how="emulated" if how == "emulated" else "measured",
        where=where,
        n=len(samples),
        runtime=getattr(next(iter(second.values())), "runtime", ""),
        conditions={key: value for key, value in conditions.items() if value is not None},
        artifact=digest,
    )
    here: dict[str, Any] = {}
    if first is not None and where != "host":
        shared = {key: value for key, value in stamp.conditions.items() if key not in (there or {})}
        runtime = getattr(next(iter(first.values())), "runtime", "")
        here = {
            "how": "measured",
            "where": "host",
            "runtime": runtime,
            "conditions": {**shared, "host": isa()},
        }
    return replace(tally.judgement(stamp, seed, relative, here), notes=tuple(notes))


class _Tally:
    """Collects records, energies and agreements, sample by sample."""

    def __init__(self, metric: Metric | None) -> None:
        self.metric = metric
        self.original: list[Any] = []
        self.artifact: list[Any] = []
        self.fidelity = Fidelity()
        self.agreements: list[bool] = []
        self.inputs: list[Mapping[str, np.ndarray]] = []

    def add(
        self, expected: Mapping[str, Any] | None, actual: Mapping[str, Any], sample: Mapping[str, Any]
    ) -> None:
        """Adds one sample's outputs to the metric."""
        if self.metric is not None:
            if expected is not None:
                self.original.append(self.metric.record(expected, sample))
            self.artifact.append(self.metric.record(actual, sample))
        if expected is not None:
            pair = self._classes(expected), self._classes(actual)
            if pair[0] is not None and pair[1] is not None and pair[0].shape == pair[1].shape:
                self.agreements.append(bool(pair[0].argmax() == pair[1].argmax()))

    def _classes(self, outputs: Mapping[str, Any]) -> np.ndarray | None:
        """The scores of classes among the outputs, where there are some."""
        if isinstance(self.metric, TopK):
            return self.metric.select(outputs).squeeze()
        if len(outputs) != 1:
            return None
        name, value = next(iter(outputs.items()))
        scores = np.asarray(value).squeeze()
        known = any(word in name.lower() for word in ("logit", "prob", "class", "softmax"))
        return scores if known and scores.ndim == 1 and scores.dtype.kind == "f" else None

    def judgement(
        self, stamp: Evidence, seed: int, relative: bool, here: Mapping[str, Any] | None = None
    ) -> Judgement:
        """Turns what was collected into evidence; ``here`` says how the original's differs."""
        fidelity = self.fidelity.value
        found: dict[str, Evidence | None] = {
            "fidelity": None
            if fidelity is None
            else replace(
                stamp,
                quantity="fidelity",
                value=fidelity,
                unit="dB",
                interval=self.fidelity.interval(seed),
                detail={"per_output": self.fidelity.per_output},
            )
        }
        if self.agreements:
            same, n = sum(self.agreements), len(self.agreements)
            lower, upper = intervals.wilson(same, n)
            found["agreement"] = replace(
                stamp,
                quantity="agreement",
                value=100 * same / n,
                unit="%",
                interval=(100 * lower, 100 * upper),
                n=n,
            )
        if self.metric is not None:
            found["artifact"] = metric_evidence(self.metric, self.artifact, stamp, seed)
            if self.original:
                found["original"] = metric_evidence(
                    self.metric, self.original, replace(stamp, artifact="", **(here or {})), seed
                )
                absolute = drop_evidence(self.metric, self.original, self.artifact, stamp, seed)
                found["drop"] = found["absolute_drop"] = absolute
                if relative or self.metric.drop[1] == "%":
                    share = relative_drop_evidence(self.metric, self.original, self.artifact, stamp, seed)
                    found["relative_drop"] = share
                    if self.metric.drop[1] == "%":
                        found["drop"] = share or absolute
        return Judgement(**found)  # type: ignore[arg-type]  # the keys are those of its evidence


def _by_part(sessions: Sessions) -> Mapping[str, Session]:
    return {SINGLE: sessions} if isinstance(sessions, Session) else sessions


def _single(sessions: Mapping[str, Session]) -> Session:
    if len(sessions) != 1:
        raise DataError(
            f"a model of {len(sessions)} parts needs a harness to be judged: {', '.join(sessions)}",
            hint="harness: package.module:function",
        )
    return next(iter(sessions.values()))


def _fitting(samples: DataSamples, batch: int) -> int:
    """The samples of a call, so that its inputs stay below ``CALL_BYTES`` where that can be."""
    size = sum(array.nbytes for array in next(samples.feeds(), {}).values())
    return min(batch, max(1, CALL_BYTES // max(size, 1)))


def _calls(
    original: Session | None, artifact: Session, samples: DataSamples, batch: int, tally: _Tally
) -> Iterator[None]:
    """Runs both models call by call, the artifact's as many at once as it can; one item per sample."""
    ahead: deque[tuple[Call, Callable[[], dict[str, np.ndarray]]]] = deque()
    for call in samples.calls(batch):
        if len(tally.inputs) < INPUTS:
            tally.inputs.append(call.feeds)
        ahead.append((call, artifact.submit(call.feeds)))
        if len(ahead) >= artifact.width:
            yield from _tallied(original, *ahead.popleft(), tally)
    for waiting in ahead:
        yield from _tallied(original, *waiting, tally)


def _tallied(
    original: Session | None, call: Call, answer: Callable[[], dict[str, np.ndarray]], tally: _Tally
) -> Iterator[None]:
    expected = original.run(call.feeds) if original is not None else None
    actual = answer()
    for position, sample in enumerate(call.samples):
        before = None if expected is None else _of_sample(expected, call, position)
        after = _of_sample(actual, call, position)
        if before is not None:
            tally.fidelity.add(before, after)
        tally.add(before, after, sample)
        yield


def _of_sample(outputs: Mapping[str, np.ndarray], call: Call, position: int) -> dict[str, np.ndarray]:
    """Cuts one sample's outputs out of a call's."""
    count = len(call.samples)
    if not call.joined:
        return dict(outputs)
    for name, value in outputs.items():
        if count > 1 and (value.ndim == 0 or value.shape[0] != count):
            raise DataError(
                f"a call with {count} samples gives the output {name!r} of shape {list(value.shape)}, "
                "which has no axis of samples",
                hint="judge it with a batch of 1",
            )
    return {
        name: value[position] if value.ndim and value.shape[0] == count else value
        for name, value in outputs.items()
    }


class _Shadow(Session):
    """Runs the original, and gives the same inputs to the artifact, to compare the two call by call.

    So fidelity does not mix errors of one part with those of another, or of one step with the next; the
    metric, on the artifact's own trajectory, does.
    """

    def __init__(self, part: str, original: Session, artifact: Session, tally: _Tally) -> None:
        self.inputs, self.outputs = original.inputs, original.outputs
        self._part, self._original, self._artifact, self._tally = part, original, artifact, tally
        self.sample = 0

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        expected = self._original.run(feeds)
        actual = self._artifact.run(feeds)
        prefix = "" if self._part == SINGLE else f"{self._part}/"
        self._tally.fidelity.add(
            {prefix + name: value for name, value in expected.items()},
            {prefix + name: value for name, value in actual.items()},
            sample=self.sample,
        )
        return expected


def _items(
    original: Mapping[str, Session] | None,
    artifact: Mapping[str, Session],
    samples: DataSamples,
    harness: Harness,
    tally: _Tally,
) -> Iterator[None]:
    """Runs the harness over both models side by side; one item per sample."""
    actual = harness.run(artifact, samples)
    if original is None:
        for after, sample in zip(actual, samples.items(), strict=True):
            tally.add(None, after, sample)
            yield
        return
    if set(original) != set(artifact):
        raise DataError(
            f"the original has the parts {', '.join(original)} and the artifact {', '.join(artifact)}"
        )
    shadows = {part: _Shadow(part, original[part], artifact[part], tally) for part in original}
    expected = harness.run(shadows, samples)
    for index, (before, after, sample) in enumerate(zip(expected, actual, samples.items(), strict=True), 1):
        tally.add(before, after, sample)
        for shadow in shadows.values():
            shadow.sample = index
        yield
