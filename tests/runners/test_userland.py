"""Userlands that are sent to boards without a Python of their own."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import replace
from pathlib import Path

import loopback
import numpy as np
import pytest

from edgeopt.cli import call
from edgeopt.errors import RuntimeFailure, UnreachableError
from edgeopt.platform import load_device
from edgeopt.runners import userland
from edgeopt.runners.adb import Adb
from edgeopt.runners.emulator import boards, qemu
from edgeopt.runners.emulator.place import find_place
from edgeopt.runners.userland import Userland

FEEDS = {"features": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)}

UNUSED = (
    "test",
    "idlelib",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "tkinter",
    "ensurepip",
)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Userland:
    """A userland of this machine's own loader, libraries and Python; packages are found where they lie."""
    if platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc":
        pytest.skip("makes a userland of an x86-64 machine with glibc")
    folder = tmp_path_factory.mktemp("userland")
    root, site = folder / "root", folder / "site"
    python = Path(os.path.realpath(sys.executable))
    told = subprocess.run(["ldd", python], capture_output=True, text=True).stdout
    libraries = root / "lib" / "x86_64-linux-gnu"
    for path in (libraries, root / "usr" / "bin", site):
        path.mkdir(parents=True)
    for name in re.findall(r"(/\S+)", told):
        shutil.copy2(name, libraries)
    loader = next(iter(libraries.glob("ld-linux*")))
    (root / "lib" / loader.name).symlink_to(loader.relative_to(root / "lib"))
    shutil.copy2(python, root / "usr" / "bin" / python.name)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    stdlib = root / "usr" / "lib" / version
    shutil.copytree(sysconfig.get_path("stdlib"), stdlib, ignore=shutil.ignore_patterns(*UNUSED))
    packages = Path(np.__file__).parents[1]
    (site / "sitecustomize.py").write_text(f"import sys\nsys.path.append({str(packages)!r})\n")
    return Userland("x86_64", root, site, f"lib/{loader.name}", f"usr/bin/{python.name}")


@pytest.fixture
def supplied(ours, monkeypatch) -> Userland:
    monkeypatch.setattr(userland, "find", lambda: ours)
    monkeypatch.setenv("EDGEOPT_CACHE", str(ours.root.parent / "cache"))
    return ours


def without_python(server, **options: object):
    """A board that has no Python but the one that is sent to it."""
    return loopback.Ssh(f"ssh://127.0.0.1:{server.port}" + _query(options), loopback.QUICK)


def _query(options: dict[str, object]) -> str:
    return "?" + "&".join(f"{key}={value}" for key, value in options.items()) if options else ""


@pytest.fixture(autouse=True)
def pythons(monkeypatch) -> None:
    monkeypatch.setattr(loopback.Ssh, "pythons", ("no-such-python",))


def test_the_same_userland_gives_the_same_archive(ours, tmp_path: Path) -> None:
    first, second = ours.archive(tmp_path / "a"), ours.archive(tmp_path / "b")
    assert first.sha256 == second.sha256 and first.path != second.path
    again = first.path.stat().st_mtime_ns
    assert ours.archive(tmp_path / "a").path.stat().st_mtime_ns == again


def test_a_board_without_python_is_sent_one_and_keeps_nothing(server, model, supplied) -> None:
    folder = server.home / "a folder"
    with without_python(server, folder=folder) as board:
        session = board.open(model)["model"]
        assert np.array_equal(session.run(FEEDS)["logits"], np.abs(FEEDS["features"]))
        (agent,) = server.agents()
        words = Path(f"/proc/{agent}/cmdline").read_bytes().split(b"\0")
        assert b"ld-linux" in words[0] and words[1] == b"--library-path"
        maps = Path(f"/proc/{agent}/maps").read_text()
        assert str(folder / "userlands") in maps and "libc.so.6" in maps
        assert not any("libc.so.6" in line and str(folder) not in line for line in maps.splitlines())
        assert any("the board has no Python: the runtime ran in a userland" in note for note in board.notes)
    server.wait_until_clean(10)


def test_a_cut_connection_finds_the_userland_again_and_the_cleaner_deletes_it(
    server, model, supplied, monkeypatch
) -> None:
    sent = []
    push = userland.push
    monkeypatch.setattr(userland, "push", lambda *words: (sent.append(1), push(*words)))
    board = without_python(server, folder=server.home / "a folder")
    session = board.open(model)["model"]
    for number in server.connections():
        loopback.kill(number)
    assert np.array_equal(session.run(FEEDS)["logits"], np.abs(FEEDS["features"]))
    assert board.losses == 1 and sent == [1]
    for number in [*server.connections(), *server.clients()]:
        loopback.kill(number)
    server.wait_until_clean(10)  # the cleaner itself was started through the userland's loader
    board.close()


def test_a_kept_userland_is_sent_once_and_cleaned_away(server, model, supplied, monkeypatch, capsys) -> None:
    sent = []
    push = userland.push
    monkeypatch.setattr(userland, "push", lambda *words: (sent.append(1), push(*words)))
    for _ in range(2):
        with without_python(server, userland="keep") as board:
            assert board.open(model)["model"].run(FEEDS)["logits"].shape == (2, 3)
            assert any("it is kept in" in note for note in board.notes)
    kept = server.home / ".edgeopt-board-userlands"
    assert sent == [1] and [path.name for path in kept.iterdir()] == [supplied.archive().sha256]
    address = f"ssh://127.0.0.1:{server.port}"
    assert call(["devices", "clean", address]) == 0 and "deleted" in capsys.readouterr().out
    assert call(["devices", "clean", address]) == 0 and "nothing" in capsys.readouterr().out
    assert not kept.exists()


def test_an_archive_that_arrives_in_part_is_sent_again(server, model, supplied, monkeypatch) -> None:
    pour, sent = userland._pour, []

    def half(process, path: Path, silence: float) -> bool:
        sent.append(path)
        if len(sent) > 1:
            return pour(process, path, silence)
        process.stdin.write(path.read_bytes()[: 1 << 20])
        return True

    monkeypatch.setattr(userland, "_pour", half)
    with without_python(server) as board:
        assert board.open(model)["model"].run(FEEDS)["logits"].shape == (2, 3)
    assert len(sent) == 2


def test_a_userland_that_no_agent_came_for_is_deleted(server, supplied) -> None:
    archive = supplied.archive()
    board = without_python(server)
    command = archive.receive('"$HOME"/.edgeopt-board/userlands', grace=-58)  # two seconds
    userland.push(board.command(command), archive, loopback.QUICK)
    assert (server.left / "userlands" / archive.sha256 / "whole").exists()
    end = time.monotonic() + 30
    while server.left.exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    board.close()


def test_a_c_library_that_is_too_old_is_replaced(
    server, model, supplied, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "site").mkdir()
    said = "libc.so.6: version `GLIBC_2.28' not found (required by onnxruntime.so)"
    (tmp_path / "site" / "onnxruntime.py").write_text(f"raise ImportError({said!r})\n")
    old = tmp_path / "python"
    old.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/site exec {sys.executable} "$@"\n')
    old.chmod(0o755)
    monkeypatch.setattr(loopback.Ssh, "pythons", (str(old),))
    with loopback.Ssh(f"ssh://127.0.0.1:{server.port}", loopback.QUICK) as board:
        assert board.open(model)["model"].run(FEEDS)["logits"].shape == (2, 3)
        assert any(note.startswith("the board's C library is too old") for note in board.notes)
        assert board.losses == 0


def test_what_cannot_be_helped_is_said(server, model, supplied, monkeypatch, tmp_path: Path) -> None:
    board = without_python(server, userland="no")
    with board, pytest.raises(UnreachableError, match="there is no python3") as failure:
        board.open(model)
    assert "edgeopt emulator setup" in (failure.value.hint or "")
    monkeypatch.setattr(userland, "find", lambda: replace(supplied, arch="aarch64"))
    board = without_python(server)
    with board, pytest.raises(RuntimeFailure, match="the board is a x86_64, and the userland is for aarch64"):
        board.open(model)
    monkeypatch.setattr(userland, "find", lambda: None)
    board = without_python(server, userland="yes")
    with board, pytest.raises(RuntimeFailure, match="no userland on this machine") as missing:
        board.open(model)
    assert missing.value.hint == "edgeopt emulator setup"
    monkeypatch.setattr(userland, "find", lambda: supplied)
    (tmp_path / "file").write_text("")
    board = without_python(server, folder=tmp_path / "file" / "no")
    with board, pytest.raises(RuntimeFailure, match="cannot take the userland"):
        board.open(model)


CLIENT = """#!{python}
# A board that has a kernel, a shell and tar; its processor is QEMU, its root holds what was sent and no more.
import os, sys
root, emulator, command = {root!r}, {emulator!r}, sys.argv[-1]
if "--library-path" in command:
    command = command.replace(root, "").replace('-f "$u', '-f "' + root + '$u')
    kept = 'PYTHONPATH="$PYTHONPATH" EDGEOPT_START="$EDGEOPT_START" HOME=/'
    words = ["exec env -i", kept, {chroot!r}, root, emulator, '"$@"']
    command = command.replace('exec "$@"', " ".join(words))
else:
    command = command.replace("$(uname -m)", "aarch64")
os.execvp("/bin/sh", ["sh", "-c", command])
"""


def test_the_aarch64_userland_answers_in_a_root_that_holds_nothing_else(
    model, tmp_path: Path, monkeypatch
) -> None:
    place = find_place()
    if not place.has("aarch64") or platform.machine() != "x86_64":
        pytest.skip("needs the emulator: edgeopt emulator setup")
    if os.geteuid() != 0:
        pytest.skip("a root of its own can be given by root alone")
    root = tmp_path / "board"
    shutil.copytree(place.folder / "qemu", root / "emu" / "qemu", symlinks=True)
    device = load_device("raspberry-pi-4")
    core = boards.emulated(device, (place.part("qemu") or {})["cores"]["aarch64"])
    for path, text in boards.files(device, core).items():
        (root / "emu" / "overlay" / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (root / "emu" / "overlay" / path.lstrip("/")).write_text(text)
    (root / "data").mkdir()
    emulator = " ".join([*qemu.started(place, "aarch64"), "-cpu", core.cpu, "-L", "/emu/overlay"])
    client = tmp_path / "bin" / "adb"
    client.parent.mkdir()
    emulator = emulator.replace(str(place.folder), "/emu")
    chroot = shutil.which("chroot", path="/usr/sbin:/usr/bin:/sbin:/bin")
    client.write_text(CLIENT.format(python=sys.executable, root=str(root), emulator=emulator, chroot=chroot))
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{client.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("EDGEOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Adb, "pythons", ("no-such-python",))
    patience = replace(loopback.QUICK, connect=300, silence=300)
    with Adb(f"adb:BOARD?folder={root}/data/edgeopt", patience) as board:
        board.connection._folder = "/data/edgeopt"  # as the board itself sees it
        session = board.open(model)["model"]
        assert board.hello["machine"] == "aarch64" and board.hello["python"].startswith("/data/edgeopt")
        assert np.array_equal(session.run(FEEDS)["logits"], np.abs(FEEDS["features"]))
        top = {path.name for path in root.iterdir()}
        assert top <= {"data", "emu", "proc", "tmp"}
    assert list((root / "data").iterdir()) == []
