"""Boards to test on: a real OpenSSH server on loopback, and small models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import loopback
import onnx_ir as ir
import pytest


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[loopback.Server]:
    try:
        server = loopback.start(tmp_path_factory.mktemp("ssh"))
    except loopback.Unavailable as reason:
        pytest.skip(str(reason))
    yield server
    server.stop()


@pytest.fixture
def server(running: loopback.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[loopback.Server]:
    """The server, with a home that is empty before and must be empty after the test."""
    monkeypatch.setenv("EDGEOPT_SSH", running.client)
    yield running
    running.wait_until_clean()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "abs.onnx"
    ir.save(ir.from_onnx_text(loopback.TEXT % "Abs"), path)
    return path
