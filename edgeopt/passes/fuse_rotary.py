"""Fuse the primitives of rotary position embedding (Su et al. 2021) into RotaryEmbedding.

    y = x · cos + rotated(x) · sin          rotated(x) = concat(-second half, first half) of the last axis

for x as [batch, heads, length, width], where both halves of the tables are equal. Tables are constants, or
the cosine and sine of one value concatenated with itself. onnxruntime's own RotaryEmbedding takes a table
of one row a position and so any batch; the standard operator (opset 23) wants tables of every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.graph.rewriting import (
    NoMatch,
    Replacement,
    Result,
    Rule,
    constant,
    initializer,
    node,
    rule,
    sole_reader,
)
from edgeopt.graph.scalars import operands
from edgeopt.graph.shape_values import integers
from edgeopt.graph.shapes import dims
from edgeopt.passes._fusion import CONTRIB, Fusion, too_old
from edgeopt.passes.base import Stage
from edgeopt.platform import RuntimeVersion

SINCE = 23

NAME = "rotary embedding -> RotaryEmbedding"


@dataclass
class _Rotation:
    """What the primitives compute from.

    Attributes:
        x: [batch, heads, length, width].
        cos: The table of cosines, broadcast to x.
        sin: The table of sines.
        nodes: The nodes replaced.
    """

    x: ir.Value
    cos: ir.Value
    sin: ir.Value
    nodes: list[ir.Node]


def _rule(build: Callable[[_Rotation, ir.Node], Result]) -> Rule:
    @rule("Mul -> Add", name=NAME, shared=True)
    def fuse(product: ir.Node, total: ir.Node) -> Result:
        rotation = _read(product, total)
        return None if rotation is None else build(rotation, total)

    return fuse


def _standard(rotation: _Rotation, total: ir.Node) -> Result:
    """The operator of opset 23, whose tables have the batch of x."""
    shape = dims(rotation.x) or ()
    tables = _halves(rotation)
    if isinstance(tables, NoMatch):
        return tables
    if any((dims(table) or (None,))[0] is None or (dims(table) or ())[0] != shape[0] for table in tables):
        return NoMatch("its tables do not have the batch of what is rotated")
    if reason := too_old(total, "RotaryEmbedding", SINCE):
        return reason
    return Replacement(
        {total.outputs[0]: node("RotaryEmbedding", [rotation.x, *tables]).outputs[0]}, _all(rotation)
    )


def _contributed(rotation: _Rotation, total: ir.Node) -> Result:
    """onnxruntime's operator: constant tables of one row a position, from position 0 on."""
    cos, sin = constant(rotation.cos), constant(rotation.sin)
    if cos is None or sin is None:
        return _standard(rotation, total)
    tables = [_rows(numbers) for numbers in (cos, sin)]
    if tables[0] is None or tables[1] is None:
        return NoMatch("its tables differ between batches, heads or halves")
    length = (dims(rotation.x) or (None,) * 4)[2]
    if len(tables[0]) != length or len(tables[1]) != length:
        return NoMatch("its tables are broadcast along the positions")
    stem = total.name or ""
    given = [
        rotation.x,
        initializer(f"{stem}.position", np.zeros(1, np.int64)),
        initializer(f"{stem}.cos", tables[0]),
        initializer(f"{stem}.sin", tables[1]),
    ]
    fused = ir.node("RotaryEmbedding", given, domain=CONTRIB)
    return Replacement({total.outputs[0]: fused.outputs[0]}, _all(rotation))


def _all(rotation: _Rotation) -> list[ir.Node]:
    return list(dict.fromkeys(rotation.nodes))


# ---- reading


def _read(product: ir.Node, total: ir.Node) -> _Rotation | None:
    for rotated, plain in operands(total):
        if rotated is not product.outputs[0]:
            continue
        other = plain.producer()
        if other is None or other.op_type != "Mul" or other is product:
            return None
        for turned, sin in operands(product):
            found = _turned(turned)
            if found is None:
                continue
            x, nodes = found
            cos = next((table for one, table in operands(other) if one is x), None)
            shape = dims(x)
            if cos is None or shape is None or len(shape) != 4 or x.dtype != ir.DataType.FLOAT:
                continue
            if any(sole_reader(value) is None for value in (product.outputs[0], other.outputs[0])):
                return None
            return _Rotation(x, cos, sin, [*nodes, other, product, total])
    return None


def _turned(value: ir.Value) -> tuple[ir.Value, list[ir.Node]] | None:
    """x, where a value is the second half of its last axis negated, then the first."""
    concat = value.producer()
    if concat is None or concat.op_type != "Concat" or len(concat.inputs) != 2:
        return None
    rank = len(dims(value) or ())
    if not rank or concat.attributes.get_int("axis", 0) not in (-1, rank - 1):
        return None
    second, first = concat.inputs
    negation = None if second is None else second.producer()
    if negation is None or negation.op_type != "Neg" or first is None:
        return None
    one, two = _half(first), _half(negation.inputs[0])
    if one is None or two is None or one[0] is not two[0] or (one[1], two[1]) != (0, 1):
        return None
    return one[0], list(dict.fromkeys([one[2], two[2], negation, concat]))


def _half(value: ir.Value | None) -> tuple[ir.Value, int, ir.Node] | None:
    """The whole, which half of its last axis a value is, and the node that takes it."""
    maker = None if value is None else value.producer()
    x = None if maker is None else maker.inputs[0]
    shape = dims(x)
    if maker is None or x is None or not shape or not isinstance(shape[-1], int) or shape[-1] % 2:
        return None
    width, half = shape[-1], (dims(value) or (None,))[-1]
    if half != width // 2:
        return None
    if maker.op_type == "Split":
        if len(maker.outputs) != 2 or maker.attributes.get_int("axis", 0) not in (-1, len(shape) - 1):
            return None
        return x, list(maker.outputs).index(value), maker  # type: ignore[arg-type]
    if maker.op_type != "Slice" or len(maker.inputs) < 4:
        return None
    starts, ends, axes = (integers(item) for item in maker.inputs[1:4])
    steps = integers(maker.inputs[4]) if len(maker.inputs) > 4 else [1]
    if starts is None or ends is None or axes is None or steps != [1] or len(starts) != 1:
        return None
    if axes[0] not in (-1, len(shape) - 1):
        return None
    start = starts[0] % width if starts[0] < 0 else starts[0]
    return (x, 0, maker) if start == 0 else (x, 1, maker) if start == half else None


def _halves(rotation: _Rotation) -> Sequence[ir.Value] | NoMatch:
    """The tables [batch, length, width / 2]."""
    numbers = [constant(table) for table in (rotation.cos, rotation.sin)]
    if numbers[0] is not None and numbers[1] is not None:
        shape = dims(rotation.x) or (None,) * 4
        tables = []
        for name, item in zip(("cos", "sin"), numbers, strict=True):
            rows = None if item is None else _rows(item)
            if rows is None or len(rows) != shape[2]:
                return NoMatch("its tables differ between batches, heads or halves")
            if not isinstance(shape[0], int):
                return NoMatch("the size of the batch is not known")
            whole = np.ascontiguousarray(np.broadcast_to(rows, (shape[0], *rows.shape)))
            tables.append(initializer(f"{rotation.nodes[-1].name}.{name}", whole))
        return tables
    computed = [
        _computed(table, operator) for table, operator in ((rotation.cos, "Cos"), (rotation.sin, "Sin"))
    ]
    if computed[0] is None or computed[1] is None:
        return NoMatch("its tables are no constants, and not those of one value concatenated with itself")
    found = []
    for table, nodes in (item for item in computed if item is not None):
        rotation.nodes[:0] = nodes
        found.append(table)
    return found


def _computed(table: ir.Value, operator: str) -> tuple[ir.Value, list[ir.Node]] | None:
    """A table computed as Cos or Sin of Concat(f, f), without the copy: [batch, length, width / 2]."""
    unsqueeze = table.producer()
    if unsqueeze is None or unsqueeze.op_type not in ("Unsqueeze", "Reshape") or unsqueeze.inputs[0] is None:
        return None
    shape, inner = dims(table), dims(unsqueeze.inputs[0])
    if shape is None or inner is None or len(inner) != 3 or shape != (inner[0], 1, *inner[1:]):
        return None
    wave = unsqueeze.inputs[0].producer()
    if wave is None or wave.op_type != operator or wave.inputs[0] is None:
        return None
    concat = wave.inputs[0].producer()
    if concat is None or concat.op_type != "Concat" or len(concat.inputs) != 2:
        return None
    if concat.inputs[0] is not concat.inputs[1] or concat.attributes.get_int("axis", 0) not in (-1, 2):
        return None
    half = concat.inputs[0]
    short = node(operator, [half])
    if half is None or dims(half) is None:
        return None
    short.outputs[0].type, short.outputs[0].shape = half.type, half.shape
    return short.outputs[0], [concat, wave, unsqueeze]


def _rows(table: np.ndarray) -> np.ndarray | None:
    """A constant table as [length, width / 2], where it is the same for batches, heads and halves."""
    aligned = table.reshape((1,) * (4 - table.ndim) + table.shape) if table.ndim <= 4 else None
    if aligned is None or aligned.shape[:2] != (1, 1) or aligned.shape[3] % 2:
        return None
    half = aligned.shape[3] // 2
    first, second = aligned[0, 0, :, :half], aligned[0, 0, :, half:]
    return np.ascontiguousarray(first) if half and np.array_equal(first, second) else None


STANDARD = (_rule(_standard),)

CONTRIBUTED = (_rule(_contributed),)


@dataclass(frozen=True)
class FuseRotary(Fusion):
    """Fuse the primitives of rotary position embedding into RotaryEmbedding (opset 23)."""

    name: ClassVar[str] = "fuse-rotary"
    stage: ClassVar[Stage] = "schedule"
    kernel = "rotary-embedding"
    patterns = STANDARD
    since = SINCE

    def rules_for(self, platform: RuntimeVersion | None) -> Sequence[Rule]:
        """onnxruntime's own operator where the platform runs it."""
        contributed = platform is not None and platform.runs("RotaryEmbedding", CONTRIB)
        return CONTRIBUTED if contributed else STANDARD
