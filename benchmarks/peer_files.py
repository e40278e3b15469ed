"""The peers' quantized files: made in the peers' own environments, or taken from where they are kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer_int8 import SETTINGS
from benchmarks.zoo.models import ENTRIES, open_entry
from edgeopt.harness import record_calls

SAMPLES = 256
"""Calibration samples at most."""

HOUR = 3600.0


def calibration(name: str, path: Path) -> None:
    """Writes the calibration calls of a model into an archive."""
    entry = ENTRIES[name]
    sessions = entry.sessions()
    data, _, harness = open_entry(entry, sessions)
    assert data.calibrate is not None
    part = next(iter(sessions))
    samples = record_calls(harness, sessions, data.calibrate)[part] if harness else data.calibrate
    calls = {
        f"{key}/{index}": array
        for index, feeds in enumerate(islice(samples.feeds(), SAMPLES))
        for key, array in feeds.items()
    }
    np.savez(path, **calls)  # type: ignore[arg-type, unused-ignore]


def theirs(name: str, setting: str, python: str, archive: Path, keep: Path) -> tuple[Path, dict[str, Any]]:
    """Quantizes with a peer in its own environment, or takes what is kept.

    What is kept is taken where model, calibration and setting are the same.

    Args:
        name: The model.
        setting: The peer's setting.
        python: The interpreter of its environment.
        archive: The calibration calls.
        keep: The folder where the file and its row are kept.

    Returns:
        The file, and the row: the peer's version, processor seconds and peak MB, or the reason under
        ``failed``.
    """
    out, kept = keep / f"{name}.{setting}.onnx", keep / f"{name}.{setting}.json"
    source = next(iter(ENTRIES[name].files().values()))
    given = {
        "calibration": digest(archive),
        "model": hashlib.sha256(source.read_bytes()).hexdigest(),
        "options": SETTINGS[setting],
    }
    if kept.is_file():
        row: dict[str, Any] = json.loads(kept.read_text())
        if all(row[key] == value for key, value in given.items()):
            return out, row
    out.unlink(missing_ok=True)
    script = Path(__file__).with_name("peer_int8.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as scratch:  # peers leave files beside them
        command = [python, str(script), setting, str(source), str(archive), f"{scratch}/out.onnx"]
        ran = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, cwd=scratch, timeout=HOUR
        )
        row = {"setting": setting, **given}
        if ran.returncode:
            row["failed"] = (ran.stderr.strip().splitlines() or ["?"])[-1][:100]
        else:
            row |= json.loads(ran.stdout.strip().splitlines()[-1])
            shutil.move(f"{scratch}/out.onnx", out)
            row["bytes"] = out.stat().st_size
    kept.write_text(json.dumps(row, indent=1))
    return out, row


def digest(archive: Path) -> str:
    """SHA-256 over the names, types, shapes and values of the calibration calls."""
    found = hashlib.sha256()
    with np.load(archive) as arrays:
        for key in arrays.files:
            array = arrays[key]
            found.update(f"{key} {array.dtype} {array.shape} ".encode())
            found.update(array.tobytes())
    return found.hexdigest()
