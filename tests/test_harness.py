from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeopt.data import DataSamples, DataSpec, open_data
from edgeopt.errors import DataError, UserError
from edgeopt.harness import Harness, record_calls
from edgeopt.session import Session, TensorSpec


class Step(Session):
    """state, x -> state + x: a model that carries state."""

    inputs = (TensorSpec("x", "float32", (1,)), TensorSpec("state", "float32", (1,)))
    outputs = (TensorSpec("next", "float32", (1,)),)

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain

    def run(self, feeds):
        return {"next": self.gain * (feeds["state"] + feeds["x"])}


def clips():
    return [{"clip": np.full(8, index, np.float32), "label": 8.0 * index} for index in range(10)]


def run(sessions, samples):
    for sample in samples:
        assert "label" not in sample
        state = np.zeros(1, np.float32)
        for value in sample["clip"]:
            state = sessions["step"].run({"x": value.reshape(1), "state": state})["next"]
        yield {"sum": state}


def lazy(sessions, samples):
    yield from list(run(sessions, samples))[:-1]


def wordy(sessions, samples):
    for _ in samples:
        yield 3


def misspelt(sessions, samples):
    for _ in samples:
        yield sessions["stop"].run({})


def idle(sessions, samples):
    for _ in samples:
        yield {}


@pytest.fixture
def samples() -> DataSamples:
    found = open_data(DataSpec.model_validate({"calibrate": f"{__name__}:clips"}), None).calibrate
    assert found is not None
    return found


def test_a_harness_runs_state_from_call_to_call_without_seeing_labels(samples: DataSamples) -> None:
    sums = [outputs["sum"][0] for outputs in Harness(run).run({"step": Step()}, samples)]
    assert sums == [8.0 * index for index in range(10)]


def test_calls_are_recorded_in_order(samples: DataSamples) -> None:
    calls = record_calls(Harness(run), {"step": Step()}, samples)["step"]
    assert len(calls) == 80
    recorded = list(calls.feeds(batch=8))
    assert [feeds["x"][0] for feeds in recorded] == [index // 8 for index in range(80)]
    assert [feeds["state"][0] for feeds in recorded[8:16]] == list(range(8))
    assert calls.labels is None
    assert calls.digest == record_calls(Harness(run), {"step": Step()}, samples)["step"].digest


def test_many_calls_are_thinned_evenly_and_deterministically(samples: DataSamples, tmp_path: Path) -> None:
    calls = record_calls(Harness(run), {"step": Step()}, samples, folder=tmp_path, limit=10)["step"]
    assert len(calls) == 10
    clip_of_call = [int(feeds["x"][0]) for feeds in calls.feeds()]
    assert clip_of_call == sorted(clip_of_call)
    assert len(set(clip_of_call)) >= 8, "spread over nearly all clips"


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lazy, "yielded only 9 outputs for 10 samples"),
        (wordy, "must yield a mapping of outputs a sample, not int"),
        (misspelt, "failed on sample 0: KeyError: 'stop'"),
    ],
)
def test_what_a_harness_does_wrong_is_a_sentence(samples: DataSamples, function, sentence) -> None:
    with pytest.raises(DataError, match=sentence):
        list(Harness(function).run({"step": Step()}, samples))


def test_a_part_that_is_never_called_is_an_error(samples: DataSamples) -> None:
    with pytest.raises(DataError, match="never calls the part 'step'"):
        record_calls(Harness(idle), {"step": Step()}, samples)


def test_loading_one() -> None:
    assert Harness.load(f"{__name__}:run").function is run
    with pytest.raises(UserError, match="is no harness"):
        Harness.load("run")
    with pytest.raises(UserError, match="--no-code"):
        Harness.load(f"{__name__}:run", code=False)
