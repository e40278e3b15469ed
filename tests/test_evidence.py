import dataclasses
import json

import pytest

from edgeopt.evidence import Evidence


def test_evidence_survives_json() -> None:
    evidence = Evidence(
        quantity="latency",
        value=0.031,
        unit="s",
        how="predicted",
        where="raspberry-pi-4",
        interval=(0.02, 0.05),
        n=0,
        runtime="onnxruntime 1.32.0",
        conditions={"threads": 1},
        artifact="abc",
        detail={"p50": 0.03},
    )
    assert Evidence.from_json(json.loads(json.dumps(evidence.to_json()))) == evidence


def test_an_exact_figure_has_no_interval_in_json_either() -> None:
    exact = Evidence("size", 12.0, "B", "measured", "host")
    assert Evidence.from_json(exact.to_json()).interval is None


def test_evidence_cannot_be_changed_afterwards() -> None:
    evidence = Evidence("size", 12.0, "B", "measured", "host")
    with pytest.raises(dataclasses.FrozenInstanceError):
        evidence.value = 3.0  # type: ignore[misc]
