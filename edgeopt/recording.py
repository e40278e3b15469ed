"""The calls that a harness makes on the float model: recorded once, and kept in the store of steps."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from edgeopt import host
from edgeopt.data.samples import DataSamples
from edgeopt.errors import OutputError
from edgeopt.harness import CALLS, Harness, RecordedCalls, record_calls
from edgeopt.session import Session
from edgeopt.steps import Store, digest, tool_versions

KEPT = 2**28
"""Recorded calls above this many bytes are not kept for the next run."""


def recorded_calls(
    harness: Harness,
    open_originals: Callable[[], AbstractContextManager[Mapping[str, Session]]],
    originals: Sequence[str],
    samples: DataSamples,
    store: Store,
) -> dict[str, RecordedCalls]:
    """Returns the calls of every part over samples, from the store where they were recorded before.

    Args:
        harness: The harness.
        open_originals: Opens the float sessions, by part; called only where calls must be recorded.
        originals: The digests of the float parts.
        samples: ``calibrate`` or ``validate``.
        store: Where they are kept.

    Raises:
        DataError: The harness fails, or never calls a part.
        OutputError: The store cannot be written.
    """
    key = digest("calls", harness.digest, originals, samples.digest, CALLS, host.isa(), tool_versions())
    folder = store.folder / "calls" / key
    record = store.record(key)
    if record is not None:
        found = {
            part: RecordedCalls([folder / file for file in entry["files"]], digest=entry["digest"])
            for part, entry in record["parts"].items()
        }
        if all((folder / file).is_file() for entry in record["parts"].values() for file in entry["files"]):
            return found
    with open_originals() as sessions:
        calls = record_calls(harness, sessions, samples)
    files = {part: list(recorded.files) for part, recorded in calls.items()}
    if sum(path.stat().st_size for paths in files.values() for path in paths) > KEPT:
        return calls
    names = {part: [f"{number}-{path.name}" for path in files[part]] for number, part in enumerate(files)}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as temporary:
            fresh = Path(temporary) / "calls"
            fresh.mkdir()
            for part, paths in files.items():
                for path, name in zip(paths, names[part], strict=True):
                    shutil.copyfile(path, fresh / name)
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)
    except OSError as failure:
        if not folder.is_dir():  # unless another process has just put the same calls there
            raise OutputError(
                f"cannot write the store of steps: {failure.strerror or failure}",
                where=str(store.folder),
                hint="free space, or name another folder in EDGEOPT_CACHE",
            ) from failure
    parts = {part: {"files": names[part], "digest": calls[part].digest} for part in calls}
    store.keep(key, {"parts": parts})
    return calls
