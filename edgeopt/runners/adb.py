"""``adb:SERIAL``: an Android device, or any board that runs adbd, reached with the ``adb`` client."""

from __future__ import annotations

from typing import ClassVar

from edgeopt.errors import UnreachableError, UserError
from edgeopt.runners.board import Board
from edgeopt.runners.link import Lost, Patience, Refused

_FATAL = (
    (
        "unauthorized",
        "the device {serial} has not allowed this computer",
        "unlock it and confirm the question",
    ),
    ("offline", "the device {serial} is offline", "adb reconnect"),
    ("not found", "there is no device {serial}", "adb devices"),
    ("no devices", "there is no device {serial}", "adb devices"),
    ("more than one device", "there are several devices", "adb devices"),
)


class Adb(Board):
    """A device reached by adb.

    Args:
        address: ``adb:SERIAL[?python=PATH&folder=PATH]``.
        patience: How long things may take.

    Raises:
        UserError: The address is not valid.
    """

    scheme: ClassVar[str] = "adb"
    default_folder: ClassVar[str | None] = "/data/local/tmp/edgeopt-board"
    pythons: ClassVar[tuple[str, ...]] = (
        "python3",
        "/data/local/tmp/python/bin/python3",
        "/data/data/com.termux/files/usr/bin/python3",
    )

    def __init__(self, address: str, patience: Patience | None = None) -> None:
        super().__init__(address, patience)
        self._serial = self.address.partition(":")[2].removeprefix("//")
        if not self._serial or self._serial.startswith("-"):
            raise UserError(
                f"the address {address!r} names no device", hint="--on adb:SERIAL, as `adb devices` shows it"
            )

    def command(self, remote: str) -> list[str]:
        """The client; -T keeps the stream free of a terminal's changes."""
        return ["adb", "-s", self._serial, "shell", "-T", "-e", "none", remote]

    def remedy(self, trouble: Lost | Refused) -> bool:
        """Sends a userland, unless it is the client that failed."""
        if isinstance(trouble, Lost) and any(words in trouble.errors for words, _, _ in _FATAL):
            return False
        return super().remedy(trouble)

    def explain(self, lost: Lost) -> UnreachableError | None:
        """What the client's words mean."""
        if self._supply.note is None and (lost.code == 127 or "edgeopt: no python" in lost.errors):
            named = self._python or "Python"
            return UnreachableError(
                f"the device {self._serial} has no {named}, which the agent needs",
                where="Android itself comes without one",
                hint="run `edgeopt emulator setup`: its Python is then sent there"
                if self._python is None
                else f"put one where adb's shell may start it: {self.address}?python=/data/local/tmp/python3",
            )
        for words, meaning, hint in _FATAL:
            if words in lost.errors:
                said = next(line for line in lost.errors.splitlines() if words in line)
                return UnreachableError(
                    meaning.format(serial=self._serial), where=said.removeprefix("adb: "), hint=hint
                )
        if "cannot be started" in lost.reason:
            return UnreachableError(f"{lost.reason}: adb: needs the client of Android's platform tools")
        if 0 < (lost.code or 0) < 128 and "did not start" in lost.reason:
            last = (lost.errors.splitlines() or ["it said nothing"])[-1]
            return UnreachableError(f"the Python of {self._serial} cannot run the agent: {last}")
        return None
