"""Devices reached by adb: a stand-in for the client that runs the device's commands here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import loopback
import numpy as np
import pytest

from edgeopt.errors import UnreachableError, UserError
from edgeopt.runners.adb import Adb

FEEDS = {"features": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)}

CLIENT = """#!/bin/sh
# adb -s SERIAL shell -T -e none COMMAND
[ "$1 $3 $4 $5 $6" = "-s shell -T -e none" ] || { echo "adb: usage" >&2; exit 1; }
case "$2" in
    BOARD) HOME=/; export HOME; exec /bin/sh -c "$7" ;;
    BARE) PATH="${0%/*}/../bare"; export PATH; exec /bin/sh -c "$7" ;;
    LOCKED) echo "adb: device unauthorized." >&2; exit 1 ;;
    *) echo "adb: device '$2' not found" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def client(tmp_path: Path, monkeypatch) -> Path:
    path = tmp_path / "bin" / "adb"
    path.parent.mkdir()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sh").symlink_to("/bin/sh")  # all that this device has
    path.write_text(CLIENT)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    return path


def test_a_device_answers_and_keeps_nothing(client, model, tmp_path: Path) -> None:
    address = f"adb:BOARD?python={sys.executable}&folder={tmp_path / 'device'}"
    with Adb(address, loopback.QUICK) as board:
        session = board.open(model)["model"]
        assert np.array_equal(session.run(FEEDS)["logits"], np.abs(FEEDS["features"]))
        assert len(board.timer(session, FEEDS).time(3)) == 3
        loopback.kill(board.hello["pid"])
        assert np.array_equal(session.run(FEEDS)["logits"], np.abs(FEEDS["features"]))
        assert board.losses == 1 and (tmp_path / "device").is_dir()
    assert not (tmp_path / "device").exists()


@pytest.mark.parametrize(
    ("serial", "sentence"),
    [
        ("BARE", "the device BARE has no Python"),
        ("LOCKED", "has not allowed this computer"),
        ("OTHER", "there is no device OTHER"),
    ],
)
def test_errors_say_what_to_do(client, model, serial, sentence) -> None:
    with pytest.raises(UnreachableError, match=sentence) as failure:
        Adb(f"adb:{serial}", loopback.QUICK).open(model)
    assert failure.value.hint and failure.value.exit_code == 4


def test_without_the_client(model, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnreachableError, match="platform tools"):
        Adb("adb:BOARD", loopback.QUICK).open(model)
    with pytest.raises(UserError, match="names no device"):
        Adb("adb:")
