"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Machines that run tests are shared: how long an example takes says nothing about the code.
settings.register_profile("edgeopt", deadline=None)
settings.load_profile("edgeopt")


@pytest.fixture(scope="session")
def zoo() -> Path:
    """The folder of real models and data, named by EDGEOPT_ZOO or beside the repository."""
    named = os.environ.get("EDGEOPT_ZOO")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "zoo"
    if not folder.is_dir():
        pytest.skip("the zoo of real models is not here; EDGEOPT_ZOO names its folder")
    return folder


@pytest.fixture(scope="session")
def torch() -> Any:
    """The package torch, which only the extra of that name installs; the test is marked ``torch``."""
    pytest.importorskip("onnxscript", reason="needs the extra: pip install 'edgeopt[torch]'")
    return pytest.importorskip("torch", reason="needs the extra: pip install 'edgeopt[torch]'")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that need torch, so that they can be run alone."""
    for item in items:
        if "torch" in getattr(item, "fixturenames", ()) or 'importorskip("torch"' in item.path.read_text():
            item.add_marker("torch")
