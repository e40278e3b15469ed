"""Where the emulator's packages come from on three distributions, as their apt answered when tried."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgeopt.errors import UnreachableError
from edgeopt.runners.emulator import apt, debian, place, qemu, setup, sources, system
from edgeopt.runners.emulator.runner import Emulator

on_linux = pytest.mark.skipif(platform.system() != "Linux", reason="the emulator runs on Linux")


@dataclass(frozen=True)
class Release:
    """What a distribution's sources hold: versions of packages by name and architecture."""

    python: dict[str, str]
    qemu: str | None
    mirrors: list[str]
    keys: bool = True


BOOKWORM = Release({"arm64": "3.11.2-1+b1", "armhf": "3.11.2-1+b1"}, "7.2.22", [])
TRIXIE = Release(
    {"arm64": "3.13.5-1", "armhf": "3.13.5-1"},
    "10.0.13",
    ["Debian|Debian-Security|http://near/debian-security/", "Debian|Debian|http://near/debian/"],
)
NOBLE = Release({}, "8.2.2", ["Ubuntu|Ubuntu|http://near/ubuntu/"])
PLUGINS = ("7.2.22",)


@dataclass
class World:
    """A machine: what its own sources hold, whether Debian's mirror answers, and what was made from where."""

    own: Release
    second: Release | None = BOOKWORM
    made: list[str] = field(default_factory=list)
    entries: list[str] = field(default_factory=list)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    found = World(BOOKWORM)

    class Apt:
        def __init__(
            self, folder: Path, architecture: str, further: Path | None = None, *, alone: bool = False
        ) -> None:
            self.architecture, self.alone = architecture, alone
            if further is not None and alone:
                found.entries.append(further.read_text())

        @property
        def release(self) -> Release:
            return (found.second or NOBLE) if self.alone else found.own

        def update(self) -> None:
            if self.alone and found.second is None:
                raise UnreachableError("apt reaches no network")

        def candidate(self, package: str) -> str | None:
            return self.release.python.get(self.architecture)

        def indexes(self, form: str) -> list[str]:
            return self.release.mirrors

        def fetch(self, packages: Sequence[str]) -> list[Path]:
            if packages == [debian.KEYRING] and self.release.keys:
                return [Path(f"{debian.KEYRING}_2023_all.deb")]
            if packages == [qemu.PACKAGE] and self.release.qemu:
                return [Path(f"qemu-user_{self.release.qemu}_{self.architecture}.deb")]
            if packages != [qemu.PACKAGE] and (version := self.release.python.get(self.architecture)):
                return [Path(f"python3_{version}_{self.architecture}.deb")]
            raise apt.Missing(f"Unable to locate package {packages[0]}")

    def make_qemu(where: place.Place, packages: list[Path] | None, release: str = "") -> None:
        version = packages[0].name.split("_")[1] if packages else "5.2"
        found.made.append(f"qemu {version}")
        folder = where.folder / "qemu"
        folder.mkdir(parents=True, exist_ok=True)
        place.describe(folder, {"version": version, "plugins": version in PLUGINS})

    def make_system(where: place.Place, arch: str, packages: Sequence[Path]) -> None:
        found.made.append(f"{arch} {packages[0].name.split('_')[1]}")

    def unpack(packages: Sequence[Path], root: Path) -> None:
        (root / "usr/share/keyrings").mkdir(parents=True)
        (root / f"usr/share/keyrings/{debian.KEYRING}.gpg").write_text("keys")

    monkeypatch.setattr(apt, "Apt", Apt)
    monkeypatch.setattr(apt, "unpack", unpack)
    monkeypatch.setattr(debian, "KEYRINGS", tmp_path / "none")
    monkeypatch.setattr(qemu, "make", make_qemu)
    monkeypatch.setattr(system, "make", make_system)
    return found


def make(folder: Path, *archs: place.Arch, mirror: str | None = None) -> list[str]:
    wanted = ["amd64", *(system.DEBIAN[arch] for arch in archs)]
    source = sources.Sources(place.Place(folder), wanted, None, mirror)
    source.update()
    notes = source.make_qemu()
    for arch in archs:
        source.make_system(arch)
    return notes


def test_debian_12_has_everything(world: World, tmp_path: Path) -> None:
    assert make(tmp_path, "aarch64", "armv7") == []
    assert world.made == ["qemu 7.2.22", "aarch64 3.11.2-1+b1", "armv7 3.11.2-1+b1"]
    assert not world.entries


def test_debian_13_takes_what_it_lacks_from_debian_12_on_the_same_mirror(
    world: World, tmp_path: Path
) -> None:
    world.own = TRIXIE
    assert make(tmp_path, "aarch64", "armv7") == []
    assert world.made == ["qemu 10.0.13", "qemu 7.2.22", "aarch64 3.13.5-1", "armv7 3.11.2-1+b1"]
    for entry, architecture in zip(world.entries, ("amd64", "armhf"), strict=True):
        assert "URIs: http://near/debian/\nSuites: bookworm bookworm-updates\n" in entry
        assert f"Architectures: {architecture}\nSigned-By: {tmp_path}" in entry


def test_ubuntu_takes_the_arm_system_and_qemu_from_debian_12(world: World, tmp_path: Path) -> None:
    world.own = NOBLE
    assert make(tmp_path, "aarch64", mirror="http://far/debian") == []
    assert world.made == ["qemu 8.2.2", "qemu 7.2.22", "aarch64 3.11.2-1+b1"]
    assert all("URIs: http://far/debian\n" in entry for entry in world.entries)


def test_ubuntu_is_asked_for_a_mirror_of_debian(world: World, tmp_path: Path) -> None:
    world.own = NOBLE
    with pytest.raises(UnreachableError, match="no packages for arm64") as failure:
        make(tmp_path, "aarch64")
    assert "--debian-mirror URL" in (failure.value.hint or "")
    assert not world.entries


def test_the_keys_of_the_machine_come_first(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{debian.KEYRING}.pgp").write_text("keys")
    monkeypatch.setattr(debian, "KEYRINGS", tmp_path)
    world.own = TRIXIE
    make(tmp_path / "place")
    assert f"Signed-By: {tmp_path / debian.KEYRING}.pgp\n" in world.entries[0]


def test_without_debian_12_models_run_and_a_note_says_why_nothing_is_counted(
    world: World, tmp_path: Path
) -> None:
    world.own, world.second = TRIXIE, None
    (note,) = make(tmp_path, "aarch64")
    assert world.made == ["qemu 10.0.13", "aarch64 3.13.5-1"]
    assert "Debian 12 has a QEMU that loads plugins, but cannot be reached: apt reaches no network" in note


def test_without_keys_nothing_is_taken_on_trust(world: World, tmp_path: Path) -> None:
    world.own = Release({}, None, [], keys=False)
    with pytest.raises(UnreachableError, match="no packages for arm64") as failure:
        make(tmp_path, "aarch64")
    assert world.made == ["qemu 5.2"]  # of the Python package
    assert "--bundle" in (failure.value.hint or "")


# ---- apt itself


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for name in ("apt-get", "apt-cache", "dpkg-deb"):
        script(folder, name, "exit 0")
    return folder


def script(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_the_version_that_would_be_fetched(tools: Path, tmp_path: Path) -> None:
    script(tools, "apt-cache", r"printf 'qemu-user:\n  Installed: (none)\n  Candidate: 1:8.2.2+ds\n'")
    assert apt.Apt(tmp_path, "amd64").candidate("qemu-user") == "8.2.2+ds"
    script(tools, "apt-cache", r"printf 'x:\n  Installed: (none)\n  Candidate: (none)\n'")
    assert apt.Apt(tmp_path, "amd64").candidate("x") is None


def test_an_archive_without_the_architecture_is_asked_once(tools: Path, tmp_path: Path) -> None:
    said = "Err:7 http://near/ubuntu noble/main arm64 Packages\n  404  Not Found\n"
    said += "E: Some index files failed to download. They have been ignored, or old ones used instead."
    script(tools, "apt-get", f"echo x >> {tmp_path}/asked; echo {json.dumps(said)} >&2; exit 100")
    apt.Apt(tmp_path / "apt", "arm64").update()
    assert (tmp_path / "asked").read_text() == "x\n"


def test_a_second_source_that_cannot_be_trusted_is_refused(tools: Path, tmp_path: Path) -> None:
    said = "W: GPG error: http://near/debian bookworm InRelease: NO_PUBKEY 0E98404D386FA1D9"
    script(tools, "apt-get", f"echo {json.dumps(said)} >&2; exit 100")
    file = tmp_path / "bookworm.sources"
    file.write_text("Types: deb\n")
    with pytest.raises(UnreachableError, match="cannot read its sources") as failure:
        apt.Apt(tmp_path / "apt", "arm64", file, alone=True).update()
    assert "NO_PUBKEY" in str(failure.value.where)


def test_a_second_source_stands_alone(tools: Path, tmp_path: Path) -> None:
    file = tmp_path / "bookworm.sources"
    file.write_text("Types: deb\n")
    made = apt.Apt(tmp_path / "apt", "arm64", file, alone=True)
    made.prepare()
    assert [path.name for path in (tmp_path / "apt/sources").iterdir()] == ["edgeopt-further.sources"]
    assert "Dir::Etc::sourcelist=/dev/null" in made.options()


# ---- what a QEMU can do


@pytest.mark.parametrize(
    ("version", "options", "plugins"),
    [("7.2.22", "-plugin [file=]<file>", True), ("8.2.2", "", False), ("10.0.13", "-plugin x", False)],
)
def test_a_qemu_whose_plugins_speak_otherwise_counts_as_one_without(
    tmp_path: Path, version: str, options: str, plugins: bool
) -> None:
    (tmp_path / "bin").mkdir()
    text = f"case $1 in --version) echo qemu-aarch64 version {version};; -h) echo '{options}';; esac"
    script(tmp_path / "bin", "qemu-aarch64", text)
    assert qemu.look_at(tmp_path)["plugins"] is plugins


# ---- machines that are ARM themselves


@on_linux
def test_an_arm_machine_runs_natively(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    for name, content in {"aarch64-system": {"python": "3.11"}, "aarch64-runtimes": {}}.items():
        (tmp_path / name).mkdir()
        place.describe(tmp_path / name, content)
    root = tmp_path / "aarch64-system/root"
    (root / "lib/aarch64-linux-gnu").mkdir(parents=True)
    (root / "lib/ld-linux-aarch64.so.1").write_text("")
    with Emulator("emulator:cortex-a55", place=place.Place(tmp_path)) as runner:
        command = runner.command("")
        said: dict[str, Any] = runner.conditions()
        assert not runner.counts_instructions
    assert str(root / "lib/ld-linux-aarch64.so.1") in command
    assert not any("qemu" in word or word == "-plugin" for word in command)
    assert said["emulator"] == "none: this machine is ARM"


@on_linux
def test_an_arm_machine_fetches_no_qemu(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(system, "make_runtimes", lambda where, arch: world.made.append("runtimes"))
    assert setup.setup(place.Place(tmp_path)) == []
    assert world.made == ["aarch64 3.11.2-1+b1", "runtimes"]


def test_a_merged_usr_has_its_links(tools: Path, tmp_path: Path) -> None:
    script(tools, "dpkg-deb", "exit 0")
    (tmp_path / "root/usr/lib").mkdir(parents=True)
    apt.unpack([tmp_path / "libc6.deb"], tmp_path / "root")
    assert (tmp_path / "root/lib").readlink() == Path("usr/lib")
    (tmp_path / "older/lib").mkdir(parents=True)
    (tmp_path / "older/usr/lib").mkdir(parents=True)
    apt.unpack([], tmp_path / "older")
    assert not (tmp_path / "older/lib").is_symlink()
