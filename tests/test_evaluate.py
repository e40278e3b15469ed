from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeopt import budget, metrics
from edgeopt.data import DataSpec, Evaluation, open_data
from edgeopt.errors import DataError
from edgeopt.evaluate import Judgement, judge
from edgeopt.harness import Harness
from edgeopt.session import Session, TensorSpec

CLASSES = 5


class Classifier(Session):
    """Scores of classes, with noise on top."""

    inputs = (TensorSpec("x", "float32", ("batch", CLASSES)),)
    outputs = (TensorSpec("logits", "float32", ("batch", CLASSES)),)
    runtime = "test 1.0"
    threads = 1

    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise
        self.draw = np.random.default_rng(7)

    def run(self, feeds):
        noise = self.noise * self.draw.standard_normal(feeds["x"].shape)
        return {"logits": (feeds["x"] + noise).astype(np.float32)}


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((1000, CLASSES)).astype(np.float32)
    label = np.where(draw.random(1000) < 0.8, x.argmax(1), draw.integers(0, CLASSES, 1000))
    np.savez(tmp_path / "evaluation.npz", x=x, label=label)
    found = open_data(DataSpec(path=str(tmp_path)), Classifier.inputs, metrics.find("top1")).evaluate
    assert found is not None
    return found


def test_an_equal_artifact_drops_nothing_and_is_sure_of_it(evaluation: Evaluation) -> None:
    found = judge(Classifier(), Classifier(), evaluation, metrics.find("top1"), digest="abc")
    assert found.original is not None and found.artifact is not None and found.drop is not None
    assert found.fidelity is not None and found.agreement is not None
    assert found.artifact.value == found.original.value == pytest.approx(84, abs=3)
    assert found.artifact.unit == "%" and found.artifact.n == 1000 and found.artifact.artifact == "abc"
    lower, upper = found.drop.interval or (0, 0)
    assert found.drop.value == 0 and found.drop.unit == "pp"
    assert -0.5 < lower < 0 < upper < 0.5
    assert found.fidelity.value == 200 and found.agreement.value == 100
    verdicts = budget.judge_all([metrics.find("top1").default_budget()], found.evidence())
    assert [verdict.status for verdict in verdicts] == ["met"]


def test_a_noisy_artifact_drops_and_its_interval_is_paired(evaluation: Evaluation) -> None:
    found = judge(Classifier(), Classifier(0.3), evaluation, metrics.find("top1"))
    assert found.original is not None and found.artifact is not None and found.drop is not None
    assert found.fidelity is not None and found.agreement is not None
    assert found.drop.value == pytest.approx(found.original.value - found.artifact.value)
    assert found.drop.value > 3
    width = np.diff(found.drop.interval or (0, 0)).item()
    alone = np.diff(found.artifact.interval or (0, 0)).item()
    assert width < 1.3 * alone, "two independent intervals would be wider"
    assert found.fidelity.value == pytest.approx(-20 * np.log10(0.3), abs=0.5)
    assert found.agreement.value < 95
    detail = found.drop.detail
    assert found.drop.value == pytest.approx((detail["lost"] - detail["won"]) / 10)


def test_batches_change_nothing(evaluation: Evaluation) -> None:
    one, many = (
        judge(Classifier(), Classifier(), evaluation, metrics.find("top1"), batch=batch) for batch in (1, 64)
    )
    assert one.artifact is not None and many.artifact is not None
    assert one.artifact.value == many.artifact.value
    assert one.artifact.conditions["batch"] == 1


def test_a_limit_is_named_in_the_conditions(evaluation: Evaluation) -> None:
    found = judge(Classifier(), Classifier(), evaluation, metrics.find("top1"), limit=100)
    assert found.artifact is not None
    assert found.artifact.n == 100 and found.artifact.conditions["limit"] == "100 of 1000"


def test_without_an_original_only_the_metric_is_measured(evaluation: Evaluation) -> None:
    found = judge(None, Classifier(), evaluation, metrics.find("top1"))
    assert found.artifact is not None
    assert (found.original, found.drop, found.fidelity, found.agreement) == (None, None, None, None)


def test_a_judgement_survives_json(evaluation: Evaluation) -> None:
    found = judge(Classifier(), Classifier(0.1), evaluation, metrics.find("top1"), relative=True)
    again = Judgement.from_json(json.loads(json.dumps(found.to_json())))
    assert again.to_json() == found.to_json()
    assert again.evidence("%")["accuracy_drop"].unit == "%"
    assert again.evidence()["accuracy_drop"].unit == "pp"


def test_labels_that_the_outputs_do_not_know_are_an_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "evaluation.npz", x=np.zeros((3, CLASSES), np.float32), label=[0, 1, 9])
    data = open_data(DataSpec(path=str(tmp_path)), Classifier.inputs, metrics.find("top1"))
    assert data.evaluate is not None
    with pytest.raises(DataError, match="the label 9 is out of range: the model has 5 classes"):
        judge(None, Classifier(), data.evaluate, metrics.find("top1"))


def test_an_error_is_judged_relative_to_the_original(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((200, CLASSES)).astype(np.float32)
    np.savez(tmp_path / "evaluation.npz", x=x, label=x + 1)
    data = open_data(DataSpec(path=str(tmp_path)), Classifier.inputs, metrics.find("mae"))

    class Worse(Classifier):
        def run(self, feeds):
            return {"logits": feeds["x"] - 0.1}

    assert data.evaluate is not None
    found = judge(Classifier(), Worse(), data.evaluate, metrics.find("mae"))
    assert found.drop is not None and found.absolute_drop is not None
    assert found.drop.unit == "%" and found.drop.value == pytest.approx(10, abs=0.01)
    assert found.absolute_drop.value == pytest.approx(0.1, abs=1e-3)


def test_an_aggregate_is_resampled_in_pairs(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((300, 1)).astype(np.float32)
    np.savez(tmp_path / "evaluation.npz", x=x, label=x[:, 0] + 0.5 * draw.standard_normal(300))

    class Score(Classifier):
        inputs = (TensorSpec("x", "float32", ("batch", 1)),)

    metric = metrics.find("spearman")
    data = open_data(DataSpec(path=str(tmp_path)), Score.inputs, metric)
    assert data.evaluate is not None
    found = judge(Score(), Score(0.01), data.evaluate, metric)
    assert found.artifact is not None and found.drop is not None
    alone = np.diff(found.artifact.interval or (0, 0)).item()
    paired = np.diff(found.drop.interval or (0, 0)).item()
    assert 0 < paired < alone / 5


# ---- with a harness


class Step(Session):
    inputs = (TensorSpec("x", "float32", (1,)), TensorSpec("state", "float32", (1,)))
    outputs = (TensorSpec("next", "float32", (1,)),)

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain

    def run(self, feeds):
        return {"next": np.asarray(self.gain * (feeds["state"] + feeds["x"]), np.float32)}


def clips():
    draw = np.random.default_rng(0)
    found = [draw.random(8).astype(np.float32) for _ in range(30)]
    return [{"clip": clip, "label": float(clip.sum())} for clip in found]


def run(sessions, samples):
    for sample in samples:
        state = np.zeros(1, np.float32)
        for value in sample["clip"]:
            state = sessions["step"].run({"x": value.reshape(1), "state": state})["next"]
        yield {"sum": state}


def test_a_harness_is_judged_on_its_own_trajectory_and_its_calls_apart() -> None:
    metric = metrics.find("mae")
    data = open_data(DataSpec.model_validate({"evaluate": f"{__name__}:clips"}), None, metric)
    assert data.evaluate is not None
    found = judge({"step": Step()}, {"step": Step(0.99)}, data.evaluate, metric, harness=Harness(run))
    assert found.artifact is not None and found.original is not None and found.fidelity is not None
    assert found.original.value == pytest.approx(0, abs=1e-5)
    assert found.artifact.value > 0.1, "errors of eight steps add up"
    assert found.fidelity.value == pytest.approx(40, abs=0.01), "each call is 1 % off"
    assert list(found.fidelity.detail["per_output"]) == ["step/next"]
    assert data.evaluate.opened == 1


def test_parts_need_a_harness_and_must_match(evaluation: Evaluation) -> None:
    parts = {"a": Classifier(), "b": Classifier()}
    with pytest.raises(DataError, match="a model of 2 parts needs a harness"):
        judge(None, parts, evaluation)
    with pytest.raises(DataError, match="the original has the parts"):
        judge({"a": Classifier()}, parts, evaluation, harness=Harness(run))


class Images(Session):
    """Counts the samples of every call."""

    inputs = (TensorSpec("image", "float32", ("batch", 1, 256, 256)),)
    outputs = (TensorSpec("mean", "float32", ("batch", 1)),)

    def __init__(self) -> None:
        self.largest = 0

    def run(self, feeds):
        self.largest = max(self.largest, len(feeds["image"]))
        return {"mean": feeds["image"].mean((2, 3))}


def test_large_samples_are_judged_one_by_one_so_that_memory_stays_bounded(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "evaluation.npz", image=draw.random((5, 1, 256, 256), np.float32))
    evaluation = open_data(DataSpec(path=str(tmp_path)), Images.inputs).evaluate
    assert evaluation is not None
    session = Images()
    found = judge(Images(), session, evaluation)
    assert session.largest == 1
    assert found.fidelity is not None and found.fidelity.conditions["batch"] == 1
