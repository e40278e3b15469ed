"""Layouts: what a reshape keeps, and how many transposes the engine leaves."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.graph.layout import (
    Choice,
    Layout,
    after_reshape,
    assign,
    channels_last,
    identity,
    moves_only_units,
    permutation,
)


@given(
    st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
def test_a_layout_after_a_reshape_is_the_same_memory(before, random):
    size = int(np.prod(before))
    candidates = [
        shape
        for rank in range(1, 5)
        for shape in itertools.product([1, 2, 3, 4, 6, 9], repeat=rank)
        if int(np.prod(shape)) == size
    ]
    after = random.choice(candidates or [(size,)])
    layout = tuple(random.sample(range(len(before)), len(before)))
    found = after_reshape(before, after, layout)
    if found is None:
        return
    logical = np.arange(size).reshape(before)
    memory = logical.transpose(layout).reshape(-1)
    assert np.array_equal(memory, logical.reshape(after).transpose(found).reshape(-1))


@pytest.mark.parametrize(
    ("before", "after", "layout", "expected"),
    [
        ((1, 48, 7, 5), (1, 2, 24, 7, 5), (0, 2, 3, 1), (0, 3, 4, 1, 2)),
        ((1, 8, 7, 5), (1, 8, 35), (0, 2, 3, 1), (0, 2, 1)),
        ((1, 8, 1, 1), (1, 8), (0, 2, 3, 1), (0, 1)),
        ((2, 8, 7, 5), (2, 280), (0, 2, 3, 1), None),
    ],
)
def test_a_reshape_keeps_what_is_split_or_merged_within_whole_groups(before, after, layout, expected):
    assert after_reshape(before, after, layout) == expected


def test_permutation_brings_one_layout_to_another():
    have, want = (0, 2, 3, 1), (3, 1, 0, 2)
    array = np.arange(120).reshape(2, 3, 4, 5)
    moved = array.transpose(have).transpose(permutation(have, want))
    assert np.array_equal(moved, array.transpose(want))


def test_axes_of_size_one_move_for_free():
    assert moves_only_units((1, 8, 1, 1), (0, 1, 2, 3), (0, 2, 3, 1))
    assert not moves_only_units((1, 8, 2, 1), (0, 1, 2, 3), (0, 2, 3, 1))


class Node:
    def __init__(self, kind: str, inputs: list[ir.Value], shape: tuple[int, ...]) -> None:
        self.kind = kind
        self.inputs = inputs
        self.outputs = [value(f"{kind}:{'+'.join(str(v.name) for v in inputs)}", shape)]


def value(name: str, shape: tuple[int, ...]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def offers(steps: list[Node]):
    def offer(number: int, is_input: bool, index: int, layout: Layout) -> Choice | None:
        node = steps[number]
        if node.kind == "conv":
            return Choice((channels_last(4),), (channels_last(4),))
        if node.kind == "ordered":
            return Choice((identity(4),), (identity(4),))
        return Choice((layout,) * len(node.inputs), (layout,))

    return offer


def moved(steps: list[Node], inputs: list[ir.Value], **options) -> int:
    return assign(steps, offers(steps), inputs=inputs, constant=lambda _: False, **options).moved


def test_a_chain_of_convolutions_needs_no_transpose():
    x = value("x", (1, 8, 4, 4))
    first = Node("conv", [x], (1, 8, 4, 4))
    act = Node("add", [first.outputs[0], first.outputs[0]], (1, 8, 4, 4))
    last = Node("conv", [act.outputs[0]], (1, 8, 4, 4))
    assert moved([first, act, last], [x]) == 0


def test_two_branches_of_one_fixed_input_share_one_transpose():
    x = value("x", (1, 8, 4, 4))
    left, right = Node("a", [x], (1, 8, 4, 4)), Node("b", [x], (1, 8, 4, 4))
    one, two = Node("conv", [left.outputs[0]], (1, 8, 4, 4)), Node("conv", [right.outputs[0]], (1, 8, 4, 4))
    cost = moved([left, right, one, two], [x], fixed={"x": identity(4)})
    assert 0 < cost < 2 * 128 + 256 + 256


def test_a_transpose_stands_where_the_value_is_smallest():
    x = value("x", (1, 64, 16, 16))
    conv = Node("conv", [x], (1, 64, 16, 16))
    small = Node("shrink", [conv.outputs[0]], (1, 2, 16, 16))
    last = Node("ordered", [small.outputs[0]], (1, 2, 16, 16))
    found = assign([conv, small, last], offers([conv, small, last]), inputs=[x], constant=lambda _: False)
    assert found.moved == 2 * 256 + 256
    assert found.choices[1].outputs[0] == channels_last(4)


def test_a_step_without_a_choice_is_an_error():
    x = value("x", (1, 8, 4, 4))
    with pytest.raises(ValueError, match="offers no layout"):
        assign([Node("a", [x], (1, 8, 4, 4))], lambda *_: None, inputs=[x], constant=lambda _: False)
