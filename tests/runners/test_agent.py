"""The agent by itself: old Pythons, its frames, its folder, and what it reads of a board."""

from __future__ import annotations

import ast
import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeopt.runners import agent

SOURCE = Path(agent.__file__)

LATER = {
    "capture_output=": "3.7",
    "text=": "3.7",
    "dataclasses": "3.7",
    "perf_counter_ns": "3.7",
    "monotonic_ns": "3.7",
    "time_ns": "3.7",
    "fromisoformat": "3.7",
    "isascii": "3.7",
    "importlib.resources": "3.7",
    "contextvars": "3.7",
    "prod": "3.8",
    "cached_property": "3.8",
    "dirs_exist_ok": "3.8",
    "missing_ok": "3.8",
    "is_relative_to": "3.9",
    "removeprefix": "3.9",
    "removesuffix": "3.9",
    "to_thread": "3.9",
    "pairwise": "3.10",
    "file_digest": "3.11",
}
"""Names that Python 3.6 does not have, with the version that brought them."""


def too_new(source: str) -> list[str]:
    """What a source uses that Python 3.6 does not know."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Name):
            names = [node.id]
        elif isinstance(node, ast.keyword):
            names = [f"{node.arg}=", node.arg or ""]
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(name.name for name in node.names)]
        found += [f"{name} ({LATER[name]})" for name in names if name in LATER]
        kind = type(node).__name__
        if kind in ("NamedExpr", "Match", "TryStar"):
            found.append(f"{kind} in line {node.lineno}")
        if isinstance(node, ast.arguments) and node.posonlyargs:
            found.append("positional-only arguments")
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            found += [name.name for name in node.names if name.name == "annotations"]
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            found += [f"{node.value.id}[...]"] * (node.value.id in ("list", "dict", "tuple", "set", "type"))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            found += ["X | None"] * (isinstance(node.right, ast.Constant) and node.right.value is None)
    return found


def test_the_agent_uses_nothing_that_python_3_6_lacks() -> None:
    assert too_new(SOURCE.read_text()) == []
    later = "from __future__ import annotations\nx: list[int] | None = (y := 1)\n'a'.removeprefix('a')\n"
    assert len(too_new(later)) == 5


def test_vermin_finds_nothing_in_the_agent_that_python_3_6_lacks(tmp_path: Path) -> None:
    pytest.importorskip("vermin", reason="needs vermin, which ./dev test installs")
    backports = ["--backport", "typing", "--backport", "importlib", "--eval-annotations"]
    command = [sys.executable, "-c", "import vermin; vermin.main()", "--no-tips", "-t=3.6-", *backports]
    done = subprocess.run([*command, str(SOURCE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    (tmp_path / "late.py").write_text("import time\nprint(time.perf_counter_ns())\n")
    late = subprocess.run([*command, str(tmp_path / "late.py")], capture_output=True, text=True)
    assert late.returncode != 0 and "3.7" in late.stdout


def test_python_3_6_itself_runs_the_agents_frames() -> None:
    python = shutil.which("python3.6")
    if python is None or subprocess.run([python, "-c", ""], capture_output=True).returncode:
        pytest.skip("there is no Python 3.6 here")
    program = (
        f"import sys; sys.path.insert(0, {str(SOURCE.parent)!r})\n"
        "import agent, io\n"
        "stream = io.BytesIO(b''.join(bytes(p) for p in agent.pack({'op': 'x'}, (b'abc', b''))))\n"
        "assert agent.unpack(stream.read) == ({'op': 'x'}, bytearray(b'abc'))\n"
        "store = agent.Store('/tmp/edgeopt-board-test-%d' % agent.os.getpid())\n"
        "store.make_room(10, []); store.remove()\n"
        "agent.probe(); agent.state(full=True)\n"
        "assert not agent.os.path.exists(store.folder)\n"
    )
    done = subprocess.run([python, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_frames_hold_what_was_put_in() -> None:
    arrays = [np.arange(6, dtype=np.int8).reshape(2, 3), np.array(2.5, np.float16), np.zeros((0, 4), bool)]
    header = {"op": "run", "arrays": agent.describe(arrays)}
    pieces = tuple(array.reshape(-1).view("uint8") for array in arrays)
    stream = b"".join(bytes(piece) for piece in agent.pack(header, pieces))
    found, body = agent.unpack(io.BytesIO(stream).read)
    assert found == header
    for expected, actual in zip(arrays, agent.arrays_of(found["arrays"], body), strict=True):
        assert expected.dtype == actual.dtype and np.array_equal(expected, actual)
    damaged = bytearray(stream)
    damaged[-1] ^= 1
    with pytest.raises(agent.Broken, match="damaged"):
        agent.unpack(io.BytesIO(bytes(damaged)).read)
    with pytest.raises(agent.Broken, match="no frame"):
        agent.unpack(io.BytesIO(b"Welcome to your board!" * 4).read)
    with pytest.raises(EOFError):
        agent.unpack(io.BytesIO(stream[:-1]).read)


def test_only_ones_own_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(agent.Refusal, match="no folder on the board can be written"):
        agent.Store(str(tmp_path / "link"))
    store = agent.Store(str(tmp_path / "own"))
    with pytest.raises(agent.Refusal, match="64 hexadecimal digits"):
        store.blob("../../etc/passwd")
    store.remove()
    assert not (tmp_path / "own").exists()


def test_files_used_longest_ago_make_room(tmp_path: Path, monkeypatch) -> None:
    store = agent.Store(str(tmp_path / "own"))
    for number in range(4):
        path = Path(store.blob(str(number) * 64))
        path.write_bytes(bytes(100))
        agent.os.utime(path, (number, number))
    monkeypatch.setattr(agent, "CAP", 150)
    store.make_room(0, ["0" * 64])
    assert sorted(path.name[0] for path in Path(store.blobs).iterdir()) == ["0", "3"]
    store.remove()


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch) -> Path:
    """A board that is hot and throttled."""
    monkeypatch.setattr(agent, "ROOT", str(tmp_path))
    monkeypatch.setattr(agent, "_firmware", lambda: "0x50004")
    thermal, cpufreq = "sys__class__thermal__", "sys__devices__system__cpu__cpufreq__policy0__"
    write(
        tmp_path,
        **{
            thermal + "thermal_zone0__temp": "81500\n",
            thermal + "thermal_zone1__temp": "40000\n",
            thermal + "cooling_device0__type": "cpufreq-cpu0\n",
            thermal + "cooling_device0__cur_state": "2\n",
            cpufreq + "scaling_cur_freq": "1000000\n",
            cpufreq + "scaling_max_freq": "1400000\n",
            cpufreq + "cpuinfo_max_freq": "1500000\n",
            cpufreq + "scaling_governor": "ondemand\n",
        },
    )
    return tmp_path


def test_heat_clock_governor_and_throttling_are_seen(made_up: Path) -> None:
    assert agent.state(full=True) == {
        "temperature": 81.5,
        "clock": [1_000_000_000],
        "clock_limit": [1_400_000_000],
        "clock_maximum": [1_500_000_000],
        "governor": ["ondemand"],
        "throttled": ["throttled", "the kernel cools the processor"],
    }


def test_a_board_that_says_nothing_of_itself(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(agent, "ROOT", str(tmp_path))
    assert agent.state() == {}
    found = agent.probe()
    assert found["cpus"] == [] and found["memory"] is None and found["copy"] > 0
    assert sys.executable and agent.status("VmHWM")
