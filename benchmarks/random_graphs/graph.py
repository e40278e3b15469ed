"""A graph that grows node by node, on values whose shapes are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

FLOAT, INT64 = np.dtype(np.float32), np.dtype(np.int64)


@dataclass(frozen=True)
class Value:
    """A value of the graph: its name, shape and dtype, and whether no rewrite may change its last bits."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype = FLOAT
    exact: bool = False


@dataclass
class Graph:
    """A graph that grows."""

    random: np.random.Generator
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    pool: list[Value] = field(default_factory=list)
    count: int = 0
    calls: bool = False

    def name(self) -> str:
        """A new name."""
        self.count += 1
        return f"v{self.count}"

    def chance(self, share: float) -> bool:
        """True so often."""
        return bool(self.random.random() < share)

    def pick(self, items: Sequence[Any]) -> Any:
        """One of the items."""
        return items[int(self.random.integers(len(items)))]

    def constant(self, array: Any, dtype: Any = None) -> str:
        """A constant, sometimes one that is there already."""
        array = np.asarray(array, dtype)
        for name, other in self.weights.items():
            same = other.dtype == array.dtype and other.shape == array.shape
            if same and self.chance(0.5) and np.array_equal(other, array):
                return name
        name = f"w{self.name()}"
        self.weights[name] = array
        return name

    def weight(self, *shape: int, dtype: np.dtype = FLOAT) -> str:
        """A random weight, sometimes a shared one."""
        alike = [n for n, w in self.weights.items() if w.shape == shape and w.dtype == dtype]
        if alike and self.chance(0.3):
            return str(self.pick(alike))
        return self.constant(self.random.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:]))), dtype)

    def add(self, operator: str, inputs: Sequence[str], out: Value | None = None, **attributes: Any) -> str:
        """A node; its output goes into the pool where its shape is given."""
        name = out.name if out is not None else self.name()
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        if out is not None:
            self.pool.append(out)
        if self.chance(0.04) and operator not in ("If", "Loop", "Dropout", "Scan"):
            self.nodes.append(helper.make_node(operator, list(inputs), [self.name()], **attributes))
            if out is not None:
                twin = self.nodes[-1].output[0]
                self.pool.append(Value(twin, out.shape, out.dtype, out.exact))
        return name

    def axes(
        self, operator: str, x: str, axes: Sequence[int], out: Value, since: int, **attributes: Any
    ) -> None:
        """A node whose axes are an attribute before an opset and an input from there."""
        if self.opset < since:
            self.add(operator, [x], out, axes=list(axes), **attributes)
        else:
            self.add(operator, [x, self.constant(list(axes), INT64)], out, **attributes)

    def value(self, wanted: Callable[[Value], bool]) -> Value | None:
        """The newest value that fits, or one of the newest."""
        fitting = [value for value in self.pool if wanted(value)]
        if not fitting:
            return None
        return fitting[-1] if self.chance(0.6) else self.pick(fitting[-5:])

    def floats(self, rank: int | None = None) -> Value | None:
        """A float32 value."""
        return self.value(lambda v: v.dtype == FLOAT and (rank is None or len(v.shape) == rank))
