"""Opening models and artifacts on this host.

A float original runs in onnxruntime as it stands; an artifact is opened by its target. What the host's
instruction set does to integer arithmetic is said by ``edgeopt.host.distortion``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from edgeopt import footprint
from edgeopt.artifact import open_artifact
from edgeopt.errors import DataError, ModelError, RuntimeFailure, UserError, nearest
from edgeopt.graph.execute import IN_MEMORY, first_line
from edgeopt.host import isa
from edgeopt.load import load
from edgeopt.runners.base import Footprint, Runner
from edgeopt.session import Session, TensorSpec

DTYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "bool": "bool",
    "string": "str",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class OnnxSession(Session):
    """An ONNX model running in onnxruntime on this host, with its optimizations on.

    Args:
        source: A file, a serialized model, or a model.
        threads: Threads of one operator.

    Raises:
        RuntimeFailure: onnxruntime cannot load the model.
    """

    def __init__(self, source: str | Path | bytes | ir.Model, *, threads: int = 1) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        model: str | bytes
        if not isinstance(source, ir.Model):
            model = source if isinstance(source, bytes) else os.fspath(source)
        elif _is_small(source):
            model = ir.to_proto(source).SerializeToString()
        else:  # a serialized model is limited to 2 GB, and external tensors are read from files
            self._folder = tempfile.TemporaryDirectory(prefix="edgeopt-")
            model = os.fspath(Path(self._folder.name) / "model.onnx")
            ir.save(source, model, external_data="model.data")
        try:
            self._session = _load(model, threads, packed=not _is_large(model))
        except RuntimeFailure:
            self.close()
            raise
        self.inputs = tuple(_spec(value) for value in self._session.get_inputs())
        self.outputs = tuple(_spec(value) for value in self._session.get_outputs())
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        self.threads = threads

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs one call.

        Raises:
            DataError: An input is missing.
            RuntimeFailure: onnxruntime fails on these inputs.
        """
        for spec in self.inputs:
            if spec.name not in feeds:
                raise DataError(
                    f"the call gives no input {spec.name!r}", nearest=nearest(spec.name, feeds) or list(feeds)
                )
        try:
            values: list[Any] = self._session.run(None, {spec.name: feeds[spec.name] for spec in self.inputs})
        except Exception as failure:  # onnxruntime raises a class of its own per status code
            raise RuntimeFailure(f"onnxruntime fails to run the model: {first_line(failure)}") from failure
        return {spec.name: value for spec, value in zip(self.outputs, values, strict=True)}

    def close(self) -> None:
        """Deletes the session's temporary files."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def open_sessions(source: str | Path, *, threads: int = 1) -> dict[str, Session]:
    """Opens a model or all parts of an artifact on this host; a model of one part is ``model``.

    Args:
        source: An ``.onnx`` or ``.ort`` file, or an artifact's folder.
        threads: Threads of one operator.

    Raises:
        ModelError: There is none, it is of a kind that does not run here, or corrupt.
        RuntimeFailure: The runtime cannot load it.
    """
    path = Path(source)
    if not path.exists():
        raise ModelError(f"there is no model or artifact {str(source)!r}")
    if path.is_dir():
        return open_artifact(path).open(threads=threads)
    if path.suffix not in (".onnx", ".ort"):
        raise ModelError(
            f"{path.name!r} does not run here by itself",
            hint="give an .onnx file or the folder of an artifact",
        )
    try:
        return {"model": OnnxSession(path, threads=threads)}
    except RuntimeFailure:
        if path.suffix == ".onnx":
            load(path)  # says in a sentence what is wrong with the file, if the file it is
        raise


class Host(Runner):
    """This very machine."""

    where = "host"

    def __init__(self, address: str = "host") -> None:
        super().__init__(address)
        if address != "host":
            raise UserError(f"there is no runner {address!r}", hint="--on host")
        self.notes = []

    def open(self, source: str | Path, *, threads: int = 1) -> dict[str, Session]:
        """Opens a model or artifact here; see ``open_sessions``."""
        return open_sessions(source, threads=threads)

    def footprint(
        self, source: str | Path, *, threads: int = 1, shapes: Mapping[str, Sequence[int]] | None = None
    ) -> Footprint:
        """Measures a fresh process of this Python."""
        return footprint.measure(Path(source), threads=threads, shapes=shapes)

    def conditions(self) -> dict[str, Any]:
        """The instruction set."""
        return {"host": isa()}


def _is_small(model: ir.Model) -> bool:
    tensors = [
        value.const_value
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    ]
    external = any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
    return not external and sum(tensor.nbytes for tensor in tensors) <= IN_MEMORY


def _is_large(model: str | bytes) -> bool:
    """Whether weights lie in files of more than 1 GB beside the model."""
    if isinstance(model, bytes):
        return False
    beside = sum(path.stat().st_size for path in Path(model).parent.iterdir() if path.is_file())
    if beside <= IN_MEMORY or not model.endswith(".onnx"):
        return False
    values = ir.load(model).graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None) > IN_MEMORY


def _load(model: str | bytes, threads: int, *, packed: bool = True) -> Any:
    """Opens a session with exact integer products where onnxruntime can.

    It refuses that mode for some models with shared weights. Weights packed for the kernels are copies:
    not ``packed``, those of a large model stay in their file, and its products are slower.
    """
    try:
        return _open(model, threads, exact=True, packed=packed)
    except Exception:  # onnxruntime raises a class of its own per status code; told apart by trying again
        try:
            return _open(model, threads, exact=False, packed=packed)
        except Exception as failure:
            raise RuntimeFailure(f"onnxruntime cannot load the model: {first_line(failure)}") from failure


def _open(model: str | bytes, threads: int, *, exact: bool, packed: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1" if exact else "0")
    if not packed:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _spec(value: Any) -> TensorSpec:
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, (int, str)) else "?" for size in value.shape or ())
    return TensorSpec(value.name, DTYPES.get(kind, kind), shape)
