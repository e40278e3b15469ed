"""When a board is sent a userland, and where on the board it lies."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable

from edgeopt.errors import RuntimeFailure, UnreachableError, UserError, nearest
from edgeopt.runners import userland
from edgeopt.runners.link import Lost, Patience, Refused

MODES = ("auto", "yes", "keep", "no")
"""When it is needed; always; always, and not deleted afterwards; never."""

HOME = "~/.edgeopt-board"
"""The agent's own folder where none is named."""

SENDS = 10
"""How often it may arrive in whole and be gone again: whoever uses the board beside us may delete it."""


class Supply:
    """The userland of one board.

    Args:
        command: Makes the client's command from the board's side of it.
        mode: One of ``MODES``.
        folder: The agent's own folder on the board; ``None`` is ``HOME``.
        patience: How long things may take.

    Raises:
        UserError: There is no such mode.
    """

    def __init__(
        self, command: Callable[[str], list[str]], mode: str, folder: str | None, patience: Patience
    ) -> None:
        if mode not in MODES:
            raise UserError(
                f"a userland is sent {', '.join(MODES)}, and not {mode!r}", nearest=nearest(mode, MODES)
            )
        self._command, self._mode, self._patience = command, mode, patience
        self._folder = words(f"{folder or HOME}/userlands" if mode != "keep" else kept(folder))
        self._archive: userland.Archive | None = None
        self._sends = 0
        self._why = ""

    @property
    def note(self) -> str | None:
        """A sentence for the reader of figures, where a userland was used."""
        if self._archive is None:
            return None
        where = f"; it is kept in {self._folder}" if self._mode == "keep" else ""
        size = f"{self._archive.size >> 20} MB"
        return f"{self._why}the runtime ran in a userland of {size} that was sent to the board{where}"

    def start(self) -> str | None:
        """The command that starts an agent in the userland; ``None`` where the board's own Python will do.

        Raises:
            RuntimeFailure: One was asked for, and this machine has none.
        """
        if self._archive is None and self._mode in ("yes", "keep") and not self._take(""):
            raise RuntimeFailure(
                "there is no userland on this machine to send to the board", hint="edgeopt emulator setup"
            )
        return None if self._archive is None else self._archive.start(self._folder)

    def remedy(self, trouble: Lost | Refused) -> bool:
        """Sends a userland where the trouble is that there is none, or takes one where it would help.

        Raises:
            Lost: The connection was lost on the way.
            RuntimeFailure: The board cannot take it.
        """
        if self._mode == "no":
            return False
        if isinstance(trouble, Lost) and userland.MISSING in trouble.errors and self._archive is not None:
            return self._send(self._archive)
        why = _helps(trouble)
        return bool(why) and self._archive is None and self._take(f"{why}: ")

    def _take(self, why: str) -> bool:
        found = userland.find()
        if found is None:
            return False
        self._archive, self._why = found.archive(), why
        return True

    def _send(self, archive: userland.Archive) -> bool:
        if self._sends >= SENDS:
            raise UnreachableError("the userland that was sent to the board vanished again and again")
        grace = None if self._mode == "keep" else self._patience.grace
        userland.push(self._command(archive.receive(self._folder, grace)), archive, self._patience)
        self._sends += 1
        return True


def _helps(trouble: Lost | Refused) -> str:
    """Why a userland would help; "" where it would not."""
    if isinstance(trouble, Refused):
        old = trouble.kind == "runtime-missing" and trouble.details.get("broken")
        return "the board's C library is too old" if old and "GLIBC" in trouble.message else ""
    if trouble.code == 127 or "edgeopt: no python" in trouble.errors:
        return "the board has no Python"
    started = trouble.code is not None and 0 < trouble.code < 127 and "did not start" in trouble.reason
    return "the board's Python cannot run the agent" if started else ""


def words(path: str) -> str:
    """A path for the board's shell, with ~ for its home."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


def kept(folder: str | None) -> str:
    """Where userlands lie that are not deleted, beside the agent's own folder."""
    return f"{folder or HOME}-userlands"


def clean(command: list[str], patience: Patience) -> bool:
    """Runs ``removal`` on a board; whether there was anything.

    Raises:
        Lost: The connection is gone.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=patience.answer, stdin=subprocess.DEVNULL, check=False
        )
    except OSError as failure:
        raise Lost(f"{command[0]} cannot be started: {failure.strerror}") from failure
    except subprocess.TimeoutExpired as failure:
        raise Lost(f"no answer within {patience.answer:g} s") from failure
    if done.returncode != 0:
        raise Lost("the connection was closed", done.returncode, done.stderr.decode("utf-8", "replace"))
    return b"removed" in done.stdout


def removal(folder: str | None) -> str:
    """The command that deletes the userlands that were kept."""
    script = f'd={words(kept(folder))}; [ -e "$d" ] || exit 0; rm -rf "$d" && echo removed'
    return f"exec sh -c {shlex.quote(script)}"
