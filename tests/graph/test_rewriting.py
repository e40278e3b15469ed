import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.graph import names
from edgeopt.graph.execute import Executor
from edgeopt.graph.rewriting import (
    NoMatch,
    Result,
    another_reader,
    constant,
    initializer,
    name_nodes,
    node,
    original_names,
    rewrite,
    rule,
)
from edgeopt.passes import Context


@pytest.fixture(autouse=True)
def reproducers_beside_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def value(name: str, *shape: int | str, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def model(
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    nodes: Sequence[ir.Node],
    weights: Sequence[ir.Value] = (),
    opset: int = 21,
) -> ir.Model:
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=weights, opset_imports={"": opset}, name="g")
    made = ir.Model(graph, ir_version=10)
    return ir.from_proto(ir.to_proto(made))


@rule("Mul -> Mul")
def merge_scales(first: ir.Node, second: ir.Node) -> Result:
    one, two = constant(first.inputs[1]), constant(second.inputs[1])
    if one is None or two is None:
        return NoMatch("a factor is not constant")
    if other := another_reader(first.inputs[1], than=first):
        return NoMatch(f"{other.name!r} reads the factor too")
    return node("Mul", [first.inputs[0], initializer("product", one * two)])


@rule("Mul -> Mul")
def merge_scales_wrongly(first: ir.Node, second: ir.Node) -> Result:
    one, two = constant(first.inputs[1]), constant(second.inputs[1])
    if one is None or two is None:
        return None
    return node("Mul", [first.inputs[0], initializer("product", one + two)])


def scales(shape: tuple[int | str, ...] = ("batch", 4), output_of_first: bool = False) -> ir.Model:
    x = value("x", *shape)
    one = initializer("one", np.array([1, 2, 3, 4], np.float32))
    two = initializer("two", np.array([3], np.float32))
    first = ir.node("Mul", [x, one], name="first", outputs=[value("a", *shape)])
    second = ir.node("Mul", [first.outputs[0], two], name="second", outputs=[value("y", *shape)])
    outputs = [second.outputs[0]] + ([first.outputs[0]] if output_of_first else [])
    return model([x], outputs, [first, second], [one, two])


def test_a_rewrite_keeps_the_outputs_and_their_names() -> None:
    before = scales()
    after = before.clone()
    change = rewrite(after, [merge_scales], Context())
    assert [item.op_type for item in after.graph] == ["Mul"]
    assert [item.rule for item in change.rewrites] == ["Mul -> Mul"]
    assert change.rewrites[0].error is not None and change.rewrites[0].error < 1e-6
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    with Executor(before) as one, Executor(after) as two:
        np.testing.assert_allclose(one.run({"x": x})["y"], two.run({"x": x})["y"], rtol=1e-6)
    assert list(after.graph.initializers) == ["product"]


def test_original_names_are_carried_forward() -> None:
    after = scales()
    change = rewrite(after, [merge_scales], Context())
    assert change.rewrites[0].site == "second"
    assert change.rewrites[0].replaced == ("first", "second")
    (merged,) = after.graph
    assert original_names(merged) == ("first", "second")
    assert json.loads(merged.metadata_props[names.ORIGINAL_NAMES]) == ["first", "second"]
    reloaded = ir.from_proto(ir.to_proto(after))
    assert original_names(reloaded.graph[0]) == ("first", "second")


def test_a_value_that_is_an_output_of_the_graph_stays() -> None:
    after = scales(output_of_first=True)
    change = rewrite(after, [merge_scales], Context())
    assert not change.rewrites
    assert [item.reason for item in change.skipped] == ["'a' is an output of the graph"]


def test_a_shared_weight_is_not_touched() -> None:
    before = scales()
    extra = ir.node("Mul", [before.graph.inputs[0], before.graph.initializers["one"]], name="third")
    extra.outputs[0].name = "z"
    extra.outputs[0].shape, extra.outputs[0].type = ir.Shape(["batch", 4]), ir.TensorType(ir.DataType.FLOAT)
    before.graph.append(extra)
    before.graph.outputs.append(extra.outputs[0])
    change = rewrite(before, [merge_scales], Context())
    assert not change.rewrites
    assert [item.reason for item in change.skipped] == ["'third' reads the factor too"]


@pytest.mark.parametrize("shape", [(3, 4), ("batch", 4), (None, 4), ("batch", "time", 4)])
def test_a_wrong_rule_is_caught_and_left_out(shape: tuple[int | str, ...]) -> None:
    after = scales(shape)
    change = rewrite(after, [merge_scales_wrongly], Context())
    assert not change.rewrites
    assert [item.name for item in after.graph] == ["first", "second"]
    assert len(change.notes) == 1
    assert "'Mul -> Mul' at 'second' was left out, its proof failed" in change.notes[0]
    assert "max|Δ|" in change.skipped[0].reason


def test_without_verification_nothing_is_proved() -> None:
    after = scales()
    change = rewrite(after, [merge_scales_wrongly], Context(verify="off"))
    assert change.rewrites[0].error is None


def test_the_limit_stops_rewrites_at_a_fixed_place() -> None:
    for limit, nodes in [(0, 2), (1, 1)]:
        after = scales()
        context = Context(limit=limit)
        rewrite(after, [merge_scales], context)
        assert len(after.graph) == nodes


def test_subgraphs_are_rewritten_too() -> None:
    condition = value("condition", dtype=ir.DataType.BOOL)
    x = value("x", 2, 4)
    branches = []
    for branch, factor in (("yes", 2.0), ("no", 3.0)):
        constants = [initializer(f"{branch}{i}", np.array([factor], np.float32)) for i in range(2)]
        first = ir.node("Mul", [x, constants[0]], name=f"{branch}/first")
        first.outputs[0].name = f"{branch}_a"
        second = ir.node("Mul", [first.outputs[0], constants[1]], name=f"{branch}/second")
        second.outputs[0].name = f"{branch}_b"
        branches.append(
            ir.Graph([], [second.outputs[0]], nodes=[first, second], initializers=constants, name=branch)
        )
    choose = ir.node(
        "If", [condition], {"then_branch": branches[0], "else_branch": branches[1]}, name="choose"
    )
    choose.outputs[0].name = "y"
    choose.outputs[0].shape, choose.outputs[0].type = ir.Shape([2, 4]), ir.TensorType(ir.DataType.FLOAT)
    before = model([condition, x], [choose.outputs[0]], [choose])
    after = before.clone()
    change = rewrite(after, [merge_scales], Context())
    assert len(change.rewrites) == 2
    feeds = {"x": np.ones((2, 4), np.float32)}
    for flag in (True, False):
        with Executor(before) as one, Executor(after) as two:
            feeds["condition"] = np.array(flag)
            np.testing.assert_allclose(one.run(feeds)["y"], two.run(feeds)["y"])


def test_nodes_without_names_get_stable_ones() -> None:
    unnamed = scales()
    for item in unnamed.graph:
        item.name = None
    name_nodes(unnamed)
    assert [item.name for item in unnamed.graph] == ["Mul:a", "Mul:y"]
    assert original_names(unnamed.graph[0]) == ("Mul:a",)


def test_large_constants_are_mapped_and_not_held() -> None:
    numbers = np.arange(2**22 + 5, dtype=np.float32)
    large = initializer("large", numbers)
    assert isinstance(constant(large), np.memmap)
    np.testing.assert_array_equal(constant(large), numbers)
    assert not isinstance(constant(initializer("small", numbers[:10])), np.memmap)
