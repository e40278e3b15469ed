"""Which sizes of a graph's values are the same, though they are not known.

ONNX's own shape inference gives every size that it cannot compute a new name, so two values that stem from
one batch look as if theirs differed. Here a size is followed upwards to where it comes from: through what
keeps, moves or broadcasts axes, and through reshapes whose other sizes cancel out.
"""

from __future__ import annotations

import math
from collections import Counter

import onnx_ir as ir

from edgeopt.graph.shape_values import integers, known
from edgeopt.graph.shapes import dims

Size = int | str | tuple[ir.Value, int]
"""A number, the name of a symbolic dimension of an input, or the value and axis that it comes from."""

INVENTED = "unk__"
"""How ONNX's inference begins the names that it makes up."""

_Memo = dict[tuple[ir.Value, int], Size]

_KEEP = {
    *("LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization", "Softmax"),
    *("BatchNormalization", "Relu", "Gelu", "Sigmoid", "Tanh", "Erf", "Cast", "Identity", "Neg", "Sqrt"),
    *("Reciprocal", "Exp", "Log", "Abs", "Not", "Clip", "Dropout", "QuantizeLinear", "DequantizeLinear"),
    *("HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "Softplus", "Mish", "Swish", "RotaryEmbedding"),
    *("QuickGelu", "Cos", "Sin", "LogSoftmax"),
}
_BROADCAST = {
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Where",
    "And",
    "Or",
    "Equal",
    "Less",
    "Greater",
    "Max",
    "Min",
}


def sizes(value: ir.Value | None) -> tuple[Size, ...] | None:
    """Every size of a value; ``None`` where its rank is not known."""
    memo: _Memo = {}
    shape = dims(value)
    if value is None or shape is None:
        return None
    return tuple(_size(value, axis, memo) for axis in range(len(shape)))


def _size(value: ir.Value, axis: int, memo: _Memo) -> Size:
    """One size of a value, followed to where it comes from; a loop where one can do."""
    chain: list[tuple[ir.Value, int]] = []
    while True:
        place = (value, axis)
        if place in memo:
            result: Size = memo[place]
            break
        chain.append(place)
        memo[place] = place  # a value that depends on itself comes from itself
        shape = dims(value)
        known_size = None if shape is None else shape[axis]
        if isinstance(known_size, int):
            result = known_size
            break
        found = _step(value, axis, memo)
        if not isinstance(found, tuple):
            result = _named(value, axis) if found is None else found
            break
        value, axis = found
    memo.update(dict.fromkeys(chain, result))
    return result


def _named(value: ir.Value, axis: int) -> Size:
    name = (dims(value) or (None,) * (axis + 1))[axis]
    return name if isinstance(name, str) and not name.startswith(INVENTED) else (value, axis)


def _step(value: ir.Value, axis: int, memo: _Memo) -> Size | None:
    """Where a size comes from, one node up; ``None`` where it is made here."""
    node = value.producer()
    if node is None or (value is not node.outputs[0] and node.op_type != "Split"):
        return None
    x = node.inputs[0] if node.inputs else None
    shape = dims(x)
    if x is None or shape is None:
        return None
    rank = len(dims(value) or ())
    if node.op_type in _KEEP:
        return (x, axis)
    if node.op_type in _BROADCAST:
        return _broadcast(node, axis, rank, memo)
    if node.op_type == "Transpose":
        order = node.attributes.get_ints("perm", tuple(reversed(range(rank))))
        return (x, order[axis])
    if node.op_type in ("Concat", "Split"):
        cut = node.attributes.get_int("axis", 0)
        return None if cut % rank == axis else (x, axis)
    if node.op_type == "Slice":
        cut_axes = integers(node.inputs[3]) if len(node.inputs) > 3 else None
        return None if cut_axes is None or axis in [item % rank for item in cut_axes] else (x, axis)
    if node.op_type == "MatMul":
        return _product(node, axis, rank, memo)
    if node.op_type == "Gemm" and axis == 0 and not node.attributes.get_int("transA", 0):
        return (x, 0)
    if node.op_type == "Gather":
        return _gathered(node, axis, len(shape))
    return _reshaped(node, axis, memo) if node.op_type == "Reshape" else None


def _broadcast(node: ir.Node, axis: int, rank: int, memo: _Memo) -> Size | None:
    candidates: list[tuple[ir.Value, int]] = []
    for value in node.inputs:
        shape = dims(value)
        if value is None or shape is None:
            return None
        place = axis - (rank - len(shape))
        if place >= 0 and shape[place] != 1:
            candidates.append((value, place))
    if len(candidates) == 1:
        return candidates[0]
    sources = {_size(value, place, memo) for value, place in candidates}
    return sources.pop() if len(sources) == 1 else None


def _product(node: ir.Node, axis: int, rank: int, memo: _Memo) -> Size | None:
    one, two = node.inputs[:2]
    first, second = dims(one), dims(two)
    if one is None or two is None or first is None or second is None or len(first) != rank:
        return None
    if axis == rank - 1:
        return (two, len(second) - 1)
    if axis == rank - 2 or len(second) == 2:
        return (one, axis)
    place = axis - (rank - len(second))
    if place < 0 or second[place] == 1 or _size(two, place, memo) == _size(one, axis, memo):
        return (one, axis)
    return None


def _gathered(node: ir.Node, axis: int, rank: int) -> Size | None:
    data, index = node.inputs[:2]
    given = dims(index)
    if data is None or index is None or given is None:
        return None
    cut = (node.attributes.get_int("axis", 0) or 0) % rank
    if axis < cut:
        return (data, axis)
    return (index, axis - cut) if axis < cut + len(given) else (data, axis - len(given) + 1)


def _reshaped(node: ir.Node, axis: int, memo: _Memo) -> Size | None:
    x = node.inputs[0]
    target = known(node.inputs[1]) if len(node.inputs) > 1 else None
    if x is None or target is None or target.ndim != 1 or axis >= len(target):
        return None
    before = tuple(_size(x, place, memo) for place in range(len(dims(x) or ())))
    wanted: list[Size | None] = []
    for place, item in enumerate(target):
        copies = item == 0 and not node.attributes.get_int("allowzero", 0) and place < len(before)
        wanted.append(before[place] if copies else item if isinstance(item, (int, str)) else None)
    found = wanted[axis]
    if found is None or (isinstance(found, str) and found.startswith(INVENTED)):
        return None
    if found != -1:
        return found
    rest = [item for place, item in enumerate(wanted) if place != axis]
    if None in rest:
        return None
    left, gone = Counter(before), Counter(item for item in rest if item is not None)
    left, gone = left - gone, gone - left
    open_sizes = [item for item in left.elements() if not isinstance(item, int)]
    if any(not isinstance(item, int) for item in gone.elements()) or len(open_sizes) > 1:
        return None
    above = math.prod(item for item in left.elements() if isinstance(item, int))
    below = math.prod(item for item in gone.elements() if isinstance(item, int))
    if open_sizes:
        return open_sizes[0] if above == below else None
    return above // below if below and above % below == 0 else None
