"""Packages of another architecture through the user's own apt, without root.

apt works on folders of its own here: nothing of the system's state is read but its sources and keys, and
nothing is changed. What it downloads it verifies.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from edgeopt.errors import UnreachableError, UserError
from edgeopt.runners.emulator.place import SETUP

_TROUBLE = (
    (
        ("No space left", "enough free space"),
        "there is no room on the disk for the emulator's packages",
        "free about 400 MB, or name another folder with --folder",
    ),
    (
        (
            "Could not resolve",
            "Temporary failure",
            "Could not connect",
            "Connection timed out",
            "Unable to connect",
        ),
        "apt reaches no network",
        f"{SETUP} --bundle FILE, with a bundle made on another machine",
    ),
)
"""What apt says, what it means, and what to do."""


class Missing(Exception):
    """The sources have no such package.

    Args:
        said: apt's own words.
    """


class Apt:
    """apt on private folders.

    Args:
        folder: Where its lists and downloads go.
        architecture: Debian's name for it. One for each: an archive that lacks one fails as a whole.
        sources: A file of further sources.
        alone: Those stand in the place of the machine's own.

    Raises:
        UnreachableError: There is no apt here.
        UserError: The file of sources is not there.
    """

    def __init__(
        self,
        folder: Path,
        architecture: str,
        sources: Path | None = None,
        *,
        alone: bool = False,
    ) -> None:
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise UnreachableError(
                    f"there is no {tool} on this machine, which fetches the ARM system",
                    hint=f"{SETUP} --bundle FILE, with a bundle made where there is one "
                    "(edgeopt emulator bundle FILE)",
                )
        self.folder, self.architecture = folder, architecture
        self.sources, self.alone = sources, alone
        if sources is not None and not sources.is_file():
            raise UserError(f"there is no file of sources {str(sources)!r}")

    def options(self) -> list[str]:
        """The options that keep apt to its folders."""
        values = {
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "APT::Sandbox::User": "",  # as root it would become a user who cannot write here
            "APT::Install-Recommends": "false",
            "Dir::State": self.folder / "state",
            "Dir::State::Lists": self.folder / "lists",
            "Dir::State::status": self.folder / "status",
            "Dir::Cache": self.folder,
            "Dir::Cache::archives": self.folder / "archives",
            "Debug::NoLocking": "1",
            "Acquire::Languages": "none",
            "Acquire::PDiffs": "false",
            "Acquire::Retries": "3",
            "DPkg::Options::": "",
        }
        if self.sources is not None:
            values["Dir::Etc::sourceparts"] = self.folder / "sources"
        if self.alone:
            values["Dir::Etc::sourcelist"] = "/dev/null"
        return [word for key, value in values.items() for word in ("-o", f"{key}={value}")]

    def prepare(self) -> None:
        """Makes the folders, with the user's sources and the further ones."""
        for name in ("state", "lists/partial", "archives/partial"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").write_text("", encoding="utf-8")  # nothing is installed: all is fetched
        if self.sources is not None:
            own = self.folder / "sources"
            own.mkdir(exist_ok=True)
            usual = Path("/etc/apt/sources.list.d")
            theirs = [*sorted(usual.glob("*.list")), *sorted(usual.glob("*.sources"))]
            for path in [*(theirs if not self.alone else ()), self.sources]:
                suffix = path.suffix if path.suffix in (".list", ".sources") else ".list"
                name = path.stem if path is not self.sources else "edgeopt-further"
                shutil.copyfile(path, own / f"{name}{suffix}")

    def update(self) -> None:
        """Fetches the lists of packages; sources that fail are missed later, if they are needed.

        Raises:
            UnreachableError: There is no network, or no sources but ones that fail.
        """
        self.prepare()
        for _ in range(3):  # a mirror in the midst of its own update gives lists that do not match
            done = self._run("update")
            if done.returncode == 0 and "Some index files failed" not in done.stderr:
                return
            _explain(done.stderr)
            if "404 " in done.stderr:  # an archive without the architecture, as Ubuntu's: it stays so
                break
        if self.alone:
            said = [line[3:] for line in done.stderr.splitlines() if line.startswith(("E: ", "W: "))]
            raise UnreachableError(
                "apt cannot read its sources",
                where=said[0] if said else str(self.sources),
                hint=f"{SETUP} --bundle FILE, with a bundle made on another machine",
            )

    def candidate(self, package: str) -> str | None:
        """The version of a package that would be fetched; ``None`` where the sources have none."""
        for line in self._run("policy", package, tool="apt-cache").stdout.splitlines():
            word, _, version = line.strip().partition(": ")
            if word == "Candidate" and version != "(none)":
                return version.partition(":")[2] or version
        return None

    def indexes(self, form: str) -> list[str]:
        """One line for every list of packages, in apt's own words for such a line.

        Args:
            form: Such as ``$(ORIGIN) $(REPO_URI)``; see apt-get(8) on indextargets.
        """
        return self._run("indextargets", "--format", form, "Created-By: Packages").stdout.splitlines()

    def fetch(self, packages: Sequence[str]) -> list[Path]:
        """Downloads packages and all that they depend on.

        Returns:
            Every file of the archive's folder, in the order of their names.

        Raises:
            Missing: The sources do not have them.
            UnreachableError: apt fails, without network or room for instance.
        """
        before = set((self.folder / "archives").glob("*.deb"))
        done = self._run("--yes", "--download-only", "install", *packages)
        if done.returncode != 0:
            said = [line[3:] for line in done.stderr.splitlines() if line.startswith("E: ")]
            _explain(done.stderr)
            if any("Unable to locate" in line or "no installation candidate" in line for line in said):
                raise Missing(said[0])
            raise UnreachableError(
                "apt cannot fetch the emulator's packages",
                where=said[0] if said else None,
                hint=f"{SETUP}, again",
            )
        return sorted(set((self.folder / "archives").glob("*.deb")) | before)

    def _run(self, *words: str, tool: str = "apt-get") -> subprocess.CompletedProcess[str]:
        command = [tool, *self.options(), "-q", *words]
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        )


def unpack(packages: Sequence[Path], root: Path) -> None:
    """Unpacks packages into a root; their own scripts do not run.

    Raises:
        UnreachableError: One cannot be unpacked.
    """
    root.mkdir(parents=True, exist_ok=True)
    for package in packages:
        done = subprocess.run(
            ["dpkg-deb", "--extract", package, root],
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
        )
        if done.returncode != 0:
            _explain(done.stderr)
            raise UnreachableError(
                f"the package {package.name} cannot be unpacked", where=done.stderr.strip()
            )
    for name in ("lib", "lib64"):  # where /usr is merged, these links are a package's that nothing depends on
        if (root / "usr" / name).is_dir() and not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    confine(root)


def confine(root: Path) -> None:
    """Makes absolute links relative ones, so that none leads to this machine's own files; dead ones go."""
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            target = path.readlink()
            if target.is_absolute():
                path.unlink()
                path.symlink_to(os.path.relpath(root / target.relative_to("/"), path.parent))
            if not path.exists():
                path.unlink()


def name_of(package: Path) -> str:
    """A package's name from that of its file."""
    return package.name.partition("_")[0]


def debian_arch(package: Path) -> str:
    """Its architecture in Debian's terms; ``all`` for those that have none."""
    return package.stem.rpartition("_")[2]


def _explain(said: str) -> None:
    for words, meaning, hint in _TROUBLE:
        if found := next((word for word in words if word in said), None):
            line = next(line for line in said.splitlines() if found in line)
            raise UnreachableError(meaning, where=line.strip()[:200], hint=hint)
