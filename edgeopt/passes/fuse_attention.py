"""Fuse the primitives of scaled dot-product attention (Vaswani et al. 2017) into Attention.

    y = softmax(scale · q·kᵀ [+ mask]) · v

The scale may stand at the scores, at q or at k; k may be transposed in one go with the split into heads;
heads that share a key and value (grouped queries, Ainslie et al. 2023) lose the copies; keys and values of
earlier calls that are concatenated in front become ``past_key`` and ``past_value``. Where q, k and v are
split into heads and the result is joined again, all that goes too.

It runs after quantization: what that turned into integer products is no longer plain attention, and stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.graph.dimensions import Size, sizes
from edgeopt.graph.rewriting import (
    NoMatch,
    Replacement,
    Result,
    constant,
    initializer,
    node,
    opset,
    rule,
    sole_reader,
)
from edgeopt.graph.scalars import operands, scalar
from edgeopt.graph.shapes import dims
from edgeopt.passes._fusion import Fusion, too_old
from edgeopt.passes.base import Stage

SINCE = 23

SPLIT = (0, 2, 1, 3)
"""The permutation between [batch, length, heads, width] and [batch, heads, length, width]."""


@dataclass
class _Operand:
    """q, k or v: ``Transpose(value, order)``.

    Attributes:
        value: The value before it is transposed.
        order: The permutation.
        nodes: What lies between it and the products.
        rows: The same as [batch, length, heads · width], where heads are split from that; else ``None``.
        heads: The number of heads, 0 where it is not known.
    """

    value: ir.Value
    order: tuple[int, ...]
    nodes: list[ir.Node] = field(default_factory=list)
    rows: ir.Value | None = None
    heads: int = 0

    @property
    def shape(self) -> tuple[Size, ...]:
        """The shape [batch, heads, length, width]."""
        given = sizes(self.value) or ()
        return tuple(given[axis] for axis in self.order)

    def transposed(self) -> ir.Value:
        """The value in its order, by a new Transpose where one is needed."""
        if self.order == tuple(range(len(self.order))):
            return self.value
        return _like(node("Transpose", [self.value], {"perm": self.order}), self.value, self.shape)


@rule("Softmax -> MatMul", name="attention -> Attention", shared=True)
def fuse(softmax: ir.Node, product: ir.Node) -> Result:
    """Follows the probabilities up to q, k and the mask, and down to the joined heads."""
    rank = len(dims(softmax.outputs[0]) or ())
    axis = softmax.attributes.get_int("axis", -1 if opset(softmax) >= 13 else 1)
    if rank not in (3, 4) or axis not in (-1, rank - 1):
        return None
    scores, factor, nodes = _unscaled(softmax.inputs[0])
    mask: ir.Value | None = None
    maker = None if scores is None else scores.producer()
    if maker is not None and maker.op_type == "Add":
        for one, other in operands(maker):
            inner, times, more = _unscaled(one)
            if inner is not None and _makes(inner, "MatMul") and factor == 1:
                scores, factor, mask = inner, times, other
                nodes += [maker, *more]
                break
    maker = None if scores is None else scores.producer()
    if maker is None or maker.op_type != "MatMul" or softmax.inputs[0] is None:
        where = maker is not None and maker.op_type in ("Where", "DequantizeLinear")
        return NoMatch(f"its scores come from {maker.op_type}") if where and maker is not None else None
    inner_values = [softmax.outputs[0], maker.outputs[0], *(item.outputs[0] for item in nodes)]
    if any(sole_reader(value) is None for value in inner_values):
        return NoMatch("its scores or probabilities have another reader")
    found = (_query(maker.inputs[0]), _key(maker.inputs[1]), _query(product.inputs[1]))
    if any(item is None for item in found):
        return NoMatch("the shape of an operand is not known")
    (query, first), (key, second), (value, third) = (item for item in found if item is not None)
    if third != 1:
        value = _plain(product.inputs[1])
    scale = factor * first * second
    if not scale > 0:
        return NoMatch(f"its scores are scaled by {scale:g}")
    nodes += [softmax, maker, *query.nodes, *key.nodes, *value.nodes, product]
    return _build(_Parts(query, key, value, mask, scale, nodes, product), softmax)


@dataclass
class _Parts:
    """What the primitives compute from."""

    query: _Operand
    key: _Operand
    value: _Operand
    mask: ir.Value | None
    scale: float
    nodes: list[ir.Node]
    product: ir.Node


def _build(parts: _Parts, softmax: ir.Node) -> Result:
    scores = sizes(softmax.outputs[0]) or ()
    if parts.query.value.dtype != ir.DataType.FLOAT:
        return NoMatch("it does not compute in float32")
    _ungroup(parts)
    if reason := _not_alike(parts.query, parts.key, parts.value):
        return NoMatch(reason)
    mask = _whole_mask(parts.mask, parts.query, scores, softmax)
    if isinstance(mask, NoMatch):
        return mask
    if old := too_old(softmax, "Attention", SINCE):
        return old
    past = _past(parts)
    query, key, value = parts.query, parts.key, parts.value
    replaced: dict[ir.Value, ir.Value] = {}
    attributes: dict[str, object] = {"scale": parts.scale}
    joined = _joined(parts)
    if joined is not None or len(scores) == 3:
        result, closing = joined or (parts.product.outputs[0], [])
        inputs = [item.rows if item.rows is not None else item.transposed() for item in (query, key, value)]
        attributes["q_num_heads"] = query.heads or 1
        attributes["kv_num_heads"] = key.heads or 1
        parts.nodes += closing
    else:
        result = parts.product.outputs[0]
        inputs = [item.transposed() for item in (query, key, value)]
    given: list[ir.Value | None] = [*inputs, mask]
    if past is not None:
        given += [past.key, past.value]
    while given[-1] is None:
        given.pop()
    fused = ir.node("Attention", given, attributes, num_outputs=1 if past is None else 3)
    replaced[result] = fused.outputs[0]
    if past is not None:
        for present, new in zip(past.present, fused.outputs[1:], strict=True):
            _describe(new, present, dims(present) or ())
            if present.is_graph_output():
                replaced[present] = new
    return Replacement(replaced, list(dict.fromkeys(parts.nodes)))


# ---- reading


def _makes(value: ir.Value, operator: str) -> bool:
    maker = value.producer()
    return maker is not None and maker.op_type == operator and maker.domain in ("", "ai.onnx")


def _unscaled(value: ir.Value | None) -> tuple[ir.Value | None, float, list[ir.Node]]:
    """The value before constant factors, their product, and their nodes."""
    factor, nodes = 1.0, []
    while value is not None:
        maker = value.producer()
        if maker is None or maker.op_type not in ("Mul", "Div") or len(maker.inputs) != 2:
            break
        pairs = operands(maker) if maker.op_type == "Mul" else operands(maker)[:1]
        found = next(((x, scalar(by)) for x, by in pairs if scalar(by)), None)
        if found is None or found[1] is None or dims(found[0]) is None:
            break
        if len(dims(found[0]) or ()) != len(dims(value) or ()):
            break
        factor *= found[1] if maker.op_type == "Mul" else 1 / found[1]
        value = found[0]
        nodes.append(maker)
    return value, factor, nodes


def _plain(value: ir.Value | None) -> _Operand:
    assert value is not None
    return _Operand(value, tuple(range(len(dims(value) or ()))))


def _query(value: ir.Value | None) -> tuple[_Operand, float] | None:
    """q or v, with the constant factor before it."""
    x, factor, nodes = _unscaled(value)
    if x is None or len(dims(x) or ()) not in (3, 4):
        return None
    return _split(_Operand(x, tuple(range(len(dims(x) or ()))), nodes)), factor


def _key(value: ir.Value | None) -> tuple[_Operand, float] | None:
    """k, from its transposition."""
    x, factor, nodes = _unscaled(value)
    rank = len(dims(x) or ())
    if x is None or rank not in (3, 4):
        return None
    swapped = (*range(rank - 2), rank - 1, rank - 2)
    operand = _Operand(x, swapped, nodes)
    maker = x.producer()
    if maker is not None and maker.op_type == "Transpose" and maker.inputs[0] is not None:
        order = maker.attributes.get_ints("perm", tuple(reversed(range(rank))))
        operand = _Operand(maker.inputs[0], tuple(order[axis] for axis in swapped), [*nodes, maker])
    elif maker is not None and maker.op_type == "Reshape":
        operand = _reshaped_key(x, maker, nodes) or operand
    if operand.order == tuple(range(rank)):
        inner, more, between = _unscaled(operand.value)
        assert inner is not None
        operand = _Operand(inner, operand.order, [*operand.nodes, *between])
        factor *= more
    return _split(operand), factor


def _reshaped_key(x: ir.Value, reshape: ir.Node, nodes: list[ir.Node]) -> _Operand | None:
    """k where only the leading axes of its transposition were split: the reshape goes before it."""
    transpose = None if reshape.inputs[0] is None else reshape.inputs[0].producer()
    given, wanted = sizes(reshape.inputs[0]), sizes(x)
    if transpose is None or transpose.op_type != "Transpose" or given is None or wanted is None:
        return None
    source = transpose.inputs[0]
    if source is None or len(given) != 3 or given[-2:] != wanted[-2:]:
        return None
    order = transpose.attributes.get_ints("perm", (2, 1, 0))
    inner = (order[0], order[2], order[1])
    shape = (*wanted[:-2], wanted[-1], wanted[-2])
    if sum(not isinstance(size, int) for size in shape) > 1:
        return None
    before = source
    if inner != (0, 1, 2):
        moved = tuple((sizes(source) or (1, 1, 1))[axis] for axis in inner)
        before = _like(node("Transpose", [source], {"perm": inner}), source, moved)
    else:
        maker = source.producer()  # a reshape that only joined the leading axes is undone
        if maker is not None and maker.op_type == "Reshape" and sizes(maker.inputs[0]) == shape:
            assert maker.inputs[0] is not None
            ends = [reshape, transpose, maker]
            return _Operand(maker.inputs[0], (0, 1, 2, 3), [*nodes, *ends])
    wanted_sizes = [size if isinstance(size, int) else -1 for size in shape]
    target = initializer(f"{reshape.name}.shape", np.array(wanted_sizes, np.int64))
    split = _like(node("Reshape", [before, target]), source, shape)
    return _Operand(split, (0, 1, 2, 3), [*nodes, reshape, transpose])


def _split(operand: _Operand) -> _Operand:
    """Finds [batch, length, heads · width] behind [batch, heads, length, width]."""
    if len(operand.order) == 3:
        return operand
    value, order, nodes = operand.value, operand.order, list(operand.nodes)
    maker = value.producer()
    if order == (0, 1, 2, 3) and maker is not None and maker.op_type == "Transpose":
        found = maker.attributes.get_ints("perm", ())
        if tuple(found) == SPLIT and maker.inputs[0] is not None:
            value, order = maker.inputs[0], SPLIT
            nodes.append(maker)
            maker = value.producer()
    if order != SPLIT or maker is None or maker.op_type != "Reshape" or maker.inputs[0] is None:
        return operand
    rows, split = sizes(maker.inputs[0]), sizes(value)
    if rows is None or split is None or len(rows) != 3 or rows[:2] != split[:2]:
        return operand
    heads, width = split[2], split[3]
    if not isinstance(heads, int) or not isinstance(width, int) or rows[2] != heads * width:
        return operand
    return _Operand(operand.value, operand.order, [*nodes, maker], maker.inputs[0], heads)


# ---- grouped queries, masks, caches


def _ungroup(parts: _Parts) -> None:
    """Drops the copies of keys and values that several heads share."""
    found = [_repeated(operand) for operand in (parts.key, parts.value)]
    if found[0] is None or found[1] is None:
        return
    (parts.key, first), (parts.value, second) = found[0], found[1]
    parts.nodes += [*first, *second]


def _repeated(operand: _Operand) -> tuple[_Operand, list[ir.Node]] | None:
    reshape = operand.value.producer()
    expand = None if reshape is None or reshape.inputs[0] is None else reshape.inputs[0].producer()
    if operand.order != (0, 1, 2, 3) or reshape is None or reshape.op_type != "Reshape":
        return None
    if expand is None or expand.op_type != "Expand" or expand.inputs[0] is None:
        return None
    unsqueeze = expand.inputs[0].producer()
    source = None if unsqueeze is None else unsqueeze.inputs[0]
    if unsqueeze is None or source is None or unsqueeze.op_type not in ("Unsqueeze", "Reshape"):
        return None
    shape, wide, whole = sizes(source), sizes(expand.outputs[0]), operand.shape
    if shape is None or wide is None or len(shape) != 4 or len(wide) != 5:
        return None
    if sizes(unsqueeze.outputs[0]) != (*shape[:2], 1, *shape[2:]):
        return None
    if (*wide[:2], *wide[3:]) != shape or whole[2:] != shape[2:] or whole[0] != shape[0]:
        return None
    plain = _split(_Operand(source, (0, 1, 2, 3)))
    return plain, [reshape, expand, unsqueeze, *plain.nodes]


def _not_alike(query: _Operand, key: _Operand, value: _Operand) -> str:
    """Why q, k and v do not fit together without broadcasting, or ""."""
    one, two, three = query.shape, key.shape, value.shape
    if len({len(shape) for shape in (one, two, three)}) > 1:
        return "its operands have different numbers of axes"
    if one[0] != two[0] or one[0] != three[0]:
        return "its operands may differ in the size of the batch"
    if len(one) == 3:
        return ""
    heads = (one[1], two[1], three[1])
    if not all(isinstance(count, int) for count in heads) or two[1] != three[1]:
        return "the number of heads is not known"
    return ""


def _whole_mask(
    mask: ir.Value | None, query: _Operand, scores: Sequence[Size], softmax: ir.Node
) -> ir.Value | NoMatch | None:
    """The mask with both of its last axes whole, as the operator wants it."""
    if mask is None:
        return None
    shape, length, keys = sizes(mask), scores[-2], scores[-1]
    if shape is None or mask.dtype != query.value.dtype:
        return NoMatch("the shape or type of its mask is not known")
    if len(scores) == 3 and len(shape) == 3 and shape[0] != 1:
        return NoMatch("its mask differs within a batch of one head")
    if len(shape) >= 2 and shape[-2:] == (length, keys):
        return mask
    if isinstance(length, int) and isinstance(keys, int):
        wanted = [1] * max(0, len(shape) - 2) + [length, keys]
        numbers = constant(mask)
        if numbers is not None:
            whole = np.broadcast_to(numbers, np.broadcast_shapes(numbers.shape, tuple(wanted)))
            return initializer(f"{softmax.name}.mask", np.ascontiguousarray(whole))
        target = initializer(f"{softmax.name}.shape", np.array(wanted, np.int64))
    elif shape and shape[-1] == keys:
        if len(query.order) == 3:
            return NoMatch("the length of its queries is not known")
        target = _rows_of(query, softmax)
    else:
        return NoMatch("its mask is broadcast to an unknown length")
    front = shape[:-2] if len(shape) > 2 else (1,) * (0 if isinstance(length, int) else 2)
    return _like(node("Expand", [mask, target]), mask, (*front, length, keys))


def _rows_of(query: _Operand, softmax: ir.Node) -> ir.Value:
    """The shape [1, 1, length of the queries, 1], computed."""
    axis = query.order[2]
    size = node("Shape", [query.value], {"start": axis, "end": axis + 1})
    parts = [initializer(f"{softmax.name}.{name}", np.ones(count, np.int64)) for name, count in _ENDS]
    whole = node("Concat", [parts[0], size.outputs[0], parts[1]], {"axis": 0})
    for item, count in ((size, 1), (whole, 4)):
        item.outputs[0].type, item.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([count])
    return whole.outputs[0]


_ENDS = (("front", 2), ("back", 1))


@dataclass
class _Past:
    """Keys and values of earlier calls, and both with the new ones behind them."""

    key: ir.Value
    value: ir.Value
    present: tuple[ir.Value, ir.Value]


def _past(parts: _Parts) -> _Past | None:
    """Takes concatenations of past keys and values into the operator, where nothing else reads them."""
    found = []
    inside = set(parts.nodes)
    for operand in (parts.key, parts.value):
        concat = operand.value.producer()
        if operand.order != (0, 1, 2, 3) or concat is None or concat.op_type != "Concat":
            return None
        if len(concat.inputs) != 2 or concat.attributes.get_int("axis", 0) not in (2, -2):
            return None
        if any(use.node not in inside for use in concat.outputs[0].uses()):
            return None
        found.append(concat)
    if found[0] is found[1] or not any(concat.outputs[0].is_graph_output() for concat in found):
        return None
    (old_key, new_key), (old_value, new_value) = (tuple(concat.inputs) for concat in found)
    if old_key is None or new_key is None or old_value is None or new_value is None:
        return None
    parts.key, parts.value = _split(_plain(new_key)), _split(_plain(new_value))
    parts.nodes += [*found, *parts.key.nodes, *parts.value.nodes]
    return _Past(old_key, old_value, (found[0].outputs[0], found[1].outputs[0]))


def _joined(parts: _Parts) -> tuple[ir.Value, list[ir.Node]] | None:
    """The result with its heads joined, where all operands are split from rows."""
    if any(item.rows is None for item in (parts.query, parts.key, parts.value)):
        return None
    transpose = sole_reader(parts.product.outputs[0])
    if transpose is None or transpose.op_type != "Transpose":
        return None
    reshape = sole_reader(transpose.outputs[0])
    if tuple(transpose.attributes.get_ints("perm", ())) != SPLIT or reshape is None:
        return None
    given, wanted = sizes(transpose.outputs[0]), sizes(reshape.outputs[0])
    if reshape.op_type != "Reshape" or given is None or wanted is None or len(wanted) != 3:
        return None
    heads, width = given[2], given[3]
    if not isinstance(heads, int) or not isinstance(width, int):
        return None
    if wanted != (*given[:2], heads * width):
        return None
    return reshape.outputs[0], [transpose, reshape]


def _like(item: ir.Node, source: ir.Value, shape: Sequence[object]) -> ir.Value:
    """The output of a new node, with what is known of it."""
    _describe(item.outputs[0], source, shape)
    return item.outputs[0]


def _describe(value: ir.Value, source: ir.Value, shape: Sequence[object]) -> None:
    known = [size if isinstance(size, (int, str)) else None for size in shape]
    value.type, value.shape = source.type, ir.Shape(known)


@dataclass(frozen=True)
class FuseAttention(Fusion):
    """Fuse the primitives of scaled dot-product attention into Attention (opset 23)."""

    name: ClassVar[str] = "fuse-attention"
    stage: ClassVar[Stage] = "schedule"
    kernel = "attention"
    patterns = (fuse,)
    since = SINCE
