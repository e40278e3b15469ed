from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.graph import proof
from edgeopt.graph.memory import peak_activation
from edgeopt.passes import Change, Context, Facets
from edgeopt.passes.memory_order import MemoryOrder
from edgeopt.platform import load_platform


def branches(count: int, depth: int = 1) -> ir.Model:
    """Wide branches that end in one number each, listed breadth first, and their sum."""
    x = ir.val("x", ir.DataType.FLOAT, [1, 64])
    reps = ir.val("reps", ir.DataType.INT64, [2], const_value=ir.tensor(np.array([1, 16])))
    axes = ir.val("axes", ir.DataType.INT64, [1], const_value=ir.tensor(np.array([1])))
    rows: list[list[ir.Node]] = [[] for _ in range(depth + 2)]
    ends = []
    for branch in range(count):
        value = x
        operators = [("Tile", [reps]), *[("Sigmoid", [])] * depth, ("ReduceSum", [axes])]
        for place, (operator, constants) in enumerate(operators):
            node = ir.node(operator, [value, *constants], name=f"{operator}{branch}.{place}")
            value = node.outputs[0]
            value.name = f"{node.name}_out"
            rows[place].append(node)
        ends.append(value)
    nodes = list(itertools.chain.from_iterable(rows))
    total = ir.node("Sum", ends, name="total")
    y = total.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape([1, 1])
    graph = ir.Graph(
        [x], [y], nodes=[*nodes, total], initializers=[reps, axes], opset_imports={"": 21}, name="g"
    )
    return ir.Model(graph, ir_version=10)


def applied(before: ir.Model, context: Context | None = None) -> tuple[ir.Model, Change]:
    after = before.clone()
    change = MemoryOrder().apply(after, context or Context())
    assert not proof.compare_models(before, after).reason
    assert len(after.graph) == len(before.graph)
    return after, change


@pytest.mark.parametrize(("count", "optimal"), [(4, True), (60, False)])
def test_branches_run_one_after_another(count: int, optimal: bool) -> None:
    after, change = applied(branches(count, depth=1 if optimal else 3))
    wide = 64 * 16 * 4
    assert peak_activation(after).given == change.details["after"]
    assert change.details["before"] >= count * wide
    assert change.details["after"] < 2 * wide + 64 * 4 + count * 4 + 4
    assert "->" in change.summary


def test_an_order_that_cannot_be_better_stays() -> None:
    after, _ = applied(branches(4))
    again, change = applied(after)
    assert [node.name for node in again.graph] == [node.name for node in after.graph]
    assert change.summary == "none"
    assert "which the order has already" in change.skipped[0].reason


def test_only_where_the_runtime_follows_the_file() -> None:
    for target, fires in (("tflite", True), ("onnxruntime", False)):
        rules = load_platform("raspberry-pi-4", target).rules
        _, change = applied(branches(4), Context(facets=Facets(rules=rules)))
        assert bool(change.rewrites) is fires


def test_values_that_a_branch_reads_come_first() -> None:
    """A node that only a subgraph reads keeps its place before it."""
    before = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[1, 8] x, bool c) => (float[1, 1] y)
        <int64[2] reps = {1, 64}, int64[1] axes = {1}>
        {
            a = Tile(x, reps)
            b = Tile(x, reps)
            d = ReduceSum(a, axes)
            e = ReduceMax(b, axes)
            f = If(c) <then_branch = t () => (float[1, 1] g1) { g1 = Add(d, e) },
                       else_branch = u () => (float[1, 1] g2) { g2 = Sub(d, e) }>
            y = Neg(f)
        }
    """)
    after, change = applied(before)
    assert change.details["after"] < change.details["before"]
    assert proof.compare_models(before, after).error == 0


def test_random_graphs_never_get_worse() -> None:
    random = np.random.default_rng(0)
    for _ in range(25):
        x = ir.val("x", ir.DataType.FLOAT, [1, 4])
        values, nodes = [x], []
        for index in range(int(random.integers(3, 30))):
            one, two = (values[int(random.integers(max(0, len(values) - 6), len(values)))] for _ in range(2))
            kind = int(random.integers(3))
            reps = ir.node("Constant", [], {"value_ints": [1, int(random.integers(2, 30))]}, name=f"r{index}")
            reps.outputs[0].name = f"r{index}"
            made = {0: ("Tile", [one, reps.outputs[0]]), 1: ("ReduceMax", [one])}.get(kind)
            operator, inputs = made or ("Concat", [one, two])
            axis = {"axis": 1} if operator == "Concat" else {}
            node = ir.node(operator, inputs, axis, name=f"n{index}")
            node.outputs[0].name = f"v{index}"
            nodes += [reps, node] if operator == "Tile" else [node]
            values.append(node.outputs[0])
        y = values[-1]
        y.type = ir.TensorType(ir.DataType.FLOAT)
        model = ir.Model(ir.Graph([x], [y], nodes=nodes, opset_imports={"": 21}, name="g"), ir_version=10)
        after, _ = applied(model)
        assert peak_activation(after).given <= peak_activation(model).given
