"""What of a model or artifact must lie on a board before it can be opened there, and how it gets there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeopt.artifact import Artifact, open_artifact
from edgeopt.errors import IntegrityError, ModelError
from edgeopt.runners.link import Link, Lost, Refused
from edgeopt.steps import hash_file

RUNTIMES = {"onnxruntime": "onnxruntime", "tflite": "tflite"}
"""Targets whose artifacts the agent can run, and the runtime that it needs for them."""

CHUNK = 1 << 20
"""Bytes of a file that travel in one frame."""


@dataclass(eq=False)
class Opened:
    """A model that is, or will again be, open on the board.

    Attributes:
        files: Its files by the name that they have on the board.
        main: The name of the main one.
        runtime: The runtime that it needs.
        threads: Threads of one operator.
        made_for: The runtime's version that an artifact was compiled for; "" for a plain model.
        remote: The agent's number for it; ``None`` while no agent has it open.
        generation: The connection whose agent has it open.
        answer: What the agent said when it opened it.
    """

    files: Mapping[str, Path]
    main: str
    runtime: str
    threads: int
    made_for: str = ""
    remote: int | None = None
    generation: int = -1
    answer: dict[str, Any] = field(default_factory=dict)


def parts_of(path: Path, threads: int) -> dict[str, tuple[Opened, Mapping[str, Any]]]:
    """The files of every part of a model or artifact, and its entry in the manifest.

    Raises:
        ModelError: There is none, or it is of a kind that does not run on boards.
        IntegrityError: A file differs from the artifact's manifest.
    """
    if not path.exists():
        raise ModelError(f"there is no model or artifact {str(path)!r}")
    if path.is_dir():
        artifact = open_artifact(path)
        runtime = RUNTIMES.get(artifact.manifest["target"])
        if runtime is None:
            raise ModelError(
                f"artifacts for {artifact.manifest['target']} do not run on boards through edgeopt",
                hint=f"those for {' and '.join(RUNTIMES)} do",
            )
        made_for = artifact.manifest.get("runtime", {}).get("version", "")
        return {
            name: (Opened(*_files(artifact, part), runtime, threads, made_for), part)
            for name, part in artifact.parts.items()
        }
    if path.suffix not in (".onnx", ".ort"):
        raise ModelError(
            f"{path.name!r} does not run on a board by itself",
            hint="give an .onnx file or the folder of an artifact",
        )
    files = {path.name: path}
    if path.suffix == ".onnx":
        for graph in ir.load(path).graphs():
            for value in graph.initializers.values():
                if isinstance(value.const_value, ir.ExternalTensor):
                    files[str(value.const_value.location)] = path.parent / value.const_value.location
    return {"model": (Opened(files, path.name, "onnxruntime", threads), {})}


def _files(artifact: Artifact, part: Mapping[str, Any]) -> tuple[dict[str, Path], str]:
    """The model files that lie beside a part's main one, checked against the manifest."""
    main = Path(part["model"])
    files = {}
    for entry in artifact.manifest["files"]:
        path = Path(entry["path"])
        if entry["role"] == "model" and path.is_relative_to(main.parent):
            if not (artifact.folder / path).is_file() or hash_file(artifact.folder / path) != entry["sha256"]:
                raise IntegrityError(
                    f"the file {entry['path']!r} is missing or differs from the manifest",
                    where=str(artifact.folder),
                    hint="compile it again",
                )
            files[path.relative_to(main.parent).as_posix()] = artifact.folder / path
    return files, main.name


class Shipping:
    """Sends files, each from the byte that an earlier connection reached.

    Args:
        advanced: Called whenever a file is further than it ever was.
    """

    def __init__(self, advanced: Callable[[], None]) -> None:
        self._advanced = advanced
        self._reached: dict[str, int] = {}

    def send(self, link: Link, path: Path, digest: str) -> None:
        """Sends a file, unless it is there.

        Raises:
            Lost: The connection is gone, or the file arrived damaged.
            Refused: The board has no room for it.
        """
        size = path.stat().st_size
        answer, _ = link.request("put", sha=digest, size=size)
        if answer["done"]:
            return
        with path.open("rb") as file:
            start = int(answer["have"])
            file.seek(start)
            while start < size or size == 0:
                piece = file.read(CHUNK)
                link.send("chunk", {"sha": digest, "offset": start}, (piece,))
                start += len(piece)
                if start > self._reached.get(digest, 0):
                    self._reached[digest] = start
                    self._advanced()
                if not piece:
                    break
        try:
            link.request("done", sha=digest)
        except Refused as refused:
            if refused.kind != "checksum":
                raise
            raise Lost(f"the file {path.name} arrived damaged") from refused
