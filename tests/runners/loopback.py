"""A real OpenSSH server on loopback, with keys, a configuration and a home of its own."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from edgeopt.runners.link import Patience
from edgeopt.runners.ssh import Ssh

QUICK = Patience(connect=30, silence=10, answer=120, ping=0.5, grace=1.0, attempts=6, pause=0.05)
"""Patience for a board on this very machine."""


TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[batch, 3] features) => (float[batch, 3] logits) { logits = %s (features) }
"""
"""A model of one operator."""


class Unavailable(Exception):
    """There is no OpenSSH server to start here."""


@dataclass
class Server:
    """An SSH server that listens on 127.0.0.1 alone.

    Attributes:
        port: Its port.
        folder: Keys, configuration and log.
        home: The user's home, as sessions of the server see it.
        process: The process that listens.
    """

    port: int
    folder: Path
    home: Path
    process: subprocess.Popen[bytes]

    @property
    def client(self) -> str:
        """The client's command with its own keys: what ``EDGEOPT_SSH`` is set to."""
        return f"ssh -F {shlex.quote(str(self.folder / 'ssh_config'))}"

    @property
    def left(self) -> Path:
        """Where the agent keeps its files."""
        return self.home / ".edgeopt-board"

    def address(self, **options: object) -> str:
        options.setdefault("python", sys.executable)
        query = "&".join(f"{key}={value}" for key, value in options.items())
        return f"ssh://127.0.0.1:{self.port}?{query}"

    def board(self, patience: Patience = QUICK, **options: object) -> Ssh:
        return Ssh(self.address(**options), patience)

    def agents(self) -> list[int]:
        """The processes of agents of this home."""
        return self._ours(b"edgeopt-agent")

    def cleaners(self) -> list[int]:
        """The processes that delete what agents leave."""
        return self._ours(b"time.monotonic() + grace")

    def _ours(self, mark: bytes) -> list[int]:
        home = f"HOME={self.home}".encode()
        found = []
        for number in _processes():
            words = _read(number, "cmdline").split(b"\0")
            ours = any(mark in word for word in words)
            if ours and not words[0].endswith(b"sh") and home in _read(number, "environ").split(b"\0"):
                found.append(number)
        return found

    def connections(self) -> list[int]:
        """The server's processes that serve one connection each."""
        return [number for number in _descendants(self.process.pid) if b"sshd" in _read(number, "cmdline")]

    def clients(self) -> list[int]:
        """The clients' processes, the one that shares its login among them."""
        mine = str(self.folder / "ssh_config").encode()
        sockets = _sockets_to(self.port)
        return [
            number
            for number in _processes()
            if (words := _read(number, "cmdline")).startswith(b"ssh")
            and (mine in words or (b"[mux]" in words and sockets & _open_files(number)))
        ]

    def wait_until_clean(self, seconds: float = 30.0) -> None:
        """Waits until no agent or cleaner runs and no file is left.

        Raises:
            AssertionError: There still are some.
        """
        end = time.monotonic() + seconds
        while (agents := self.agents() + self.cleaners()) or list(self.home.iterdir()):
            if time.monotonic() > end:
                left = [folder for folder, _, _ in os.walk(self.home)]  # files may vanish meanwhile
                raise AssertionError(f"left behind: processes {agents}, folders {left}")
            time.sleep(0.05)

    def stop(self) -> None:
        for number in [*self.agents(), *self.cleaners(), *self.connections(), self.process.pid]:
            kill(number)
        self.process.wait()


def start(folder: Path) -> Server:
    """Starts a server.

    Raises:
        Unavailable: There is no ``sshd`` or ``ssh``, or it does not start.
    """
    found = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if found is None or shutil.which("ssh") is None:
        raise Unavailable("needs an OpenSSH server: apt install openssh-server")
    home = folder / "home"
    home.mkdir(parents=True)
    for name in ("host", "user", "other"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host'}\n"
        f"AuthorizedKeysFile {folder / 'authorized'}\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
        f"PidFile none\nMaxStartups 100\nSetEnv HOME={home}\n"
    )
    (folder / "ssh_config").write_text(
        f"Host *\n  User {getpass.getuser()}\n  IdentityFile {folder / 'user'}\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {folder / 'known'}\n  GlobalKnownHostsFile none\n  StrictHostKeyChecking yes\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([found, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    server = Server(port, folder, home, process)
    command = [*shlex.split(server.client), "-o", "BatchMode=yes", "-p", str(port), "127.0.0.1", "true"]
    told = ""
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                done = subprocess.run(command, capture_output=True, text=True, timeout=60)
                if done.returncode == 0:
                    return server
                told = done.stderr  # a locked account, a shell that is none
                break
        if process.poll() is not None:
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    said = (told or (folder / "log").read_text()).strip().splitlines() or ["it said nothing"]
    raise Unavailable(f"nobody can log in to an OpenSSH server of ours here: {said[-1]}")


def kill(number: int, kind: int = signal.SIGKILL) -> None:
    """Signals a process that may be gone already."""
    try:
        os.kill(number, kind)
    except ProcessLookupError:
        return


def _processes() -> list[int]:
    return sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _read(number: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{number}/{name}").read_bytes()
    except OSError:
        return b""


def _sockets_to(port: int) -> set[str]:
    """The sockets of this machine that are connected to a port of 127.0.0.1."""
    remote = f"0100007F:{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return {f"socket:[{row[9]}]" for row in rows if row[2] == remote}


def _open_files(number: int) -> set[str]:
    try:
        return {str(path.readlink()) for path in Path(f"/proc/{number}/fd").iterdir()}
    except OSError:
        return set()


def _descendants(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for number in _processes():
        stat = _read(number, "stat").rpartition(b")")[2].split()
        if len(stat) > 1:
            parents[number] = int(stat[1])
    found = {root}
    while more := {number for number, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {root})
