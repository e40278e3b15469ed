"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def zoo() -> Path:
    """The folder of real models and data, named by EDGEOPT_ZOO or beside the repository."""
    named = os.environ.get("EDGEOPT_ZOO")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "zoo"
    if not folder.is_dir():
        pytest.skip("the zoo of real models is not here; EDGEOPT_ZOO names its folder")
    return folder
