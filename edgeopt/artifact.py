"""The artifact: a self-describing, checksummed folder.

Its identity is the digest of ``manifest.json``, which holds no time and no performance figure: two
runs with the same versions on one machine type give the same bytes. Evidence (``metrics.json``,
``ledger.json``, ``provenance.json``, reports) names that digest and may be added to later.

An artifact is written under a temporary name beside its destination and renamed when whole.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt import targets
from edgeopt.errors import IntegrityError, ModelError, OutputError
from edgeopt.session import Session, TensorSpec
from edgeopt.steps import hash_file
from edgeopt.targets.base import Emitted

MANIFEST = "manifest.json"
SCHEMA = 1


@dataclass(frozen=True)
class Artifact:
    """An artifact on disk.

    Attributes:
        folder: Where it lies.
        manifest: The data of its ``manifest.json``.
    """

    folder: Path
    manifest: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of ``manifest.json``: the artifact's identity."""
        return hash_file(self.folder / MANIFEST)

    @property
    def parts(self) -> dict[str, Mapping[str, Any]]:
        """The part manifests by name; a model of one part is the part ``model``."""
        parts: dict[str, Mapping[str, Any]] = self.manifest.get("parts") or {"model": self.manifest}
        return parts

    @property
    def size(self) -> int:
        """Bytes of the files with the role *model*."""
        return sum(file["bytes"] for file in self.manifest["files"] if file["role"] == "model")

    def open(self, threads: int = 1) -> dict[str, Session]:
        """Opens every part on this host.

        Raises:
            RuntimeFailure: The runtime cannot load the files.
            MissingExtra: The runtime is not installed.
        """
        target = targets.make(self.manifest["target"])
        return {name: target.open(self.folder, part, threads=threads) for name, part in self.parts.items()}

    def verify(self) -> None:
        """Checks every file against the manifest.

        Raises:
            IntegrityError: A file is missing or differs.
        """
        for file in self.manifest["files"]:
            path = self.folder / file["path"]
            if not path.is_file():
                raise IntegrityError(f"the artifact lacks the file {file['path']!r}", where=str(self.folder))
            if hash_file(path) != file["sha256"]:
                raise IntegrityError(
                    f"the file {file['path']!r} differs from the manifest",
                    where=str(self.folder),
                    hint="compile it again",
                )


def is_artifact(path: Path) -> bool:
    """Whether a folder is an artifact."""
    return (path / MANIFEST).is_file()


def open_artifact(path: Path) -> Artifact:
    """Opens an artifact's folder.

    Raises:
        ModelError: The folder is no artifact, or its manifest cannot be read.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{str(path)!r} is no artifact: it has no {MANIFEST}") from None
    except (OSError, ValueError) as failure:
        raise ModelError(f"cannot read the manifest of {str(path)!r}: {failure}") from None
    if manifest.get("schema") != SCHEMA:
        raise ModelError(f"the manifest of {str(path)!r} has schema {manifest.get('schema')!r}, not {SCHEMA}")
    return Artifact(path, manifest)


def part_manifest(
    emitted: Emitted,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    prefix: str = "",
    **contracts: Any,
) -> dict[str, Any]:
    """Describes one part: what a session needs, and the contracts of the model.

    Args:
        emitted: What the target wrote.
        inputs: The original model's inputs.
        outputs: Its outputs.
        prefix: The folder of the part within the artifact.
        contracts: Further entries.
    """
    return {
        "model": prefix + emitted.main,
        "inputs": [asdict(spec) for spec in inputs],
        "outputs": [asdict(spec) for spec in outputs],
        "adapters": [asdict(adapter) for adapter in emitted.adapters],
        **contracts,
    }


def write_manifest(
    folder: Path, head: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]], roles: Mapping[str, str]
) -> Artifact:
    """Writes ``manifest.json`` and ``SHA256SUMS`` for the files that lie in the folder.

    Args:
        folder: The artifact's folder, complete but for these two.
        head: Name, device, target, runtime.
        parts: The part manifests.
        roles: Every file's role by its relative path; sorted into the manifest.
    """
    files = [
        {
            "path": path,
            "role": role,
            "sha256": hash_file(folder / path),
            "bytes": (folder / path).stat().st_size,
        }
        for path, role in sorted(roles.items())
    ]
    single = len(parts) == 1
    body: dict[str, Any] = {"schema": SCHEMA, **head}
    if single:
        body.update(next(iter(parts.values())))
    else:
        body["model"] = {name: part["model"] for name, part in parts.items()}
        body["parts"] = dict(parts)
    body["files"] = files
    text = json.dumps(body, indent=2, sort_keys=True) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    sums = [f"{file['sha256']}  {file['path']}" for file in files]
    sums.append(f"{hash_file(folder / MANIFEST)}  {MANIFEST}")
    (folder / "SHA256SUMS").write_text("\n".join(sums) + "\n", encoding="utf-8")
    return open_artifact(folder)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an ``.npz`` whose bytes depend on the arrays alone."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **dict(arrays))
    path.write_bytes(buffer.getvalue())


@contextlib.contextmanager
def destination(folder: Path, *, force: bool = False) -> Iterator[Path]:
    """Gives a temporary folder that becomes ``folder`` when the block ends without error.

    An interrupted block leaves ``folder`` as it was. An existing folder is replaced only if it is an
    artifact or empty, or with ``force``.

    Raises:
        OutputError: The folder is not ours to replace, or cannot be written.
    """
    folder = folder.absolute()
    check_replaceable(folder, force)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(folder)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.{os.getpid()}.new-"))
    except OSError as failure:
        raise _unwritable(folder, failure) from failure
    try:
        yield temporary
        temporary.chmod(0o755)
        with _uninterrupted():
            if folder.exists():
                retired = Path(
                    tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.{os.getpid()}.old-")
                )
                folder.replace(retired / "old")
                temporary.replace(folder)
                shutil.rmtree(retired, ignore_errors=True)
            else:
                temporary.replace(folder)
    except OSError as failure:
        raise _unwritable(folder, failure) from failure
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(folder: Path, force: bool = False) -> None:
    """Checks that an output folder is absent, empty, an artifact of ours, or forced.

    Raises:
        OutputError: It is something else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError(f"{str(folder)!r} exists and is no folder", hint="name another with -o")
    if force or is_artifact(folder) or not any(folder.iterdir()):
        return
    raise OutputError(
        f"the folder {str(folder)!r} exists and was not written by edgeopt",
        hint="name another with -o, or overwrite it with --force",
    )


def _clear_leftovers(folder: Path) -> None:
    """Deletes what a killed process left beside the folder."""
    for path in folder.parent.glob(f".{folder.name}.*.???-*"):
        owner = path.name.removeprefix(f".{folder.name}.").split(".")[0]
        if owner.isdigit() and not _alive(int(owner)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Holds Ctrl-C back for the moment of renaming; it is delivered right after."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            raise KeyboardInterrupt


def _unwritable(folder: Path, failure: OSError) -> OutputError:
    return OutputError(
        f"cannot write the output: {failure.strerror or failure}",
        where=str(folder),
        hint="free space or name another folder with -o",
    )
