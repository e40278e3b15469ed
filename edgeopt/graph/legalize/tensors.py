"""Operators on shapes and places in terms of older ones.

OneHot   Where(indices = range(depth), on, off)
Trilu    Where(constant mask, x, 0), where the last two sizes are known
Pad      pads of all axes instead of pads and axes
Resize   sizes and scales of all axes instead of those of some
Shape    Shape and Slice instead of start and end
Reshape  without allowzero, where no size is zero
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.legalize.table import decomposition, first, integers, make, optional, rank, sizes
from edgeopt.graph.rewriting import NoMatch, Result, constant, initializer

BOOL = ir.DataType.BOOL


@decomposition("OneHot")
def one_hot(item: ir.Node) -> Result:
    """Opset 9."""
    indices, out = first(item), item.outputs[0]
    depth, values = constant(item.inputs[1]), constant(item.inputs[2])
    count = rank(indices)
    if depth is None or values is None or count is None or indices.dtype is None:
        return NoMatch("its depth or values are computed, or the rank of its indices is not known")
    size = int(depth.reshape(()))
    axis = item.attributes.get_int("axis", -1)
    axis = (-1 if axis is None else axis) % (count + 1)
    places = np.arange(size, dtype=np.int64)
    if indices.dtype != ir.DataType.INT64:
        indices = make("Cast", [indices], indices, dtype=ir.DataType.INT64, to=ir.DataType.INT64.value)
    shape = [1] * (count + 1)
    shape[axis] = size
    wide = make("Unsqueeze", [indices, integers([axis], "axes")], indices, same=False)
    negative = make("Less", [wide, initializer("zero", np.zeros((), places.dtype))], wide, dtype=BOOL)
    around = make("Add", [wide, initializer("depth", np.asarray(size, places.dtype))], wide)
    wrapped = make("Where", [negative, around, wide], wide)
    hit = make("Equal", [wrapped, initializer("places", places.reshape(shape))], out, dtype=BOOL)
    off, on = (initializer(name, values[index]) for index, name in enumerate(("off", "on")))
    return make("Where", [hit, on, off], out)


@decomposition("Trilu")
def trilu(item: ir.Node) -> Result:
    """Opset 14."""
    x, k = first(item), optional(item, 1)
    offset = np.zeros((), np.int64) if k is None else constant(k)
    if offset is None or x.shape is None or len(x.shape) < 2 or x.dtype is None:
        return NoMatch("its diagonal is computed, or the rank of its input is not known")
    rows, columns = x.shape[-2], x.shape[-1]
    if not isinstance(rows, int) or not isinstance(columns, int):
        return NoMatch("the sizes of its last two axes are not known")
    full = np.ones((rows, columns), bool)
    upper = item.attributes.get_int("upper", 1)
    mask = (np.triu if upper else np.tril)(full, int(offset.reshape(())))
    zero = initializer("zero", np.zeros((), x.dtype.numpy()))
    return make("Where", [initializer("mask", mask), x, zero], x)


@decomposition("Pad", below=18)
def pad(item: ir.Node) -> Result:
    """Its input axes came with opset 18."""
    x, pads, axes = first(item), first(item, 1), optional(item, 3)
    if axes is None:
        return None
    count, known, amounts = rank(x), constant(axes), constant(pads)
    if count is None or known is None or amounts is None:
        return NoMatch("its pads or axes are computed")
    whole = np.zeros(2 * count, np.int64)
    chosen = [int(axis) % count for axis in known]
    whole[chosen] = amounts[: len(chosen)]
    whole[[axis + count for axis in chosen]] = amounts[len(chosen) :]
    inputs = [x, initializer("pads", whole)]
    if (value := optional(item, 2)) is not None:
        inputs.append(value)
    mode = item.attributes.get_string("mode", "constant")
    return make("Pad", inputs, item.outputs[0], mode=mode)


@decomposition("Resize", below=18)
def resize(item: ir.Node) -> Result:
    """Its attribute axes came with opset 18."""
    x, out = first(item), item.outputs[0]
    axes, count = item.attributes.get_ints("axes"), rank(x)
    if not axes:
        return None
    if count is None or optional(item, 1) is not None:
        return NoMatch("the rank of its input is not known, or it crops")
    chosen = [axis % count for axis in axes]
    scales, wanted = (optional(item, index) for index in (2, 3))
    known, target = constant(scales), constant(wanted)
    inputs: list[ir.Value | None] = [x, None]
    if known is not None and known.size:
        whole = np.ones(count, np.float32)
        whole[chosen] = known
        inputs.append(initializer("scales", whole))
    elif target is not None and (shape := sizes(x)) is not None:
        full = np.asarray(shape, np.int64)
        full[chosen] = target
        inputs += [None, initializer("sizes", full)]
    else:
        return NoMatch("its scales or sizes are computed, or the input's sizes are not known")
    if item.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return NoMatch("it keeps the aspect ratio, which came with opset 18")
    kept = {name: value for name, value in item.attributes.items() if name != "axes"}
    made = ir.Node("", "Resize", inputs, kept.values())
    made.outputs[0].type, made.outputs[0].shape = out.type, out.shape
    return made


@decomposition("Shape", below=15)
def shape(item: ir.Node) -> Result:
    """Its attributes start and end came with opset 15."""
    start, end = item.attributes.get("start"), item.attributes.get("end")
    if end is None and (start is None or start.as_int() == 0):
        return None
    x, out = first(item), item.outputs[0]
    whole = make("Shape", [x], out, same=False)
    count = rank(x)
    whole.shape = None if count is None else ir.Shape([count])
    limits = (0 if start is None else start.as_int(), 2**31 - 1 if end is None else end.as_int())
    inputs = [whole, *(integers([limit], name) for limit, name in zip(limits, ("start", "end"), strict=True))]
    return make("Slice", [*inputs, integers([0], "axes")], out)


@decomposition("Reshape", below=14)
def reshape(item: ir.Node) -> Result:
    """Its attribute allowzero came with opset 14; it says nothing where no size is zero."""
    if not item.attributes.get_int("allowzero", 0):
        return None
    if not _never_zero(first(item, 1)):
        return NoMatch("with allowzero, a size of its target may be zero")
    return make("Reshape", [first(item), first(item, 1)], item.outputs[0])


PASS_ON = frozenset({"Cast", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze"})
"""Operators whose output holds only numbers of their first input."""


def _never_zero(value: ir.Value) -> bool:
    """Whether numbers are not zero, sizes of tensors being at least 1."""
    if (known := constant(value)) is not None:
        return bool(known.all())
    maker = value.producer()
    if maker is None:
        return False
    if maker.op_type in ("Shape", "Size"):
        return True
    if maker.op_type in ("Concat", "Mul"):
        return all(part is not None and _never_zero(part) for part in maker.inputs)
    return maker.op_type in PASS_ON and _never_zero(first(maker))


DECOMPOSITIONS = (one_hot, trilu, pad, resize, shape, reshape)
