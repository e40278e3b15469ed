"""Recorded calls of a harness: kept in the store, made again where anything differs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt import recording
from edgeopt.data import DataSpec, open_data
from edgeopt.data.samples import DataSamples
from edgeopt.harness import Harness
from edgeopt.recording import recorded_calls
from edgeopt.session import Session, TensorSpec
from edgeopt.steps import Store


class Twice(Session):
    inputs = (TensorSpec("x", "float32", (3,)),)
    outputs = (TensorSpec("y", "float32", (3,)),)

    def run(self, feeds):
        return {"y": 2 * feeds["x"]}


def run(sessions: Any, samples: Any) -> Iterator[dict[str, np.ndarray]]:
    for sample in samples:
        first = sessions["one"].run({"x": sample["x"]})["y"]
        yield sessions["other"].run({"x": first})


@pytest.fixture
def samples(tmp_path: Path) -> DataSamples:
    np.savez(tmp_path / "calibration.npz", x=np.arange(24, dtype=np.float32).reshape(8, 3))
    found = open_data(DataSpec(path=str(tmp_path)), None).calibrate
    assert found is not None
    return found


class Originals:
    """Counts how often the float sessions are opened."""

    def __init__(self) -> None:
        self.opened = 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[dict[str, Session]]:
        self.opened += 1
        yield {"one": Twice(), "other": Twice()}


def test_calls_are_recorded_once(samples: DataSamples, tmp_path: Path) -> None:
    originals, store = Originals(), Store(tmp_path / "store")
    first = recorded_calls(Harness(run), originals, ["a", "b"], samples, store)
    again = recorded_calls(Harness(run), originals, ["a", "b"], samples, store)
    assert originals.opened == 1
    for part, scale in (("one", 1), ("other", 2)):
        assert first[part].digest == again[part].digest
        arrays = [feeds["x"] for feeds in again[part].feeds()]
        assert np.array_equal(arrays, scale * np.arange(24, dtype=np.float32).reshape(8, 3))


def test_another_model_other_samples_or_a_cleared_store_are_recorded_anew(
    samples: DataSamples, tmp_path: Path
) -> None:
    originals, store = Originals(), Store(tmp_path / "store")
    recorded_calls(Harness(run), originals, ["a", "b"], samples, store)
    recorded_calls(Harness(run), originals, ["a", "c"], samples, store)
    recorded_calls(Harness(run), originals, ["a", "b"], samples.limited(4), store)
    assert originals.opened == 3
    store.clear()
    assert store.size() == 0
    recorded_calls(Harness(run), originals, ["a", "b"], samples, store)
    assert originals.opened == 4


def test_large_recordings_are_not_kept(
    samples: DataSamples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "KEPT", 100)
    originals, store = Originals(), Store(tmp_path / "store")
    for _ in range(2):
        calls = recorded_calls(Harness(run), originals, ["a", "b"], samples, store)
        assert len(list(calls["one"].feeds())) == 8
    assert originals.opened == 2
    assert not (tmp_path / "store" / "calls").exists()
