"""A running model or artifact, in the terms of the original model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of the original model.

    Attributes:
        name: Its name.
        dtype: Its numpy dtype's name, such as ``float32``.
        shape: Per axis a size, or the name of a symbolic dimension.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Closing:
    """What is closed at the end of a ``with`` block."""

    def close(self) -> None:
        """Frees what it holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Session(Closing, ABC):
    """A running artifact, in the terms of the original model."""

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]

    @property
    def width(self) -> int:
        """How many calls can be under way at once."""
        return 1

    @abstractmethod
    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs one call: an array for every input, by the original's names.

        Raises:
            RuntimeFailure: The runtime fails on these inputs.
        """

    def submit(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], dict[str, np.ndarray]]:
        """Begins a call, and returns what waits for its outputs; see ``run``.

        A session that runs one call at a time runs it when waited for.
        """
        return lambda: self.run(feeds)


def signature(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
    """Describes a graph's inputs or outputs; an unknown dimension is named ``?``."""
    return tuple(
        TensorSpec(
            name=value.name or "",
            dtype="" if value.dtype is None else value.dtype.numpy().name,
            shape=tuple(dim if isinstance(dim, int) else (dim.value or "?") for dim in (value.shape or ())),
        )
        for value in values
    )
