"""Which precision ships, by the work that an emulated core has with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edgeopt
from edgeopt import choosing, example
from edgeopt.artifact import open_artifact
from edgeopt.choosing import Comparison, choose, compare, compile_chosen, sentences, weigh
from edgeopt.cores import known_cores
from edgeopt.errors import UnreachableError
from edgeopt.evidence import Evidence
from edgeopt.job import Job, describe
from edgeopt.report import md
from edgeopt.runners.emulator.counts import CLASSES, Counts
from edgeopt.steps import Store

A53, A76 = known_cores()["cortex-a53"], known_cores()["cortex-a76"]
FEW = {"accesses": 10, "misses_1": 1, "misses_2": 0}
MANY = {"accesses": 90, "misses_1": 9, "misses_2": 3}


def counts(memory: dict[str, int] = FEW, **classes: int) -> Counts:
    return Counts({**dict.fromkeys(CLASSES, 0), **classes}, memory)


def test_a_core_with_dot_products_takes_less_for_the_same_products() -> None:
    products = counts(dot=100)
    assert weigh(products, A76)["vector"] == pytest.approx(100 * 16 / A76.macs["int8"])
    assert weigh(counts(fmla=100), A76)["vector"] == pytest.approx(100 * 4 / A76.macs["float32"])
    assert weigh(counts(mla=100), A53)["vector"] == pytest.approx(100)
    assert "memory" not in weigh(counts({}, int=1), A53)


def test_only_what_holds_by_every_weighing_is_concluded() -> None:
    small, large = counts(FEW, fmla=10), counts(MANY, fmla=100)
    assert compare(small, large, A53).conclusion == "less work"
    assert compare(large, small, A53).conclusion == "more work"
    mixed = counts(MANY, fmla=10)
    assert compare(mixed, counts(FEW, fmla=100), A53).conclusion == "not decided"
    assert compare(small, small, A53).conclusion == "not decided"


def test_the_plan_is_kept_unless_another_is_less_work() -> None:
    slow, fast = counts(MANY, mla=100), counts(FEW, fmla=10)
    unsure = counts(MANY, fmla=1)
    assert choose("static-int8", {"static-int8": slow, "float32": fast, "float16": unsure}, A53) == "float32"
    assert choose("static-int8", {"static-int8": fast, "float32": slow}, A53) == "static-int8"
    assert (
        choose("static-int8", {"static-int8": counts(FEW, fmla=10), "float32": unsure}, A53) == "static-int8"
    )


def test_it_says_what_it_concludes_and_how_sure_it_is() -> None:
    found = {
        "static-int8": Comparison({"instructions": 0.4, "memory": 0.6}),
        "float16": Comparison({"a": 1.0}),
    }
    first, second = sentences("static-int8", "static-int8", found, "cortex-a72")
    assert "0.40 to 0.60 of float32's work on an emulated cortex-a72" in first
    assert "very likely faster" in first
    assert "decides nothing" in second
    assert (
        "float32 ships instead of static-int8" in sentences("static-int8", "float32", found, "cortex-a72")[-1]
    )


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setenv("EDGEOPT_EMULATOR", str(tmp_path / "none"))
    data = {"path": str(example.DATA), "metric": example.METRIC}
    return describe(example.MODEL, device="raspberry-pi-4", data=data, output=tmp_path / "out", limit=20)


def test_without_the_emulator_nothing_is_compared(job: Job, tmp_path: Path) -> None:
    assert not choosing.comparable(job)
    outcome = compile_chosen(job, Store(tmp_path / "store"))
    assert "instructions" not in outcome.after


def fake(work: dict[str, int]) -> Any:
    def count(job: Job, store: Store, watch: Any, artifacts: dict[str, Path]) -> Any:
        assert set(artifacts) == {"static-int8", "float32", "float16"}
        stamp = Evidence(
            "instructions", 0, "", "emulated", "raspberry-pi-4", conditions={"core": "cortex-a72"}
        )
        found = {}
        for name in artifacts:
            made = counts({"accesses": work[name], "misses_1": 0, "misses_2": 0}, fmla=work[name])
            found[name] = made, replace(stamp, value=float(made.total))
        return found

    return count


def test_float_ships_where_int8_is_more_work(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "comparable", lambda job: True)
    work = {"static-int8": 900_000, "float32": 300_000, "float16": 310_000}
    monkeypatch.setattr(choosing, "_count", fake(work))
    outcome = compile_chosen(job, Store(tmp_path / "store"))
    part = next(iter(open_artifact(job.output).parts.values()))
    assert part["precision"] == "float32"
    assert any("float32 ships instead of static-int8" in note for note in outcome.notes)
    kept = json.loads((job.output / "metrics.json").read_text())
    assert kept["digest"] == outcome.digest == open_artifact(job.output).digest
    assert kept["after"]["instructions"]["how"] == "emulated"
    text = md.render([outcome])
    assert "### Emulated" in text and "### Predicted" in text and "### Measured" in text
    assert "| instructions | 300 k | 300 k | 1.00 |" in text
    assert "judged on 20 evaluation samples" in text


def test_trouble_with_the_emulator_is_a_note(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise UnreachableError("the emulated process ended")

    monkeypatch.setattr(choosing, "comparable", lambda job: True)
    monkeypatch.setattr(choosing, "_count", broken)
    outcome = compile_chosen(job, Store(tmp_path / "store"))
    assert outcome.exit_code == 0
    assert "not compared on the emulator: the emulated process ended" in outcome.notes[-1]


@pytest.mark.parametrize("emulate", [True, False])
def test_the_python_function_compares_unless_told_not_to(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emulate: bool
) -> None:
    monkeypatch.setattr(choosing, "comparable", lambda job: True)
    work = {"static-int8": 900_000, "float32": 300_000, "float16": 310_000}
    monkeypatch.setattr(choosing, "_count", fake(work))
    outcome = edgeopt.compile(
        example.MODEL,
        "raspberry-pi-4",
        data={"path": str(example.DATA), "metric": example.METRIC},
        output=tmp_path / "out",
        limit=20,
        store=Store(tmp_path / "store"),
        **({} if emulate else {"emulate": False}),
    )
    part = next(iter(open_artifact(outcome.path).parts.values()))
    assert part["precision"] == ("float32" if emulate else "static-int8")
    assert ("instructions" in outcome.after) is emulate
