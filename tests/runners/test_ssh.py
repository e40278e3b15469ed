"""Boards reached by SSH: a real OpenSSH server on loopback, and everything that may go wrong with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import loopback
import numpy as np
import onnx_ir as ir
import pytest

from edgeopt import benchmark
from edgeopt.cli import call
from edgeopt.errors import RuntimeFailure, UnreachableError, UserError
from edgeopt.runners import find
from edgeopt.runners.host import open_sessions
from edgeopt.runners.link import Patience
from edgeopt.runners.ssh import Ssh

FEEDS = {"features": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)}


def python_with(tmp_path: Path, *lines: str, **environment: str) -> Path:
    """A Python for the board that runs these lines first, in an environment of its own."""
    (tmp_path / "site").mkdir(exist_ok=True)
    (tmp_path / "site" / "sitecustomize.py").write_text("\n".join(lines) + "\n")
    path = tmp_path / "python"
    given = " ".join(f"{key}={value}" for key, value in environment.items())
    path.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/site {given} exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


def test_a_board_answers_as_the_host_does_and_keeps_nothing(server, model) -> None:
    here = open_sessions(model)["model"]
    with server.board() as board:
        there = board.open(model)["model"]
        assert [(spec.name, spec.dtype, spec.shape) for spec in there.inputs] == [
            (spec.name, spec.dtype, spec.shape) for spec in here.inputs
        ]
        assert np.array_equal(there.run(FEEDS)["logits"], here.run(FEEDS)["logits"])
        with pytest.raises(RuntimeFailure, match="rank"):
            there.run({"features": np.zeros((2, 3, 1), np.float32)})
        assert server.left.is_dir() and len(server.agents()) == 1
        assert (server.left.stat().st_mode & 0o077) == 0
    server.wait_until_clean(10)
    assert not server.clients()


def test_weights_beside_the_model_are_sent_too(server, tmp_path: Path) -> None:
    model = ir.from_onnx_text(
        loopback.TEXT.replace("%s (features)", "Add (features, w)").replace("features)", "features)", 1)
    )
    weights = np.arange(3, dtype=np.float32)
    value = ir.Value(name="w", const_value=ir.tensor(weights, name="w"))
    model.graph.register_initializer(value)
    for node in model.graph:
        node.replace_input_with(1, value)
    ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    with server.board() as board:
        found = board.open(tmp_path / "m.onnx")["model"].run(FEEDS)["logits"]
    assert np.array_equal(found, FEEDS["features"] + weights)


def test_latency_is_timed_on_the_board_and_compared_as_on_the_host(server, model) -> None:
    with server.board() as board:
        sessions = {key: board.open(model)["model"] for key in ("model", "against")}
        timers = {key: board.timer(session, FEEDS) for key, session in sessions.items()}
        started = time.perf_counter()
        sessions["model"].run(FEEDS)
        wire = time.perf_counter() - started
        found = benchmark.measure(timers, "against", runs=40, warm_up=0.5)
        assert found.timings["model"].runs == 40 and found.noise is not None
        assert found.timings["model"].median < wire
        took = board.footprint(model)
        assert took.peak > took.before > 1 << 20 and took.load > 0
        assert {"machine", "python"} <= set(board.conditions())
        assert isinstance(board.detail(), dict)


@pytest.mark.parametrize("victim", ["agent", "connection", "client"])
def test_a_lost_connection_is_taken_up_again(server, model, victim) -> None:
    with server.board() as board:
        session = board.open(model)["model"]
        timer = board.timer(session, FEEDS)
        expected = session.run(FEEDS)["logits"]
        assert len(timer.time(3)) == 3
        victims = {"agent": server.agents, "connection": server.connections, "client": server.clients}[
            victim
        ]()
        assert victims
        for number in victims:
            loopback.kill(number)
        assert np.array_equal(session.run(FEEDS)["logits"], expected)
        assert len(timer.time(3)) == 3
        assert board.losses == 1 and "was lost once" in " ".join(board.notes)


def test_an_agent_that_hangs_counts_as_lost(server, model) -> None:
    with server.board(replace(loopback.QUICK, silence=2.0)) as board:
        session = board.open(model)["model"]
        (agent,) = server.agents()
        loopback.kill(agent, signal.SIGSTOP)
        assert np.array_equal(session.run(FEEDS)["logits"], np.abs(FEEDS["features"]))
        assert board.losses == 1
        loopback.kill(agent, signal.SIGCONT)


def test_a_killed_agent_leaves_nothing_where_nobody_may_log_in_again(server, model) -> None:
    known = (server.folder / "authorized").read_text()
    board = server.board()
    board.open(model)
    assert len(server.agents()) == len(server.cleaners()) == 1
    try:
        (server.folder / "authorized").write_text((server.folder / "other.pub").read_text())
        for number in [*server.agents(), *server.connections(), *server.clients()]:
            loopback.kill(number)
        server.wait_until_clean(20)
    finally:
        (server.folder / "authorized").write_text(known)
        board.close()


def test_a_file_goes_on_from_the_byte_that_arrived(server, tmp_path: Path, monkeypatch) -> None:
    sizes = 1024, 3072
    model = ir.from_onnx_text(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[{sizes[0]}, {sizes[1]}] w) => (float[{sizes[0]}, {sizes[1]}] y) {{ y = Identity (w) }}
    """)
    value = model.graph.inputs.pop()
    value.const_value = ir.tensor(np.random.default_rng(0).standard_normal(sizes, np.float32), name="w")
    model.graph.register_initializer(value)
    ir.save(model, tmp_path / "m.onnx")
    sent: list[int] = []
    from edgeopt.runners.link import Link

    send = Link.send

    def counted(self, op, fields, pieces=(), patience=None):
        answer = send(self, op, fields, pieces, patience)
        if op == "chunk":
            sent.append(fields["offset"])
            if len(sent) == 5:
                for number in server.connections():
                    loopback.kill(number)
        return answer

    monkeypatch.setattr(Link, "send", counted)
    with server.board(replace(loopback.QUICK, grace=30.0)) as board:
        assert board.open(tmp_path / "m.onnx")["model"].run({})["y"].shape == sizes
        assert board.losses == 1
    assert sent == sorted(set(sent)) and len(sent) == 13


def test_judged_samples_are_not_run_again(server, model, tmp_path: Path, monkeypatch, capsys) -> None:
    features = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    np.savez(tmp_path / "e.npz", features=features, label=np.abs(features).argmax(1))
    from edgeopt.runners.link import Link

    request, ran = Link.request, []

    def counted(self, op, *arrays, **fields):
        answer = request(self, op, *arrays, **fields)
        if op == "run":
            ran.append(op)
            if len(ran) in (3, 9):
                for number in server.agents():
                    loopback.kill(number)
        return answer

    monkeypatch.setattr(Link, "request", counted)
    arguments = ["--on", server.address(), "--data", str(tmp_path / "e.npz"), "--metric", "top1"]
    assert call(["eval", str(model), *arguments, "--against", str(model), "--batch", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["artifact"]["value"] == 100 and found["drop"]["value"] == 0
    assert len(ran) == -(-found["artifact"]["n"] // 4)
    assert found["artifact"]["where"] not in ("", "host") and found["original"]["where"] == "host"
    assert "machine" in found["artifact"]["conditions"] and "host" in found["original"]["conditions"]
    assert any("lost 2 times" in note for note in found["notes"])


def test_bench_on_a_board(server, model, capsys) -> None:
    arguments = ["bench", str(model), "--against", str(model), "--runs", "20", "--on", server.address()]
    assert call([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    figure = found["parts"]["model"]["model"]
    assert figure["how"] == "measured" and figure["where"] == found["where"] != "host" and figure["n"] == 20
    assert "note" not in figure["conditions"] and figure["detail"]["steady"] in (True, False)
    assert found["memory"]["model"]["value"] > found["memory"]["model"]["detail"]["before_load"] > 0
    assert call(arguments) == 0
    shown = capsys.readouterr().out
    assert f"measured on {found['where']}" in shown and "host, not device" not in shown


def test_errors_say_what_to_do(server, model, tmp_path: Path, monkeypatch, capsys) -> None:
    def fails(address: str, client: str | None = None) -> str:
        monkeypatch.setenv("EDGEOPT_SSH", client or server.client)
        assert call(["bench", str(model), "--on", address]) == 4
        shown = capsys.readouterr().err
        monkeypatch.setenv("EDGEOPT_SSH", server.client)
        return shown

    wrong_key = f"ssh -i {server.folder / 'other'} -o IdentitiesOnly=yes -o IdentityAgent=none " + " ".join(
        f"-o {option}={server.folder / 'known'}" for option in ("UserKnownHostsFile", "GlobalKnownHostsFile")
    )
    assert "127.0.0.1 refuses the login" in fails(server.address(), wrong_key + " -F none")
    assert "ssh-copy-id 127.0.0.1" in fails(server.address(), wrong_key + " -F none")
    empty = tmp_path / "empty"
    empty.write_text("")
    unknown = f"{server.client} -o UserKnownHostsFile={empty}"
    assert "the host key of 127.0.0.1 is not known" in fails(server.address(), unknown)
    empty.write_text(f"[127.0.0.1]:{server.port} {(server.folder / 'other.pub').read_text()}")
    assert "the host key of 127.0.0.1 has changed" in fails(server.address(), unknown)
    assert "refuses the connection" in fails("ssh://127.0.0.1:1")
    assert "there is no /none/python3 on 127.0.0.1" in fails(server.address(python="/none/python3"))
    (tmp_path / "old").write_text("#!/bin/sh\necho 'SyntaxError: invalid syntax' >&2; exit 1\n")
    (tmp_path / "old").chmod(0o755)
    assert "cannot run the agent: SyntaxError" in fails(server.address(python=tmp_path / "old"))
    assert "needs the OpenSSH client" in fails(server.address(), "/none/ssh")


@pytest.mark.parametrize(
    "address", ["ssh://", "ssh://a b:x", "ssh://-oProxyCommand=x", "ssh://host/path", "ssh://host?pyton=x"]
)
def test_an_address_that_is_not_valid(address) -> None:
    with pytest.raises(UserError, match="address"):
        find(address)


def test_a_board_that_vanishes_for_good_ends_in_one_sentence(server, model, monkeypatch) -> None:
    board = server.board(replace(loopback.QUICK, attempts=3))
    session = board.open(model)["model"]
    monkeypatch.setenv("EDGEOPT_SSH", f"{server.client} -o ProxyCommand=false")
    for number in server.connections():
        loopback.kill(number)
    with pytest.raises(UnreachableError, match=r"was lost, 3 times in a row"):
        session.run(FEEDS)
    board.close()


def test_a_runtime_that_is_missing_names_the_command(server, model, tmp_path: Path) -> None:
    block = ("import sys", "sys.modules['onnxruntime'] = None")
    board = server.board(python=python_with(tmp_path, *block))
    with board, pytest.raises(RuntimeFailure, match="onnxruntime") as failure:
        board.open(model)
    assert failure.value.hint is not None and "pip install onnxruntime" in failure.value.hint


def test_a_board_short_of_memory(server, model, tmp_path: Path) -> None:
    (tmp_path / "root" / "proc").mkdir(parents=True)
    (tmp_path / "root" / "proc" / "meminfo").write_text("MemTotal: 64 kB\nMemAvailable: 0 kB\n")
    board = server.board(python=python_with(tmp_path, EDGEOPT_BOARD_ROOT=str(tmp_path / "root")))
    with board, pytest.raises(RuntimeFailure, match="0 MB of memory free"):
        board.open(model)


def test_a_board_short_of_disk(server, model, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a tiny disk can be mounted by root alone")
    try:
        board = server.board(folder=small / "edgeopt")
        with board, pytest.raises(RuntimeFailure, match="MB of disk free") as failure:
            board.open(model)
        assert failure.value.hint is not None and "?folder=" in failure.value.hint
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_clock_that_is_wrong_changes_no_figure(server, model, tmp_path: Path) -> None:
    skew = ("import time", "_now = time.time", "time.time = lambda: _now() - 86400")
    with server.board(python=python_with(tmp_path, *skew)) as board:
        times = board.timer(board.open(model)["model"], FEEDS).time(5)
        assert all(0 < seconds < 10 for seconds in times)
        assert any("86400 s behind" in note or "86399 s behind" in note for note in board.notes)


def test_two_agents_share_the_folder_and_the_last_one_deletes_it(server, model) -> None:
    with server.board() as first:
        session = first.open(model)["model"]
        with server.board() as second:
            assert second.open(model)["model"].run(FEEDS)["logits"].shape == (2, 3)
            assert any("another edgeopt" in note for note in second.notes)
        assert not any("another edgeopt" in note for note in first.notes)
        assert server.left.is_dir()
        assert session.run(FEEDS)["logits"].shape == (2, 3)


def test_a_dead_client_leaves_nothing(server, model) -> None:
    program = (
        "import sys, time; sys.path.insert(0, 'tests/runners')\n"
        "import loopback; from edgeopt.runners.ssh import Ssh\n"
        f"board = Ssh({server.address()!r}, loopback.QUICK); board.open({str(model)!r})\n"
        "print('open', flush=True); time.sleep(600)\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    client = subprocess.Popen(
        [sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, env=environment
    )
    assert client.stdout is not None and client.stdout.readline() == b"open\n"
    assert server.agents()
    client.kill()
    client.wait()
    client.stdout.close()
    server.wait_until_clean(20)


def test_patience_is_for_people() -> None:
    patience = Patience()
    assert patience.silence > 3 * patience.ping
    board = Ssh("ssh://pi@Board:2222")
    assert board.command("true")[-2:] == ["Board", "true"]
    board.close()


def test_without_a_server_these_tests_say_why_they_are_skipped(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(loopback.shutil, "which", lambda *_, **__: None)
    with pytest.raises(loopback.Unavailable, match="apt install openssh-server"):
        loopback.start(tmp_path / "a")
