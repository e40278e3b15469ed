"""Nodes that do nothing, and nodes that follow each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.graph.change import NoMatch
from edgeopt.graph.region import graphs_of
from edgeopt.graph.rewriting import Replacement, Result, constant, initializer, node, opset, rule
from edgeopt.graph.shape_values import integers, known
from edgeopt.graph.shapes import dims, static_dims
from edgeopt.graph.splice import decides_range
from edgeopt.passes.simplify.shape_rules import reshape_target


@rule("Identity", shared=True)
def drop_identity(identity: ir.Node) -> Result:
    """Identity(x) is x."""
    return identity.inputs[0]


@rule("Dropout", shared=True)
def drop_dropout(dropout: ir.Node) -> Result:
    """In inference Dropout passes its input on."""
    if len(dropout.outputs) > 1 and (dropout.outputs[1].uses() or dropout.outputs[1].is_graph_output()):
        return NoMatch("its mask is read")
    if opset(dropout) < 7 and not dropout.attributes.get_int("is_test", 0):
        return NoMatch("it is in training mode")
    if len(dropout.inputs) > 2 and dropout.inputs[2] is not None:
        training = constant(dropout.inputs[2])
        if training is None or training.any():
            return NoMatch("it is, or may be, in training mode")
    return dropout.inputs[0]


@rule("Cast", shared=True)
def drop_cast(cast: ir.Node) -> Result:
    """A cast to the type that the value has already."""
    x = cast.inputs[0]
    return x if x is not None and x.dtype is not None and x.dtype == _target(cast) else None


@rule("Cast -> Cast", shared=True)
def merge_casts(first: ir.Node, second: ir.Node) -> Result:
    """The first cast goes where it loses nothing."""
    x = first.inputs[0]
    if x is None or x.dtype is None or not _holds(_target(first), x.dtype):
        return None
    return node("Cast", [x], {"to": int(_target(second))})


@rule("Reshape|Flatten|Expand|Squeeze|Unsqueeze", name="reshape to the same shape", shared=True)
def drop_reshape(reshape: ir.Node) -> Result:
    """The value has the shape already."""
    return reshape.inputs[0] if _same_shape(reshape) or _asks_for_same(reshape) else None


@rule("Reshape|Flatten|Squeeze|Unsqueeze -> Reshape|Flatten|Squeeze|Unsqueeze", name="reshapes", shared=True)
def merge_reshapes(first: ir.Node, second: ir.Node) -> Result:
    """Only the last shape counts."""
    x, wanted = first.inputs[0], dims(second.outputs[0])
    if x is None or wanted is None or (second.outputs[0].is_graph_output() and x.is_graph_input()):
        return None
    if wanted == dims(x):
        return None if None in wanted else x
    if any(size == 0 for size in wanted) or opset(second) < 5:
        return None
    target = reshape_target(list(wanted), dims(x))
    if target is None:
        return None
    return node("Reshape", [x, initializer(f"{second.name}.shape", np.array(target, np.int64))])


@rule("Transpose", shared=True)
def drop_transpose(transpose: ir.Node) -> Result:
    """A transposition that leaves every axis in its place."""
    order = _order(transpose)
    return transpose.inputs[0] if order is not None and list(order) == sorted(order) else None


@rule("Transpose -> Transpose", shared=True)
def merge_transposes(first: ir.Node, second: ir.Node) -> Result:
    """One transposition, or none."""
    one, two = _order(first), _order(second)
    if one is None or two is None:
        return None
    both = [one[axis] for axis in two]
    return first.inputs[0] if both == sorted(both) else node("Transpose", [first.inputs[0]], {"perm": both})


@rule("Slice", shared=True)
def drop_slice(cut: ir.Node) -> Result:
    """A slice that takes everything, forwards."""
    if len(cut.inputs) > 4 and cut.inputs[4] is not None:
        steps = integers(cut.inputs[4])
        if steps is None or any(step != 1 for step in steps):
            return None
    return cut.inputs[0] if _same_shape(cut) or _takes_all(cut) else None


@rule("Pad", shared=True)
def drop_pad(pad: ir.Node) -> Result:
    """Padding by nothing."""
    sizes = pad.attributes.get_ints("pads", ()) if opset(pad) < 11 else constant(pad.inputs[1])
    return pad.inputs[0] if sizes is not None and len(sizes) and not np.any(sizes) else None


@rule("Tile", shared=True)
def drop_tile(tile: ir.Node) -> Result:
    """One repetition of every axis."""
    counts = constant(tile.inputs[1]) if opset(tile) >= 6 else None
    return tile.inputs[0] if counts is not None and np.all(counts == 1) else None


@rule("Concat|Sum|Max|Min|Mean", name="one operand", shared=True)
def drop_single(joined: ir.Node) -> Result:
    """Joining one value with nothing."""
    return joined.inputs[0] if len(joined.inputs) == 1 else None


@rule("Resize", shared=True)
def drop_resize(resize: ir.Node) -> Result:
    """To the size that the value has."""
    if resize.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return None
    shape = static_dims(resize.outputs[0])
    return resize.inputs[0] if shape is not None and shape == static_dims(resize.inputs[0]) else None


@rule("Add|Sub|Mul|Div|Pow", name="neutral operand", shared=True)
def drop_neutral(arithmetic: ir.Node) -> Result:
    """x + 0, x - 0, x · 1, x / 1, x ^ 1, where the constant does not broadcast x."""
    neutral = 0 if arithmetic.op_type in ("Add", "Sub") else 1
    for position in (1, 0):
        if position == 0 and arithmetic.op_type not in ("Add", "Mul"):
            return None
        numbers, x = constant(arithmetic.inputs[position]), arithmetic.inputs[1 - position]
        if numbers is None or x is None or not numbers.size or not np.all(numbers == neutral):
            continue
        shape, result = dims(x), dims(arithmetic.outputs[0])
        if x.dtype is None or x.dtype != arithmetic.outputs[0].dtype or shape is None:
            return None
        if (None not in shape and shape == result) or (numbers.size == 1 and numbers.ndim <= len(shape)):
            return x
    return None


@rule("Neg -> Neg", shared=True)
def drop_double_negation(first: ir.Node, _: ir.Node) -> Result:
    """-(-x) is x."""
    return first.inputs[0]


@rule("Not -> Not", shared=True)
def drop_double_not(first: ir.Node, _: ir.Node) -> Result:
    """not not x is x."""
    return first.inputs[0]


@rule("Where", shared=True)
def choose_where(where: ir.Node) -> Result:
    """A condition that is the same everywhere."""
    condition = constant(where.inputs[0])
    if condition is None or not condition.size or not (condition.all() or not condition.any()):
        return None
    chosen = where.inputs[1] if condition.all() else where.inputs[2]
    shape = dims(chosen)
    return chosen if shape is not None and None not in shape and shape == dims(where.outputs[0]) else None


@rule("GRU|LSTM|RNN", name="initial state of zeros", shared=True)
def drop_zero_state(recurrent: ir.Node) -> Result:
    """A state that starts at zero is the default."""
    inputs = list(recurrent.inputs)
    zeros = [place for place in range(5, min(7, len(inputs))) if _is_zero(inputs[place])]
    if not zeros:
        return None
    makers = [value.producer() for place in zeros if (value := inputs[place]) is not None]
    for place in zeros:
        inputs[place] = None
    outputs = len(recurrent.outputs)
    new = ir.Node("", recurrent.op_type, inputs, list(recurrent.attributes.values()), num_outputs=outputs)
    nodes = [*(maker for maker in makers if maker is not None), recurrent]  # the zeros are part of the proof
    read = [place for place, old in enumerate(recurrent.outputs) if old.uses() or old.is_graph_output()]
    return Replacement({recurrent.outputs[place]: new.outputs[place] for place in read}, nodes)


@rule("If", name="constant condition")
def choose_branch(choice: ir.Node) -> Result:
    """The branch that is always taken stands in place of the choice."""
    if decides_range(choice):
        return NoMatch("a Range reads it, which takes one number of any rank only while nobody can see it")
    condition = constant(choice.inputs[0])
    if condition is None:
        found = known(choice.inputs[0])
        if found is None or found.size != 1 or not isinstance(found.reshape(-1)[0], bool):
            return None
        condition = np.array(found.reshape(-1)[0])
    taken = "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"
    branch = graphs_of(choice.attributes[taken])[0].clone(allow_outer_scope_values=True)
    constants = list(branch.initializers.values())
    outputs = list(branch.outputs)
    branch.outputs.clear()
    branch.initializers.clear()
    branch.remove(list(branch))
    if any(value.const_value is None for value in constants):
        return NoMatch("an initializer of the branch has no value")
    return Replacement(dict(zip(choice.outputs, outputs, strict=True)), [choice])


def _is_zero(value: ir.Value | None) -> bool:
    numbers, maker = constant(value), None if value is None else value.producer()
    if numbers is None and maker is not None and maker.op_type == "Expand":
        numbers = constant(maker.inputs[0])
    if numbers is None and maker is not None and maker.op_type == "ConstantOfShape":
        given = maker.attributes.get("value")
        numbers = np.zeros(1) if given is None else given.as_tensor().numpy()
    return numbers is not None and not numbers.any()


def _target(cast: ir.Node) -> ir.DataType:
    return ir.DataType(cast.attributes.get_int("to", 0))


def _holds(wide: ir.DataType, narrow: ir.DataType) -> bool:
    """Whether every number of one type is a number of the other."""
    if wide == narrow:
        return True
    if narrow == ir.DataType.STRING or wide == ir.DataType.STRING or wide == ir.DataType.BOOL:
        return False
    try:
        return bool(np.can_cast(narrow.numpy(), wide.numpy(), "safe"))
    except TypeError:
        return False


def _same_shape(item: ir.Node) -> bool:
    before, after = dims(item.inputs[0]), dims(item.outputs[0])
    return before is not None and before == after and None not in before


def _asks_for_same(reshape: ir.Node) -> bool:
    """Whether every size that a Reshape asks for is the one there is, so that a -1 is too."""
    given = dims(reshape.inputs[0])
    if reshape.op_type != "Reshape" or opset(reshape) < 5 or reshape.attributes.get_int("allowzero", 0) != 0:
        return False
    wanted = known(reshape.inputs[1])
    if given is None or wanted is None or wanted.shape != (len(given),) or list(wanted).count(-1) > 1:
        return False
    pairs = zip(wanted, given, strict=True)
    return all(size in (0, -1) or (size is not None and size == there) for size, there in pairs)


def _takes_all(cut: ir.Node) -> bool:
    """Whether a Slice by steps of 1 goes from the first to past the last element of every axis."""
    given = dims(cut.inputs[0])
    if given is None or len(cut.inputs) < 3:
        return False
    starts, ends = known(cut.inputs[1]), known(cut.inputs[2])
    if starts is None or ends is None or starts.ndim != 1 or any(start != 0 for start in starts):
        return False
    axes: list[int] | None = list(range(len(starts)))
    if len(cut.inputs) > 3 and cut.inputs[3] is not None:
        axes = integers(cut.inputs[3])
    return axes is not None and all(_is_end(end, given[axis]) for end, axis in zip(ends, axes, strict=True))


def _is_end(end: object, size: int | str | None) -> bool:
    if isinstance(end, int):
        return end >= 2**31 - 1 or (isinstance(size, int) and end >= size)
    return end is not None and end == size


def _order(transpose: ir.Node) -> Sequence[int] | None:
    order = transpose.attributes.get_ints("perm", None)
    if order is not None:
        return order
    shape = dims(transpose.inputs[0])
    return None if shape is None else list(reversed(range(len(shape))))


RULES = (
    drop_identity,
    drop_dropout,
    drop_cast,
    merge_casts,
    drop_reshape,
    merge_reshapes,
    drop_transpose,
    merge_transposes,
    drop_slice,
    drop_pad,
    drop_tile,
    drop_single,
    drop_resize,
    drop_neutral,
    drop_double_negation,
    drop_double_not,
    choose_where,
    drop_zero_state,
    choose_branch,
)
