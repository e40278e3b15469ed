"""Harnesses: what one call of a model cannot judge.

An encoder with a decoding loop, or state carried from call to call, is run by a user's function::

    def run(sessions, samples):
        for sample in samples:
            hidden = sessions["encoder"].run({"chars": sample["chars"]})["hidden"]
            ...
            yield {"phonemes": phonemes}

``sessions`` maps the parts of the model (``model`` where it is one file) to running sessions, ``samples``
is an iterator of mappings without labels, and the function yields one mapping of outputs per sample, in
order. It may read several samples before it yields, to run them in one call. One sample is one item of
the harness: a clip, a word, a pair of sentences.

Calibration data of every part are the calls that the harness makes on the float sessions.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgeopt import user_code
from edgeopt.data.samples import DataSamples
from edgeopt.data.sources import Sample, digest
from edgeopt.errors import DataError, EdgeoptError, UserError, nearest
from edgeopt.session import Session

Run = Callable[[Mapping[str, Session], Iterator[Sample]], Iterable[Mapping[str, Any]]]

SINGLE = "model"
"""The name of the part of a model that has no parts."""

CALLS = 256
"""Recorded calls per part, evenly spread over all of them."""


class Items(Protocol):
    """What a harness runs over: ``DataSamples``, or a share of them."""

    def __len__(self) -> int: ...

    def items(self, *, labels: bool = True) -> Iterator[Sample]:
        """Streams the samples."""


class Harness:
    """A user's function that runs a model's parts over samples.

    Attributes:
        name: ``package.module:function``, for messages.
    """

    def __init__(self, function: Run, name: str = "") -> None:
        self.function = function
        self.name = name or getattr(function, "__qualname__", "harness")

    @classmethod
    def load(cls, name: str, *, base: Path | None = None, code: bool = True) -> Harness:
        """Imports a harness.

        Raises:
            UserError: It is refused, cannot be imported or is no function.
        """
        if not user_code.is_code(name):
            raise UserError(f"{name!r} is no harness", hint="package.module:function")
        function = user_code.load(name, base=base, allowed=code)
        if not callable(function):
            raise UserError(f"{name!r} is no function and cannot be a harness")
        return cls(function, name)

    @property
    def digest(self) -> str:
        """SHA-256 of the source file that the function comes from."""
        return user_code.digest(self.function)

    def run(self, sessions: Mapping[str, Session], samples: Items) -> Iterator[Mapping[str, Any]]:
        """Runs the harness over samples, without their labels, and checks what it yields.

        Raises:
            DataError: It fails, yields something else than mappings, or not one per sample.
        """
        count = 0
        try:
            for count, outputs in enumerate(self.function(sessions, samples.items(labels=False)), 1):
                if not isinstance(outputs, Mapping):
                    raise DataError(
                        f"the harness {self.name} must yield a mapping of outputs a sample, "
                        f"not {type(outputs).__name__}"
                    )
                if count > len(samples):
                    break
                yield outputs
        except (EdgeoptError, GeneratorExit):
            raise
        except Exception as failure:
            detail = f"{type(failure).__name__}: {failure}"
            missing = failure.args[0] if isinstance(failure, KeyError) and failure.args else None
            raise DataError(
                f"the harness {self.name} failed on sample {count}: {detail}",
                nearest=nearest(str(missing), sessions) if missing is not None else (),
            ) from failure
        if count != len(samples):
            more = "more" if count > len(samples) else f"only {count}"
            raise DataError(f"the harness {self.name} yielded {more} outputs for {len(samples)} samples")


class RecordedCalls:
    """Calls of one part as a harness made them: ``Samples`` for passes, kept in files.

    Each call is one sample, whatever its batch.
    """

    labels: np.ndarray | None = None

    def __init__(self, files: Sequence[Path], holder: Any = None, digest: str | None = None) -> None:
        self.files = tuple(files)
        self._holder = holder  # keeps a temporary folder alive
        self._digest = digest

    def __len__(self) -> int:
        return len(self.files)

    def limited(self, limit: int | None) -> RecordedCalls:
        """Returns at most ``limit`` of the calls, evenly spread over all of them."""
        count = len(self.files)
        if limit is None or limit >= count:
            return self
        return RecordedCalls([self.files[number * count // limit] for number in range(limit)], self._holder)

    @property
    def digest(self) -> str:
        """SHA-256 of the calls, in order."""
        if self._digest is None:
            state = hashlib.sha256()
            for feeds in self.feeds():
                state.update(digest(feeds))
            self._digest = state.hexdigest()
        return self._digest

    def feeds(self, batch: int = 1) -> Iterator[dict[str, np.ndarray]]:
        """Streams the calls as they were made; ``batch`` changes nothing."""
        for path in self.files:
            with np.load(path, allow_pickle=False) as arrays:
                yield {name: arrays[name] for name in arrays.files}


class _Recorder(Session):
    """Passes calls on and keeps an even selection of them on disk.

    It keeps every k-th call; when twice the limit is reached, every other one is dropped and k doubles.
    So any number of calls leaves between one and two times the limit, thinned at the end.
    """

    def __init__(self, inner: Session, folder: Path, limit: int) -> None:
        self.inputs, self.outputs = inner.inputs, inner.outputs
        self._inner = inner
        self._folder = folder
        self._limit = limit
        self._step = 1
        self._calls = 0
        self._kept: list[Path] = []

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._calls % self._step == 0:
            if len(self._kept) == 2 * self._limit:
                for path in self._kept[1::2]:
                    path.unlink()
                self._kept = self._kept[::2]
                self._step *= 2
            if self._calls % self._step == 0:
                path = self._folder / f"{self._calls:09d}.npz"
                arrays: dict[str, Any] = {spec.name: np.asarray(feeds[spec.name]) for spec in self.inputs}
                np.savez(path, **arrays)
                self._kept.append(path)
        self._calls += 1
        return self._inner.run(feeds)

    def kept(self) -> list[Path]:
        """The files of at most ``limit`` calls, evenly spread."""
        count = len(self._kept)
        if count <= self._limit:
            return self._kept
        return [self._kept[position * count // self._limit] for position in range(self._limit)]


def record_calls(
    harness: Harness,
    sessions: Mapping[str, Session],
    samples: DataSamples,
    *,
    folder: Path | None = None,
    limit: int = CALLS,
) -> dict[str, RecordedCalls]:
    """Runs a harness on float sessions and records the inputs of every part.

    Args:
        harness: The harness.
        sessions: The float sessions, by part.
        samples: ``calibrate`` or ``validate``.
        folder: An existing folder for the calls; a temporary one by default, deleted with the result.
        limit: Calls kept per part, evenly spread over all that the harness makes.

    Raises:
        DataError: The harness fails, or never calls a part.
    """
    holder = tempfile.TemporaryDirectory(prefix="edgeopt-") if folder is None else None
    root = Path(holder.name) if holder is not None else folder
    recorders: dict[str, _Recorder] = {}
    for number, (part, session) in enumerate(sessions.items()):
        place = (root or Path()) / f"part-{number}"
        place.mkdir(exist_ok=True)
        recorders[part] = _Recorder(session, place, limit)
    for _ in harness.run(recorders, samples):
        pass
    for part, recorder in recorders.items():
        if not recorder.kept():
            raise DataError(f"the harness {harness.name} never calls the part {part!r}")
    return {part: RecordedCalls(recorder.kept(), holder) for part, recorder in recorders.items()}
