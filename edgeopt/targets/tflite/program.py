"""A TFLite program in memory: tensors and operations, before they become a flatbuffer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


class Unsupported(Exception):
    """A step cannot be said in TFLite.

    Args:
        reason: Why, for a reader who knows the model but not TFLite.
        hint: What would work.
    """

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


@dataclass(slots=True, eq=False)
class Tensor:
    """A tensor of the file.

    Attributes:
        name: Its name, unique in the file.
        shape: Its sizes in the order of memory.
        dtype: The name of its numpy type.
        data: Its value, shaped as ``shape``, where it is a constant.
        scale: float32 [1] or [channels], where it is quantized.
        zero_point: int64, shaped as ``scale``.
        axis: The axis in memory that has a scale per channel.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: np.ndarray | None = None
    scale: np.ndarray | None = None
    zero_point: np.ndarray | None = None
    axis: int = 0


@dataclass(slots=True, eq=False)
class Operation:
    """An operation of the file.

    Attributes:
        code: The builtin operator's name, such as ``CONV_2D``.
        inputs: Its inputs; ``None`` where an optional one is absent.
        outputs: Its outputs.
        options: The fields of its options table.
        table: The name of its options table, such as ``Conv2DOptions``; empty for none.
        node: The original name of the node that it comes from.
    """

    code: str
    inputs: list[Tensor | None]
    outputs: list[Tensor]
    table: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    node: str = ""


@dataclass(slots=True)
class Program:
    """A whole file: one subgraph."""

    operations: list[Operation] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of their first use."""
        found: dict[int, Tensor] = {id(tensor): tensor for tensor in self.inputs}
        for operation in self.operations:
            for tensor in (*operation.inputs, *operation.outputs):
                if tensor is not None:
                    found.setdefault(id(tensor), tensor)
        for tensor in self.outputs:
            found.setdefault(id(tensor), tensor)
        return list(found.values())


def join_reshapes(program: Program) -> None:
    """Makes one RESHAPE of a chain of them, in place."""
    readers: dict[int, int] = {id(tensor): 1 for tensor in program.outputs}
    maker: dict[int, Operation] = {}
    for operation in program.operations:
        for tensor in operation.inputs:
            if tensor is not None:
                readers[id(tensor)] = readers.get(id(tensor), 0) + 1
    dropped: set[int] = set()
    for operation in program.operations:
        source = operation.inputs[0]
        if operation.code == "RESHAPE" and source is not None:
            before = maker.get(id(source))
            if before is not None and readers[id(source)] == 1:
                operation.inputs[0] = before.inputs[0]
                dropped.add(id(before))
            maker[id(operation.outputs[0])] = operation
    program.operations = [item for item in program.operations if id(item) not in dropped]


def drop_reduced_axes(program: Program) -> None:
    """Lets a MEAN drop the axes that a RESHAPE behind it would, in place."""
    readers: dict[int, int] = {id(tensor): 1 for tensor in program.outputs}
    for operation in program.operations:
        for tensor in operation.inputs:
            if tensor is not None:
                readers[id(tensor)] = readers.get(id(tensor), 0) + 1
    means = {id(item.outputs[0]): item for item in program.operations if item.code == "MEAN"}
    dropped: set[int] = set()
    for operation in program.operations:
        mean = means.get(id(operation.inputs[0])) if operation.code == "RESHAPE" else None
        if mean is None or readers[id(mean.outputs[0])] != 1 or not mean.options["keepDims"]:
            continue
        source, axes = mean.inputs[0], mean.inputs[1]
        if source is None or axes is None or axes.data is None:
            continue
        kept = tuple(size for axis, size in enumerate(source.shape) if axis not in axes.data)
        if kept == operation.outputs[0].shape:
            mean.outputs, mean.options = operation.outputs, {**mean.options, "keepDims": False}
            dropped.add(id(operation))
    program.operations = [item for item in program.operations if id(item) not in dropped]
