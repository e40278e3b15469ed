"""A userland for boards whose own will not do: a C library, a Python and the runtimes, in one archive.

Android has no Python, and an old board's C library may be older than any runtime's wheels want. Such a board
is sent the aarch64 system that ``edgeopt emulator setup`` made on this machine, and its Python is started
through the userland's own loader (``ld-linux-aarch64.so.1 --library-path ...``), so that nothing of the
board's is used but its kernel, a shell, ``tar`` and ``gzip``.

It lies in the agent's own folder and is deleted with it. With ``?userland=keep`` it lies beside that folder
under the digest of its content, and is sent but once; ``edgeopt devices clean`` deletes it.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import select
import shlex
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeopt.errors import RuntimeFailure
from edgeopt.runners.link import BOOT, Lost, Patience
from edgeopt.steps import default_folder, hash_file

MISSING = "edgeopt: no userland"
"""What the start command says where the userland is not there, or no longer."""

WRONG = "edgeopt: the board is a "
"""What the push says on a board of another kind."""

MACHINES = {"aarch64": "aarch64|arm64", "x86_64": "x86_64|amd64"}
"""What ``uname -m`` says, as a pattern of the shell."""


@dataclass(frozen=True, slots=True)
class Userland:
    """What a userland is made of.

    Attributes:
        arch: The machine that it is for.
        root: A folder with ``lib`` and ``usr``, as packages lay them out.
        site: A folder of Python packages: the runtimes and numpy.
        loader: The loader's path below the root.
        python: The interpreter's path below the root.
    """

    arch: str
    root: Path
    site: Path
    loader: str
    python: str

    @property
    def libraries(self) -> list[str]:
        """The folders of its libraries, below the root."""
        found = [*self.root.glob("lib/*-linux-*"), *self.root.glob("usr/lib/*-linux-*")]
        return sorted(path.relative_to(self.root).as_posix() for path in found if path.is_dir())

    def archive(self, folder: Path | None = None) -> Archive:
        """Packs it, once: the same content gives the same bytes.

        Args:
            folder: Where archives are kept; by default edgeopt's cache.
        """
        kept = (folder or default_folder() / "userlands") / f"{self._digest()[:32]}.tar.gz"
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            fresh = kept.with_suffix(f".{os.getpid()}")
            try:
                self._pack(fresh)
                fresh.rename(kept)
            finally:
                fresh.unlink(missing_ok=True)
        return Archive(self, kept, hash_file(kept), kept.stat().st_size)

    def _entries(self) -> Iterator[tuple[str, Path]]:
        for name, top in (("root", self.root), ("site", self.site)):
            for path in sorted(top.rglob("*")):
                if "__pycache__" not in path.parts:
                    yield f"{name}/{path.relative_to(top).as_posix()}", path

    def _digest(self) -> str:
        """Of names, sizes and times, which is much quicker than of the content."""
        found = hashlib.sha256(f"{self.arch} {self.loader} {self.python}".encode())
        for name, path in self._entries():
            info = path.lstat()
            found.update(f"{name} {info.st_size} {info.st_mtime_ns}\n".encode())
        return found.hexdigest()

    def _pack(self, target: Path) -> None:
        def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = ""
            entry.mode |= 0o600
            return entry

        with (
            target.open("wb") as file,
            gzip.GzipFile("", "wb", compresslevel=4, fileobj=file, mtime=0) as packed,
            tarfile.open(mode="w", fileobj=packed, format=tarfile.GNU_FORMAT) as archive,
        ):
            for name, path in self._entries():
                archive.add(path, name, recursive=False, filter=plain)


@dataclass(frozen=True, slots=True)
class Archive:
    """A packed userland.

    Attributes:
        userland: What it holds.
        path: The file, a tar archive in gzip.
        sha256: Its digest, which names its folder on boards.
        size: Its bytes.
    """

    userland: Userland
    path: Path
    sha256: str
    size: int

    def start(self, folder: str) -> str:
        """The command that starts the agent in the userland's Python.

        Args:
            folder: The folder of userlands on the board, in words of its shell.
        """
        it = self.userland
        libraries = ":".join(f"$u/root/{path}" for path in it.libraries)
        # The agent starts one more process of its Python when it is cut off.
        script = (
            f'u={folder}/{self.sha256}; [ -f "$u/whole" ] || {{ echo "{MISSING}" >&2; exit 126; }}; '
            "unset LD_LIBRARY_PATH LD_PRELOAD PYTHONHOME PYTHONSTARTUP; "
            'export PYTHONPATH="$u/site" PYTHONUTF8=1 PYTHONDONTWRITEBYTECODE=1; '
            f'set -- "$u/root/{it.loader}" --library-path "{libraries}" "$u/root/{it.python}"; '
            'export EDGEOPT_START="$1\n$2\n$3\n$4"; '
            f'exec "$@" -u -c {shlex.quote(BOOT)}'
        )
        return f"exec sh -c {shlex.quote(script)}"

    def receive(self, folder: str, grace: float | None) -> str:
        """The command that takes the archive on its stdin, checks it and unpacks it.

        Args:
            folder: The folder of userlands on the board, in words of its shell.
            grace: Seconds after which it is deleted again where no agent has come to look after it;
                ``None`` keeps it.
        """
        watch, empty = "", 'rmdir "$d" 2>/dev/null'
        if grace is not None:
            empty += ' && rmdir "${d%/*}" 2>/dev/null'  # the agent's own folder, where no agent is in it
            # Where the connection is lost before an agent runs, nobody else would delete it.
            watch = (
                f'(i={int(grace + 60)}; l="${{d%/*}}/lock"; '
                'while [ $i -gt 0 ] && [ -e "$d" ] && [ ! -e "$l" ]; do sleep 1; i=$((i-1)); done; '
                '[ -e "$l" ] || { rm -rf "$d"; rmdir "${d%/*}"; }) </dev/null >/dev/null 2>&1 & '
            )
        script = (
            f'd={folder}; case "$(uname -m)" in {MACHINES[self.userland.arch]}) ;; '
            f'*) echo "{WRONG}$(uname -m)" >&2; exit 65;; esac; '
            'umask 077; mkdir -p "$d" || exit 66; cd "$d" && d=$(pwd) || exit 66; n=new.$$; '
            f'fail() {{ rm -rf $n $n.gz; cd /; {empty}; [ -z "$2" ] || echo "edgeopt: $2" >&2; exit $1; }}; '
            "rm -rf $n $n.gz; mkdir $n && cat > $n.gz || fail 66; "
            f'[ "$(wc -c < $n.gz)" -eq {self.size} ] || fail 67 "the archive is not whole"; '
            "if command -v sha256sum >/dev/null 2>&1; then "
            f'case "$(sha256sum $n.gz)" in {self.sha256}*) ;; '
            '*) fail 67 "the archive is damaged";; esac; fi; '
            "gzip -dc $n.gz | (cd $n && tar -xf -) && : > $n/whole && rm $n.gz || fail 68; "
            f"if [ -f {self.sha256}/whole ]; then rm -rf $n; else mv $n {self.sha256} || fail 68; fi; "
            f"{watch}:"
        )
        return f"exec sh -c {shlex.quote(script)}"


def find() -> Userland | None:
    """The aarch64 userland of this machine; ``None`` where the emulator is not set up."""
    from edgeopt.runners.emulator.place import find_place  # an emulated board is a board too

    place = find_place()
    system = place.part("aarch64-system")
    if system is None or place.part("aarch64-runtimes") is None:
        return None
    root = place.root("aarch64")
    loader = next(iter(sorted(root.glob("lib/ld-linux-*.so.*"))), None)
    if loader is None:
        return None
    python = f"usr/bin/python{system['python']}"
    return Userland("aarch64", root, place.site("aarch64"), loader.relative_to(root).as_posix(), python)


def push(command: Sequence[str], archive: Archive, patience: Patience) -> None:
    """Sends an archive to a board.

    Args:
        command: The client with the board's side, ``Archive.receive``.
        archive: What is sent.
        patience: How long the board may take nothing, and how long unpacking may take.

    Raises:
        Lost: The connection is gone.
        RuntimeFailure: The board cannot take it.
    """
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as failure:
        raise Lost(f"{command[0]} cannot be started: {failure.strerror}") from failure
    assert process.stdin is not None and process.stderr is not None
    try:
        whole = _pour(process, archive.path, patience.silence)
        process.stdin.close()
        said = _end(process, patience)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stderr.close()
    if process.returncode == 0 and whole:
        return
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "")
    if process.returncode == 65 and WRONG in said:
        machine = said.partition(WRONG)[2].split()[0]
        raise RuntimeFailure(f"the board is a {machine}, and the userland is for {archive.userland.arch}")
    if process.returncode in (66, 68):
        raise RuntimeFailure(
            f"the board cannot take the userland of {archive.size >> 20} MB: {last}",
            hint="free some of its disk, or name another folder: ?folder=/path",
        )
    raise Lost("the connection was closed", process.returncode, said)


def _pour(process: subprocess.Popen[bytes], path: Path, silence: float) -> bool:
    """Writes a file to a process as long as it keeps taking some; whether all of it was taken."""
    assert process.stdin is not None
    number = process.stdin.fileno()
    os.set_blocking(number, False)
    with path.open("rb") as file:
        view = memoryview(b"")
        while len(view) or len(view := memoryview(file.read(1 << 20))):
            if not select.select([], [number], [], silence)[1]:
                raise Lost(f"it has taken nothing for {silence:g} s")
            try:
                view = view[os.write(number, view) :]
            except BlockingIOError:
                continue
            except OSError:
                return False  # its end, and what it said, tell why
    return True


def _end(process: subprocess.Popen[bytes], patience: Patience) -> str:
    """Waits for the end of a process and returns what it said on stderr."""
    assert process.stderr is not None
    said, deadline = b"", time.monotonic() + patience.answer
    while time.monotonic() < deadline:
        if select.select([process.stderr], [], [], 1.0)[0]:
            piece = os.read(process.stderr.fileno(), 1 << 16)
            said += piece
            if not piece:
                process.wait(max(1.0, deadline - time.monotonic()))
                return said.decode("utf-8", "replace")
        elif process.poll() is not None:
            return said.decode("utf-8", "replace")
    raise Lost(f"no answer within {patience.answer:g} s")
