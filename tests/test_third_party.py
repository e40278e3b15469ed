"""A package of somebody else's adds a pass, a target, a metric, devices and runtimes by entry points."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeopt import metrics, passes, platform, targets

MODULE = '''
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from edgeopt.graph.change import Change
from edgeopt.metrics import Metric
from edgeopt.passes.base import Pass
from edgeopt.targets.onnxruntime import Onnxruntime

DEVICES = Path(__file__).parent / "devices"
RUNTIMES = Path(__file__).parent / "runtimes"

@dataclass(frozen=True)
class DoNothing(Pass):
    """Do nothing."""
    name: ClassVar[str] = "acme-nothing"
    def apply(self, model, context):
        return Change(summary="none")

@dataclass(frozen=True)
class Acme(Onnxruntime):
    name: ClassVar[str] = "acme"

class Ones(Metric):
    name = "ones"
    def record(self, outputs, sample):
        return 1.0
'''

POINTS = """
[edgeopt.passes]
acme-nothing = acme_edgeopt:DoNothing
[edgeopt.targets]
acme = acme_edgeopt:Acme
[edgeopt.metrics]
ones = acme_edgeopt:Ones
[edgeopt.devices]
acme = acme_edgeopt:DEVICES
[edgeopt.runtimes]
acme = acme_edgeopt:RUNTIMES
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "acme_edgeopt.py").write_text(MODULE)
    info = tmp_path / "acme_edgeopt-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-edgeopt\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    for kind, name in (("devices", "raspberry-pi-4"), ("runtimes", "onnxruntime")):
        (tmp_path / kind).mkdir()
        found = platform.profile_names(kind)[name].read_text()  # type: ignore[arg-type]
        text = found.replace(f"name: {name}", "name: acme").replace("target: onnxruntime", "target: acme")
        text = text.replace("runtimes: {onnxruntime:", "runtimes: {acme:")
        (tmp_path / kind / "acme.yaml").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    for remembered in (platform.profile_names, passes._installed):
        remembered.cache_clear()
    yield
    for remembered in (platform.profile_names, passes._installed):
        remembered.cache_clear()
    sys.modules.pop("acme_edgeopt", None)
    shutil.rmtree(info)


def test_a_pass() -> None:
    assert "acme-nothing" in passes.names()
    assert passes.make("acme-nothing").name == "acme-nothing"


def test_a_metric() -> None:
    assert metrics.find("ones").name == "ones"


def test_a_device_with_a_runtime_and_its_target() -> None:
    found = platform.load_platform("acme")
    assert (found.device.name, found.runtime.name, found.runtime.target) == ("acme", "acme", "acme")
    assert targets.make(found.runtime.target).name == "acme"
