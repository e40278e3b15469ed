"""Running the command line in this process, as a user would type it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgeopt.cli import call


@dataclass(frozen=True)
class Ran:
    """What a command left: its exit code and its two streams."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has a store and a current folder of its own, and no emulator."""
    monkeypatch.setenv("EDGEOPT_CACHE", str(tmp_path / "store"))
    monkeypatch.delenv("EDGEOPT_EMULATOR", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def edgeopt(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def run(*arguments: Any) -> Ran:
        capsys.readouterr()
        code = call([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run
