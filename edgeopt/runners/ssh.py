"""``ssh://user@host:port``: a board reached with the system's own OpenSSH client.

The user's configuration, agent, keys and jump hosts count. Connections share one login through a private
control socket. ``EDGEOPT_SSH`` gives another client or more options, such as ``ssh -F other_config``.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from edgeopt.errors import UnreachableError, UserError
from edgeopt.runners.board import Board
from edgeopt.runners.link import Lost, Patience

_FATAL = (
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "the host key of {host} has changed", "ssh-keygen -R {host}"),
    ("Host key verification failed", "the host key of {host} is not known", "{login}  # once, by hand"),
    ("Permission denied", "{host} refuses the login", "ssh-copy-id {target}"),
    ("Too many authentication failures", "{host} refuses the login", "ssh-copy-id {target}"),
    ("Could not resolve hostname", "there is no host {host}", None),
    ("Name or service not known", "there is no host {host}", None),
    ("Connection refused", "{host} refuses the connection: no SSH server listens there", None),
    ("No route to host", "there is no route to {host}", None),
    ("Bad configuration option", "the SSH configuration is not valid", None),
    ("UNPROTECTED PRIVATE KEY FILE", "the private key's file may be read by others", None),
)
"""What the client says, what it means, and what to do."""


class Ssh(Board):
    """A board reached by SSH.

    Args:
        address: ``ssh://[user@]host[:port][?python=PATH&folder=PATH]``; the host may be one of the user's
            SSH configuration.
        patience: How long things may take.

    Raises:
        UserError: The address is not valid.
    """

    scheme: ClassVar[str] = "ssh"

    def __init__(self, address: str, patience: Patience | None = None) -> None:
        super().__init__(address, patience)
        hint = "--on ssh://user@host, with :port where it is not 22"
        try:
            parts = urlsplit(self.address)
            port = parts.port
        except ValueError:
            raise UserError(f"the address {address!r} is not valid", hint=hint) from None
        names = (parts.hostname or "", parts.username or "")
        if not parts.hostname or parts.path.strip("/") or any(name.startswith("-") for name in names):
            raise UserError(f"the address {address!r} is not valid", hint=hint)
        self._host = parts.netloc.rpartition("@")[2]  # as it was written: urlsplit lowers the case
        if port is not None:
            self._host = self._host.rpartition(":")[0]
        self._host = self._host.strip("[]")
        self._user, self._port = parts.username, port
        self._shared: str | None = None

    def command(self, remote: str) -> list[str]:
        """The client with its options, never asking anything."""
        return [*self._client(), "-T", *self._login(), "--", self._host, remote]

    def _client(self) -> list[str]:
        if self._shared is None:
            # A socket's path is short by law, and macOS has long ones for temporary files.
            short = "/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir()
            for old in Path(short).glob("edgeopt-ssh-*"):  # left by a process that was killed
                with contextlib.suppress(OSError):
                    if old.stat().st_mtime < time.time() - 3600:
                        old.rmdir()  # only where it is empty, and ours
            self._shared = tempfile.mkdtemp(prefix="edgeopt-ssh-", dir=short)
        wait = max(1, int(self.patience.connect / 2))
        alive = max(1, int(self.patience.silence / 3))
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": wait,
            "ServerAliveInterval": alive,
            "ServerAliveCountMax": 2,
            "ControlMaster": "auto",
            "ControlPath": f"{self._shared}/%C",
            "ControlPersist": 10,
            "ClearAllForwardings": "yes",
            "RemoteCommand": "none",
            "RequestTTY": "no",
            "LogLevel": "ERROR",
        }
        command = shlex.split(os.environ.get("EDGEOPT_SSH", "ssh"))
        return [*command, *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]

    def _login(self) -> list[str]:
        words = ["-p", str(self._port)] if self._port else []
        return words + (["-l", self._user] if self._user else [])

    def explain(self, lost: Lost) -> UnreachableError | None:
        """What the client's words mean."""
        target = f"{self._user}@{self._host}" if self._user else self._host
        login = " ".join(["ssh", *(["-p", str(self._port)] if self._port else []), target])
        for words, meaning, hint in _FATAL:
            if words in lost.errors and lost.code in (255, None):  # the client's own words, not the board's
                said = next((line for line in lost.errors.splitlines() if words in line), "")
                names = {"host": self._host, "target": target, "login": login}
                return UnreachableError(
                    meaning.format(**names),
                    where=said.strip() or self.address,
                    hint=hint.format(**names) if hint else f"{login}  # shows whether it works by hand",
                )
        if self._supply.note is None and (lost.code == 127 or "edgeopt: no python" in lost.errors):
            named = self._python or "python3"
            return UnreachableError(
                f"there is no {named} on {self._host}",
                where=self.address,
                hint=f"install Python 3.6 or later there, name it ({self.address}?python=/path/to/python3), "
                "or run `edgeopt emulator setup`: its Python is then sent there",
            )
        if 0 < (lost.code or 0) < 128 and "did not start" in lost.reason:
            last = (lost.errors.splitlines() or ["it said nothing"])[-1]
            return UnreachableError(
                f"the Python of {self._host} cannot run the agent: {last}",
                where=self.address,
                hint="it must be 3.6 or later; name another with ?python=/path/to/python3",
            )
        if "cannot be started" in lost.reason:
            return UnreachableError(f"{lost.reason}: ssh:// needs the OpenSSH client")
        return None

    def forget(self) -> None:
        """Ends the shared login and deletes its socket."""
        if self._shared is None:
            return
        if any(Path(self._shared).iterdir()):
            command = [*self._client(), "-O", "exit", *self._login(), "--", self._host]
            # Where it does not answer it ends by itself, when it finds its connection dead.
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                subprocess.run(command, capture_output=True, timeout=3, start_new_session=True)
        shutil.rmtree(self._shared, ignore_errors=True)
        self._shared = None
