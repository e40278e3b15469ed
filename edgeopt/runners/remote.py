"""Sessions on a board, in the terms of the original model.

Adapters are applied on this side, so that the board sees, and is timed on, what its runtime takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.errors import DataError, ModelError, nearest
from edgeopt.runners.host import DTYPES
from edgeopt.session import Session, TensorSpec
from edgeopt.targets.base import Adapter
from edgeopt.targets.tflite.session import TfliteSession, to_runtime

if TYPE_CHECKING:
    from edgeopt.runners.board import Board
    from edgeopt.runners.shipping import Opened


class OnnxOnBoard(Session):
    """An ONNX model in the board's onnxruntime."""

    def __init__(self, board: Board, opened: Opened, part: Mapping[str, Any]) -> None:
        self._board, self.opened = board, opened
        self.inputs = tuple(_spec(entry) for entry in opened.answer["inputs"])
        self.outputs = tuple(_spec(entry) for entry in opened.answer["outputs"])
        self.runtime, self.threads = opened.answer["runtime"], opened.threads
        for spec in (*self.inputs, *self.outputs):
            if spec.dtype in ("str", "bfloat16") or not hasattr(np, spec.dtype):
                raise ModelError(f"{spec.name!r} is of type {spec.dtype}, which does not cross the wire")

    def arrays(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The inputs in the file's order.

        Raises:
            DataError: One is missing.
        """
        for spec in self.inputs:
            if spec.name not in feeds:
                raise DataError(
                    f"the call gives no input {spec.name!r}", nearest=nearest(spec.name, feeds) or list(feeds)
                )
        return [np.asarray(feeds[spec.name]) for spec in self.inputs]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs one call on the board."""
        values = self._board.call(self.opened, self.arrays(feeds))
        return {spec.name: value for spec, value in zip(self.outputs, values, strict=True)}

    def close(self) -> None:
        """Frees the model on the board."""
        self._board.release(self.opened)


class TfliteOnBoard(TfliteSession):
    """A TFLite file in the board's interpreter, behind the original's inputs and outputs."""

    def __init__(self, board: Board, opened: Opened, part: Mapping[str, Any]) -> None:
        self._board, self.opened = board, opened
        self.inputs = tuple(TensorSpec(**entry) for entry in part["inputs"])
        self.outputs = tuple(TensorSpec(**entry) for entry in part["outputs"])
        self.runtime, self.threads = opened.answer["runtime"], opened.threads
        adapters = [
            Adapter(**{**entry, "permutation": tuple(entry["permutation"])}) for entry in part["adapters"]
        ]
        self.bind(_Interpreter(board, opened), adapters)

    def arrays(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The inputs of one call of the file, in its order and types."""
        self.check(feeds)
        found: dict[int, np.ndarray] = {}
        for spec in self.inputs:
            adapter, detail = self._bound["input", spec.name]
            found[detail["index"]] = to_runtime(self._chunk(spec, feeds[spec.name], 0), adapter)
        return [found[entry["index"]] for entry in self.opened.answer["inputs"]]

    def close(self) -> None:
        """Frees the model on the board."""
        self._board.release(self.opened)


class BlockTimer:
    """Times calls of a session on the board itself, so that the wire has no part in the figure."""

    def __init__(self, board: Board, opened: Opened, arrays: Sequence[np.ndarray]) -> None:
        self._board, self.opened, self.arrays = board, opened, arrays
        self.fed: tuple[int, int] | None = None

    def __call__(self) -> Any:
        """Makes one call."""
        return self._board.call(self.opened, self.arrays)

    def time(self, count: int) -> list[float]:
        """Times so many calls, in seconds, after one that is not timed."""
        return self._board.time(self, count)


class _Interpreter:
    """What a session needs of an interpreter, at the other end of the wire."""

    def __init__(self, board: Board, opened: Opened) -> None:
        self._board, self._opened = board, opened
        self._given: dict[int, np.ndarray] = {}
        self._found: dict[int, np.ndarray] = {}

    def get_input_details(self) -> Sequence[Mapping[str, Any]]:
        found: list[dict[str, Any]] = self._opened.answer["inputs"]
        return found

    def get_output_details(self) -> Sequence[Mapping[str, Any]]:
        found: list[dict[str, Any]] = self._opened.answer["outputs"]
        return found

    def set_tensor(self, index: int, array: np.ndarray) -> None:
        self._given[index] = array

    def get_tensor(self, index: int) -> np.ndarray:
        return self._found[index]

    def invoke(self) -> None:
        arrays = [self._given[entry["index"]] for entry in self.get_input_details()]
        values = self._board.call(self._opened, arrays)
        self._found = {
            entry["index"]: value for entry, value in zip(self.get_output_details(), values, strict=True)
        }


def _spec(entry: Mapping[str, Any]) -> TensorSpec:
    kind = entry["type"].removeprefix("tensor(").removesuffix(")")
    return TensorSpec(entry["name"], DTYPES.get(kind, kind), tuple(entry["shape"]))
