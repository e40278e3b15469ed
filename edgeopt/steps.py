"""The content-addressed store of steps and judgements.

A step is one pass applied to one input; its key is a digest of everything that its output depends
on, so a stored step is as good as a fresh one. Cache, ledger and resuming are views of this store.
A judgement is kept the same way.

Large tensors are kept once, as blobs named by their content; a stored model points to the user's own
file or to blobs, so that unchanged weights cost nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from edgeopt.errors import OutputError

BLOB_BYTES = 2**20
"""Tensors above this size become blobs of their own."""

PARTS = ("entries", "blobs", "calls")
"""What the store's folder holds of it; other rooms may keep folders of their own beside these."""


class Store:
    """Steps and judgements on disk.

    Every entry is written under a temporary name and renamed, so that a killed process leaves no
    half entry; two processes may share one store.

    Args:
        folder: Where it lies; by default ``$EDGEOPT_CACHE`` or the user's cache folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()

    def record(self, key: str) -> dict[str, Any] | None:
        """Returns the JSON record of an entry, or ``None``; an unreadable one counts as absent."""
        try:
            data = json.loads((self._entry(key) / "record.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return data if isinstance(data, dict) else None

    def model(self, key: str) -> ir.Model | None:
        """Returns the model of an entry, its large tensors mapped from disk, or ``None``."""
        if not self.holds(key):
            return None
        # Not ir.load, which confines external tensors to the model's own folder: these are absolute.
        proto = onnx.load(self._entry(key) / "model.onnx", load_external_data=False)
        model: ir.Model = ir.serde.deserialize_model(proto)
        return model

    def holds(self, key: str) -> bool:
        """Whether the model of an entry is whole: no file of the user moved, no blob was cleared."""
        try:
            files = (self._entry(key) / "files").read_text(encoding="utf-8").splitlines()
        except OSError:
            return False
        return all(Path(file).is_file() for file in files)

    def keep(self, key: str, record: Mapping[str, Any], model: ir.Model | None = None) -> None:
        """Stores an entry.

        With a model, its tensors above ``BLOB_BYTES`` are moved into blobs at once: the model given
        then points to them.

        Raises:
            OutputError: The store cannot be written.
        """
        try:
            entry = self._entry(key)
            entry.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".new-") as temporary:
                fresh = Path(temporary) / "entry"
                fresh.mkdir()
                if model is not None:
                    self._outsource(model)
                    (fresh / "model.onnx").write_bytes(ir.to_proto(model).SerializeToString())
                    files = dict.fromkeys(str(tensor.path) for tensor in _external_tensors(model))
                    (fresh / "files").write_text("".join(f"{file}\n" for file in files), encoding="utf-8")
                text = json.dumps(record, indent=1, sort_keys=True)
                (fresh / "record.json").write_text(text, encoding="utf-8")
                _replace(fresh, entry)
        except OSError as failure:
            raise OutputError(
                f"cannot write the store of steps: {failure.strerror or failure}",
                where=str(self.folder),
                hint="free space, or name another folder in EDGEOPT_CACHE",
            ) from failure

    def file_digest(self, path: Path) -> str:
        """SHA-256 of a file, remembered by its path, size, modification time and inode."""
        path = path.resolve()
        status = path.stat()
        key = digest("file", str(path), status.st_size, status.st_mtime_ns, status.st_ino)
        known = self.record(key)
        if known is not None:
            return str(known["sha256"])
        found = hash_file(path)
        self.keep(key, {"sha256": found, "path": str(path)})
        return found

    def entries(self) -> Iterator[Path]:
        """Lists the folders of all entries."""
        yield from sorted(path.parent for path in self.folder.glob("entries/*/*/record.json"))

    def size(self) -> int:
        """Returns the bytes that the store takes."""
        found = (path for name in PARTS for path in (self.folder / name).rglob("*"))
        return sum(path.stat().st_size for path in found if path.is_file())

    def clear(self) -> None:
        """Deletes every entry, blob and recorded call."""
        for name in PARTS:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _entry(self, key: str) -> Path:
        return self.folder / "entries" / key[:2] / key

    def _outsource(self, model: ir.Model) -> None:
        """Makes every large tensor of a model an external one, on the user's file or on a blob."""
        for graph in model.graphs():
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.dtype == ir.DataType.STRING:
                    continue
                if isinstance(tensor, ir.ExternalTensor):
                    path, offset, length = Path(tensor.path).resolve(), tensor.offset, tensor.length
                elif tensor.nbytes >= BLOB_BYTES:
                    path, offset, length = self._blob(tensor), 0, tensor.nbytes
                else:
                    continue
                value.const_value = ir.ExternalTensor(
                    str(path), offset, length, tensor.dtype, shape=_fixed(tensor), name=value.name or ""
                )

    def _blob(self, tensor: ir.TensorProtocol) -> Path:
        content = tensor.tobytes()
        folder = self.folder / "blobs"
        path = folder / hashlib.sha256(content).hexdigest()
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_file(path, content)
        return path.resolve()


def default_folder() -> Path:
    """``$EDGEOPT_CACHE``, or ``edgeopt`` in the user's cache folder (XDG base directories)."""
    if chosen := os.environ.get("EDGEOPT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeopt"


def digest(*parts: Any) -> str:
    """SHA-256 over plain data: what goes into a key."""
    text = json.dumps(parts, sort_keys=True, default=_plain, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_digest(model: ir.Model, store: Store) -> str:
    """SHA-256 over a model's graph and weights; files that hold weights count by their content."""
    found = hashlib.sha256()
    for tensor in _external_tensors(model):
        place = (tensor.name, tensor.offset, tensor.length)
        found.update(digest(place, store.file_digest(Path(tensor.path))).encode())
    found.update(ir.to_proto(model).SerializeToString(deterministic=True))
    return found.hexdigest()


def write_file(path: Path, content: bytes | str) -> None:
    """Writes a file under a temporary name and renames it, so that it is either absent or whole."""
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@cache
def tool_versions() -> dict[str, str]:
    """The versions of the tools whose behaviour a step depends on; our own code by its content."""
    package = Path(__file__).parent
    source = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        source.update(path.relative_to(package).as_posix().encode())
        source.update(path.read_bytes())
    found = {name: version(name) for name in ("numpy", "onnx", "onnx-ir", "onnxruntime")}
    with contextlib.suppress(PackageNotFoundError):  # torch is not installed everywhere
        found["torch"] = version("torch")
    return {"edgeopt": source.hexdigest(), **found}


def _replace(fresh: Path, entry: Path) -> None:
    """Moves a finished folder into place; an equal one that is there already wins."""
    if entry.exists():
        shutil.rmtree(entry, ignore_errors=True)
    try:
        fresh.rename(entry)
    except OSError:
        if not (entry / "record.json").is_file():
            raise


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value


def _fixed(tensor: ir.TensorProtocol) -> ir.Shape:
    return ir.Shape([int(dim) for dim in tensor.shape.numpy()])


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)
