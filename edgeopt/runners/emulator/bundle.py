"""The emulator as one file, for machines without a network.

A gzipped tar whose first entry, ``bundle.json``, says what machine it was made on and gives the SHA-256 of
every file in it. It holds the parts as they lie in the emulator's folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from edgeopt.errors import IntegrityError, OutputError, UnreachableError, UserError
from edgeopt.runners.emulator.place import FORMAT, SETUP, Place
from edgeopt.runners.emulator.setup import locked
from edgeopt.steps import hash_file
from edgeopt.watch import QUIET, Watch


def write(place: Place, target: Path, watch: Watch = QUIET) -> None:
    """Writes the emulator that is set up into one file.

    Raises:
        UnreachableError: None is set up.
        OutputError: The file cannot be written.
    """
    parts = place.parts()
    if not place.has("aarch64"):
        raise UnreachableError("the emulator is not set up, so no bundle of it can be made", hint=SETUP)
    files = [path for name in parts for path in sorted((place.folder / name).rglob("*"))]
    digests = {
        path.relative_to(place.folder).as_posix(): hash_file(path)
        for path in files
        if path.is_file() and not path.is_symlink() and "__pycache__" not in path.parts
    }
    head = {
        "format": FORMAT,
        "machine": platform.machine().lower(),
        "parts": sorted(parts),
        "sha256": digests,
    }
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".new-", delete=False) as file:
            temporary = Path(file.name)
        try:
            with tarfile.open(temporary, "w:gz", compresslevel=6) as tar:
                text = json.dumps(head).encode()
                entry = tarfile.TarInfo("bundle.json")
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text))
                for path in watch.progress(files, "bundle", len(files)):
                    if path.is_symlink() or path.relative_to(place.folder).as_posix() in digests:
                        tar.add(path, path.relative_to(place.folder).as_posix(), filter=_anonymous)
            temporary.chmod(0o644)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as failure:
        raise OutputError(f"the bundle cannot be written: {failure.strerror}", where=str(target)) from failure


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def read(place: Place, source: Path, watch: Watch = QUIET) -> None:
    """Sets the emulator up from a bundle, in place of what is there.

    Raises:
        UserError: The file is no bundle, or of another kind of machine.
        IntegrityError: It is damaged.
        UnreachableError: There is no room for it.
    """
    if not source.is_file():
        raise UserError(f"there is no bundle {str(source)!r}")
    with locked(place):
        fresh = place.folder / ".new-bundle"
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            head = _unpack(source, fresh, watch)
            for name in head["parts"]:
                shutil.rmtree(place.folder / name, ignore_errors=True)
                (fresh / name).rename(place.folder / name)
        except OSError as failure:
            if isinstance(failure, tarfile.TarError | EOFError):
                raise
            raise UnreachableError(
                f"the bundle cannot be unpacked: {failure.strerror or failure}", where=str(place.folder)
            ) from failure
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _unpack(source: Path, fresh: Path, watch: Watch) -> dict[str, Any]:
    try:
        with tarfile.open(source, "r:gz") as tar:
            first = tar.next()
            content = tar.extractfile(first) if first is not None and first.name == "bundle.json" else None
            if content is None:
                raise UserError("the file is no bundle of the emulator", where=str(source))
            head: dict[str, Any] = json.loads(content.read())
            if head.get("format") != FORMAT or head.get("machine") != platform.machine().lower():
                raise UserError(
                    f"the bundle (format {head.get('format')}, for {head.get('machine')}) does not fit this "
                    f"machine (format {FORMAT}, {platform.machine()})",
                    where=str(source),
                )
            for entry in watch.progress(tar, "unpack", len(head["sha256"])):
                if entry.name != "bundle.json":
                    tar.extract(entry, fresh, filter="data")
    except (tarfile.TarError, EOFError, ValueError) as failure:
        raise IntegrityError(f"the bundle is damaged: {failure}", where=str(source)) from failure
    wrong = [name for name, digest in head["sha256"].items() if _digest(fresh / name) != digest]
    if wrong:
        raise IntegrityError(f"the bundle is damaged: {len(wrong)} files differ", where=wrong[0])
    return head


def _digest(path: Path) -> str:
    return hash_file(path) if path.is_file() else hashlib.sha256().hexdigest()
