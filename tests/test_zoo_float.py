"""Float accuracies of real models, as measured independently of edgeopt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.zoo.models import ENTRIES, open_entry
from edgeopt.evaluate import judge


@pytest.mark.parametrize(
    ("name", "key", "scale"),
    [
        ("kws_dscnn_mlperf_tiny", "top1", 100),
        ("g2p_gru", "word_acc", 100),
        ("dtln", "si_sdr_out_db", 1),
        ("yolo_fastestv2_coco", "mAP50", 1),
        ("resnet20_cifar10", "top1", 100),
    ],
)
def test_a_float_model_scores_what_it_should(
    zoo: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str, scale: float
) -> None:
    monkeypatch.setenv("EDGEOPT_ZOO", str(zoo))
    expected = json.loads((zoo / "float_accuracy.json").read_text())[name][key] * scale
    sessions = ENTRIES[name].sessions()
    data, metric, harness = open_entry(ENTRIES[name], sessions)
    assert data.evaluate is not None
    found = judge(None, sessions, data.evaluate, metric, harness=harness).artifact
    assert found is not None
    assert found.value == pytest.approx(expected, abs=0.006 if scale == 100 else 6e-4)
