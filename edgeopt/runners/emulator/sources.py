"""Where packages come from: the machine's own apt, and Debian 12 for what that does not offer."""

from __future__ import annotations

from pathlib import Path

from edgeopt.errors import UnreachableError
from edgeopt.runners.emulator import apt, debian, qemu, system
from edgeopt.runners.emulator.place import SETUP, Arch, Place


class Sources:
    """The user's apt, prepared once.

    Args:
        place: The emulator's folder; downloads go there until it is whole.
        architectures: Debian's names, this machine's own first.
        further: A file of sources beside the machine's own.
        mirror: The address of a mirror of Debian, where the machine's own sources name none.

    Raises:
        UnreachableError: There is no apt here.
        UserError: The file of sources is not there.
    """

    def __init__(
        self, place: Place, architectures: list[str], further: Path | None, mirror: str | None = None
    ) -> None:
        self._place, self._mirror = place, mirror
        self._downloads = place.folder / "downloads"
        self._machine = architectures[0]
        self._own = {name: apt.Apt(self._downloads / name, name, further) for name in architectures}

    def update(self) -> None:
        """Reads the lists of packages of the machine's own sources."""
        for own in self._own.values():
            own.update()

    def make_qemu(self) -> list[str]:
        """Makes QEMU from the machine's own sources where it loads plugins, else from Debian 12.

        Returns:
            Why there is none that loads plugins, where there is none.
        """
        packages = self._qemu_of(self._own[self._machine])
        if packages is not None:
            qemu.make(self._place, packages)
            if (self._place.part("qemu") or {})["plugins"]:
                return []
        try:
            fetched = self._qemu_of(self._second(self._machine))
        except (apt.Missing, UnreachableError) as failure:
            if packages is None:
                qemu.make(self._place, None)
            return [f"{debian.NAME} has a QEMU that loads plugins, but cannot be reached: {failure}"]
        if fetched is not None or packages is None:
            qemu.make(self._place, fetched, debian.NAME)
        return []

    def _second(self, architecture: str) -> apt.Apt:
        return debian.second(self._own[self._machine], architecture, self._downloads, self._mirror)

    def _qemu_of(self, source: apt.Apt) -> list[Path] | None:
        """Downloads QEMU; ``None`` where the sources have none."""
        try:
            return source.fetch([qemu.PACKAGE])
        except apt.Missing:
            return None

    def make_system(self, arch: Arch) -> None:
        """Makes the system of an architecture.

        Raises:
            UnreachableError: Neither the machine's own sources nor Debian 12 give one that runtimes fit.
        """
        name, packages = system.DEBIAN[arch], system.PACKAGES[arch]
        try:
            own = self._own[name]
            chosen = self._second(name) if debian.is_needed_for(arch, own, packages[0]) else own
            system.make(self._place, arch, chosen.fetch(packages))
        except apt.Missing as missing:
            raise UnreachableError(
                f"apt's sources have no packages for {name}",
                where=str(missing),
                hint=f"{SETUP} --debian-mirror URL, or --sources FILE, naming sources that have them (Ubuntu "
                "keeps ARM on a mirror of its own, ports), or --bundle FILE, made on another machine",
            ) from None
