"""Every decomposition against the numbers of ONNX's own node tests."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.backend.test.case import node as node_tests

from edgeopt.graph.execute import Executor
from edgeopt.graph.legalize import DECOMPOSITIONS, legalize
from edgeopt.graph.names import name_nodes
from edgeopt.graph.proof import compare_models
from edgeopt.graph.rewriting import initializer
from edgeopt.graph.shapes import infer_shapes
from edgeopt.platform import load_runtime
from edgeopt.targets._opset import lower

TENSORRT = load_runtime("tensorrt").at("8.2.1")

FROZEN = {"OneHot": (1, 2), "Trilu": (1,), "Pad": (1, 3), "Resize": (1, 2, 3), "Reshape": (1,)}
"""Inputs of the node tests that are constant in models."""

OPERATORS = (
    *("Gelu", "HardSwish", "Mish", "Swish", "Celu", "Softplus", "Softsign", "Shrink", "Reciprocal", "Mod"),
    *("Xor", "IsInf", "Clip", "CastLike", "LayerNormalization", "RMSNormalization", "GroupNormalization"),
    *("InstanceNormalization", "MeanVarianceNormalization", "OneHot", "Trilu", "Pad", "Resize", "Shape"),
    *("Reshape", "Attention", "RotaryEmbedding"),
)

LACKED = {"Celu", "Softplus", "Softsign"}
"""Operators that TensorRT 8.2 has; their decompositions serve runtimes without them."""


MODULES = {"InstanceNormalization": "instance_normalization"}
"""Where a node test's module is not called like its operator."""


OWN_TEST = {"CastLike", "Reshape"}
"""Operators whose node tests are of other types, or of sizes of zero; they have tests of their own here."""


def freeze(model: ir.Model, feeds: dict[str, np.ndarray], indices: tuple[int, ...]) -> None:
    """Makes inputs of the only node constant."""
    (node,) = model.graph
    for index in indices:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None or value.name not in feeds:
            continue
        name = value.name
        model.graph.inputs.remove(value)
        constant = initializer(name, feeds.pop(name))
        model.graph.register_initializer(constant)
        node.replace_input_with(index, constant)


def cases(operator: str) -> list[Any]:
    """The node tests of one operator on common types, but for expanded ones and remainders of infinity."""
    module = MODULES.get(operator, operator.lower())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the generators overflow on purpose
        importlib.import_module(f"{node_tests.__name__}.{module}")
    found = []
    for case in node_tests._NodeTestCases:
        graph = case.model.graph
        if (
            len(graph.node) != 1
            or graph.node[0].op_type != operator
            or "expanded" in case.name
            or "edge_cases" in case.name
        ):
            continue
        values = (*graph.input, *graph.output)
        if all(value.type.tensor_type.elem_type in (1, 6, 7, 9) for value in values):
            found.append(case)
    return found


def runs(operator: str) -> bool:
    return TENSORRT.runs(operator) and operator not in LACKED


@pytest.mark.parametrize("operator", OPERATORS)
def test_decomposition_computes_what_the_node_tests_say(operator: str) -> None:
    decomposed = 0
    for case in cases(operator):
        model = ir.from_proto(case.model)
        inputs, outputs = case.data_sets[0]
        feeds = {
            value.name: np.asarray(array) for value, array in zip(model.graph.inputs, inputs, strict=True)
        }
        freeze(model, feeds, FROZEN.get(operator, ()))
        name_nodes(model)
        infer_shapes(model)
        change = legalize(model, runs, 13)
        assert not change.notes, case.name
        if not change.rewrites:
            continue
        decomposed += 1
        assert all(runs(node.op_type) for node in model.graph.all_nodes()), case.name
        assert not lower(model, 13), case.name
        model.ir_version = 8
        with Executor(model) as executor:
            got = executor.run(feeds)
        for value, array in zip(model.graph.outputs, outputs, strict=True):
            np.testing.assert_allclose(got[value.name], array, rtol=1e-4, atol=1e-5, err_msg=case.name)
    assert decomposed or operator in OWN_TEST, f"no case of {operator} was decomposed"


def test_every_decomposition_has_a_test() -> None:
    declared = {next(iter(item.rule.operators[0])) for item in DECOMPOSITIONS}
    assert declared == set(OPERATORS)


def decompose(model: ir.Model) -> ir.Model:
    """Legalizes a copy for opset 13, which must succeed."""
    after = model.clone()
    name_nodes(after)
    infer_shapes(after)
    change = legalize(after, runs, 13)
    assert change.rewrites and not change.notes
    assert not lower(after, 13)
    return after


def parsed(text: str) -> ir.Model:
    """A model from ONNX's text format."""
    return ir.from_proto(onnx.parser.parse_model(text))


def test_cast_like_casts_to_the_type_of_its_second_input() -> None:
    model = parsed(
        """<ir_version: 8, opset_import: ["" : 17]>
        agraph (float[N] x, int32[M] like) => (int32[N] y) { y = CastLike(x, like) }"""
    )
    after = decompose(model)
    assert [node.op_type for node in after.graph] == ["Cast"]
    assert not compare_models(model, after).reason


def test_reshape_forgets_allowzero_where_no_size_is_zero() -> None:
    model = parsed(
        """<ir_version: 8, opset_import: ["" : 17]>
        agraph (float[N, 6] x) => (float[N, 2, 3] y)
        <int64[1] zero = {0}, int64[2] rest = {2, 3}> {
            shape = Shape(x)
            batch = Gather(shape, zero)
            target = Concat<axis = 0>(batch, rest)
            y = Reshape<allowzero = 1>(x, target)
        }"""
    )
    assert not compare_models(model, decompose(model)).reason


def test_a_decomposition_that_cannot_be_made_says_why() -> None:
    model = parsed(
        """<ir_version: 8, opset_import: ["" : 17]>
        agraph (float[2, 3] x, int64[2] target) => (float[A, B] y) {
            y = Reshape<allowzero = 1>(x, target)
        }"""
    )
    name_nodes(model)
    change = legalize(model, runs, 13)
    assert not change.rewrites
    assert [item.reason for item in change.skipped] == ["with allowzero, a size of its target may be zero"]


def test_what_the_runtime_has_stays() -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["" : 20]>
        agraph (float[N, 6] x, float[6] scale) => (float[N, 6] z) {
            y = LayerNormalization(x, scale)
            z = Gelu(y)
        }"""
    )
    rules = load_runtime("tensorrt").at("10.3.0")
    assert not legalize(model, rules.runs, rules.opset[1]).rewrites
    assert [node.op_type for node in model.graph] == ["LayerNormalization", "Gelu"]


def test_functions_are_inlined_and_legalized() -> None:
    model = parsed(
        """<ir_version: 9, opset_import: ["" : 20, "own" : 1]>
        agraph (float[N, 6] x) => (float[N, 6] y) { y = own.twice(x) }
        <domain: "own", opset_import: ["" : 20]>
        twice (x) => (y) { g = Gelu(x) y = Add(g, g) }"""
    )
    after = decompose(model)
    assert not after.functions
    assert "Erf" in {node.op_type for node in after.graph}
    assert not compare_models(model, after).reason
