"""A session on LiteRT (or tflite-runtime), in the terms of the original model."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.errors import MissingExtra, RuntimeFailure
from edgeopt.graph.execute import first_line
from edgeopt.session import Session, TensorSpec
from edgeopt.targets.base import Adapter

RUNTIMES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")


def runtime() -> Any:
    """Imports the interpreter's module: LiteRT, or tflite-runtime where only that exists.

    Raises:
        MissingExtra: Neither is installed.
    """
    for name in RUNTIMES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise MissingExtra("ai-edge-litert", "tflite", "running TFLite files")


class TfliteSession(Session):
    """A TFLite file behind the original model's inputs and outputs.

    The file has static shapes. Where the original's first dimension is open, a call of many samples is
    a loop over as many calls of the file as it takes.

    Args:
        content: The file.
        inputs: The original's inputs.
        outputs: The original's outputs.
        adapters: How these map onto the file's, in the file's order.
        threads: Threads of one operator.
        reference: Use the reference kernels instead of the fast ones (LiteRT only).

    Raises:
        RuntimeFailure: The runtime cannot load the file.
        MissingExtra: No runtime is installed.
    """

    def __init__(
        self,
        content: bytes | Path,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        adapters: Sequence[Adapter],
        *,
        threads: int = 1,
        reference: bool = False,
    ) -> None:
        module = runtime()
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        options: dict[str, Any] = {"num_threads": threads}
        if reference:
            options["experimental_op_resolver_type"] = module.OpResolverType.BUILTIN_REF
        source = {"model_path": str(content)} if isinstance(content, Path) else {"model_content": content}
        try:
            with _silenced():
                interpreter = module.Interpreter(**source, **options)
                interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as failure:
            raise RuntimeFailure(f"the TFLite file cannot be loaded: {first_line(failure)}") from failure
        self.bind(interpreter, adapters)

    def bind(self, interpreter: Any, adapters: Sequence[Adapter]) -> None:
        """Maps the original's inputs and outputs onto those of an interpreter that holds the file."""
        self._interpreter = interpreter
        sides = {
            "input": self._interpreter.get_input_details(),
            "output": self._interpreter.get_output_details(),
        }
        order = {"input": 0, "output": 0}
        self._bound: dict[tuple[str, str], tuple[Adapter, dict[str, Any]]] = {}
        for adapter in adapters:
            self._bound[adapter.side, adapter.name] = adapter, sides[adapter.side][order[adapter.side]]
            order[adapter.side] += 1

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs one call.

        Raises:
            RuntimeFailure: An input is missing or does not fit, or the runtime fails.
        """
        self.check(feeds)
        batches = {self._samples(spec, feeds[spec.name]) for spec in self.inputs} - {0}
        if not batches:
            return self._once({name: np.asarray(array) for name, array in feeds.items()})
        if len(batches) > 1:
            raise RuntimeFailure(f"the inputs hold different numbers of samples: {sorted(batches)}")
        chunks = [
            self._once({spec.name: self._chunk(spec, feeds[spec.name], index) for spec in self.inputs})
            for index in range(batches.pop())
        ]
        return {spec.name: np.concatenate([chunk[spec.name] for chunk in chunks]) for spec in self.outputs}

    def check(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Checks that every input is there."""
        missing = [spec.name for spec in self.inputs if spec.name not in feeds]
        if missing:
            raise RuntimeFailure(f"the input {missing[0]!r} is missing")

    def _file_shape(self, spec: TensorSpec) -> list[int]:
        """The shape of one call in the original's order."""
        adapter, detail = self._bound["input", spec.name]
        shape = [int(size) for size in detail["shape"]]
        if not adapter.permutation:
            return shape
        return [shape[adapter.permutation.index(axis)] for axis in range(len(shape))]

    def _samples(self, spec: TensorSpec, array: np.ndarray) -> int:
        """How many calls an input is good for; 0 for one as it stands."""
        array = np.asarray(array)
        shape = self._file_shape(spec)
        if list(array.shape) == shape:
            # An open first axis counts its samples even if there is just one.
            return 1 if self._open(spec) else 0
        if self._open(spec) and list(array.shape[1:]) == shape[1:] and array.shape[0] % shape[0] == 0:
            return int(array.shape[0]) // shape[0]
        raise RuntimeFailure(
            f"the input {spec.name!r} is of shape {list(array.shape)}, the file takes {shape}"
        )

    @staticmethod
    def _open(spec: TensorSpec) -> bool:
        return bool(spec.shape) and isinstance(spec.shape[0], str)

    def _chunk(self, spec: TensorSpec, array: np.ndarray, index: int) -> np.ndarray:
        if not self._open(spec):
            return np.asarray(array)
        size = self._file_shape(spec)[0]
        return np.asarray(array)[index * size : (index + 1) * size]

    def _once(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            for spec in self.inputs:
                adapter, detail = self._bound["input", spec.name]
                self._interpreter.set_tensor(detail["index"], to_runtime(feeds[spec.name], adapter))
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as failure:
            raise RuntimeFailure(f"the TFLite file fails to run: {first_line(failure)}") from failure
        result = {}
        for spec in self.outputs:
            adapter, detail = self._bound["output", spec.name]
            array = self._interpreter.get_tensor(detail["index"])
            result[spec.name] = from_runtime(array, adapter).astype(spec.dtype or array.dtype, copy=False)
        return result


def to_runtime(array: np.ndarray, adapter: Adapter) -> np.ndarray:
    """An original input as the file takes it: transposed and, where it is an integer, quantized."""
    array = np.asarray(array)
    if adapter.permutation:
        array = array.transpose(adapter.permutation)
    if adapter.scale is not None:
        info = np.iinfo(adapter.dtype)
        scaled = np.rint(array.astype(np.float32) / np.float32(adapter.scale)) + adapter.zero_point
        array = np.clip(scaled, info.min, info.max)
    return np.asarray(array.astype(adapter.dtype, copy=False), order="C")


def from_runtime(array: np.ndarray, adapter: Adapter) -> np.ndarray:
    """An output of the file as the original gives it."""
    if adapter.scale is not None:
        shifted = array.astype(np.int32) - np.int32(adapter.zero_point)
        array = shifted.astype(np.float32) * np.float32(adapter.scale)
    if adapter.permutation:
        array = array.transpose(np.argsort(adapter.permutation))
    return np.asarray(array, order="C")


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keeps the interpreter's own lines about its delegates off stderr; errors come as exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)
