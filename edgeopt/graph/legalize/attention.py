"""Attention and rotary embedding in terms of products, softmax and elementwise operators.

Attention          softmax(scale · q·kᵀ + mask) · v (Vaswani et al., 2017)
RotaryEmbedding    x₁ · cos - x₂ · sin and x₂ · cos + x₁ · sin of the two halves (Su et al., 2021)
"""

from __future__ import annotations

import math

import onnx_ir as ir

from edgeopt.graph.legalize.table import decomposition, first, integers, make, optional, rank, scalar
from edgeopt.graph.rewriting import NoMatch, Replacement, Result

SPLIT = [0, 2, 1, 3]
"""Between [batch, length, heads, width] and [batch, heads, length, width]."""


_KNOWN = {
    *("is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap"),
    "softmax_precision",
}


@decomposition("Attention")
def attention(item: ir.Node) -> Result:
    """Opset 23, without a causal mask of its own, soft cap or scores as an output."""
    query, key, value = first(item), first(item, 1), first(item, 2)
    mask, past_key, past_value = (optional(item, place) for place in (3, 4, 5))
    count = rank(query)
    if count not in (3, 4) or query.dtype != ir.DataType.FLOAT:
        return NoMatch("its operands are no float32 of 3 or 4 axes")
    if item.attributes.get_int("is_causal", 0) or _soft_cap(item):
        return NoMatch("it has a causal mask of its own or a soft cap")
    if unknown := set(item.attributes) - _KNOWN:
        return NoMatch(f"its attribute {min(unknown)} came later")
    if mask is not None and mask.dtype != query.dtype:
        return NoMatch("its mask is not of the type of its operands")
    if len(item.outputs) > 3 or optional(item, 6) is not None:
        return NoMatch("it has a length of keys, or scores as an output")
    heads = [item.attributes.get_int(name, 0) for name in ("q_num_heads", "kv_num_heads")]
    if count == 3:
        query, key, value = _heads(query, heads[0]), _heads(key, heads[1]), _heads(value, heads[1])
    else:
        heads = [_size(query, 1), _size(key, 1)]
    width = _size(query, 3)
    if not width or not heads[0] or heads[0] != heads[1]:
        return NoMatch("its heads share keys, or their number or width is not known")
    values = {}
    if past_key is not None and past_value is not None:
        key = make("Concat", [past_key, key], key, same=False, axis=2)
        value = make("Concat", [past_value, value], value, same=False, axis=2)
    for output, whole in zip(item.outputs[1:], (key, value), strict=False):
        if output.uses() or output.is_graph_output():
            if past_key is None:
                return NoMatch("it returns keys or values that it only read")
            values[output] = whole
    scale = item.attributes.get_float("scale", None)
    turned = make("Transpose", [key], key, same=False, perm=[0, 1, 3, 2])
    scores = make("MatMul", [query, turned], query, same=False)
    scores = make("Mul", [scores, scalar(1 / math.sqrt(width) if scale is None else scale, query)], scores)
    if mask is not None:
        scores = make("Add", [scores, mask], scores)
    result = make("MatMul", [make("Softmax", [scores], scores, axis=-1), value], query, same=False)
    if count == 3:
        joined = make("Transpose", [result], query, same=False, perm=SPLIT)
        result = make("Reshape", [joined, integers([0, 0, -1])], query, same=False)
    return Replacement({item.outputs[0]: result, **values}, [item])


def _heads(rows: ir.Value, heads: int) -> ir.Value:
    """[batch, length, heads · width] as [batch, heads, length, width]."""
    assert rows.shape is not None
    batch, length, whole = rows.shape
    width = whole // heads if isinstance(whole, int) and heads else None
    split = make("Reshape", [rows, integers([0, 0, heads, -1])], rows, same=False)
    split.shape = ir.Shape([batch, length, heads, width])
    turned = make("Transpose", [split], rows, same=False, perm=SPLIT)
    turned.shape = ir.Shape([batch, heads, length, width])
    return turned


def _soft_cap(item: ir.Node) -> bool:
    cap = item.attributes.get("softcap")
    return cap is not None and cap.as_float() != 0


def _size(value: ir.Value, axis: int) -> int:
    size = None if value.shape is None else value.shape[axis]
    return size if isinstance(size, int) else 0


@decomposition("RotaryEmbedding")
def rotary_embedding(item: ir.Node) -> Result:
    """Opset 23, of whole heads in two halves, with tables for every position."""
    x, cos, sin = first(item), first(item, 1), first(item, 2)
    if rank(x) != 4 or rank(cos) != 3 or optional(item, 3) is not None or x.dtype != ir.DataType.FLOAT:
        return NoMatch("it is not of 4 axes with tables for every position")
    if item.attributes.get_int("interleaved", 0) or item.attributes.get_int("rotary_embedding_dim", 0):
        return NoMatch("it takes pairs of neighbours, or a part of each head")
    width = _size(x, 3)
    if not width:
        return NoMatch("the width of its heads is not known")
    halves = ir.node("Split", [x, integers([width // 2, width // 2])], {"axis": 3}, num_outputs=2)
    assert x.shape is not None
    for output in halves.outputs:
        output.type, output.shape = x.type, ir.Shape([*x.shape[:3], width // 2])
    one, two = halves.outputs
    cos, sin = (make("Unsqueeze", [table, integers([1])], x, same=False) for table in (cos, sin))
    left = make("Sub", [make("Mul", [one, cos], one), make("Mul", [two, sin], two)], one)
    right = make("Add", [make("Mul", [one, sin], one), make("Mul", [two, cos], two)], two)
    return make("Concat", [left, right], x, axis=3)


DECOMPOSITIONS = (attention, rotary_embedding)
