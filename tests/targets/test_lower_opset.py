"""Lowering the opset: what is only renamed or left out, and what stands against it."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from edgeopt.graph.names import name_nodes
from edgeopt.graph.proof import compare_models
from edgeopt.graph.shapes import infer_shapes
from edgeopt.targets._opset import lower


def parsed(body: str, opset: int = 21) -> ir.Model:
    """A model from ONNX's text format, with names and shapes."""
    text = f'<ir_version: 8, opset_import: ["" : {opset}]>\nagraph {body}'
    model = ir.from_proto(onnx.parser.parse_model(text))
    name_nodes(model)
    infer_shapes(model)
    return model


@pytest.mark.parametrize(
    "body",
    [
        "(float[N, 3, 8, 8] x) => (float[N, 3, A, B] y) { y = AveragePool<kernel_shape = [2, 2], "
        "dilations = [1, 1]>(x) }",
        "(float[N, 3] x) => (float[N, 1] y) <int64[1] a = {1}> { y = ReduceMax(x, a) }",
        "(float[N, 6] x) => (float[N, 3] y, float[N, 3] z) { y, z = Split<axis = 1, num_outputs = 2>(x) }",
        "(float[2, 3] x) => (float[2, 3] y) <int64[2] s = {2, 3}> { y = Reshape<allowzero = 0>(x, s) }",
        "(float[2, 4] x, float[2, 4] y) => (bool[2, 4] z) { z = GreaterOrEqual(x, y) }",
        "(float[1, 2, 4, 4] x) => (float[1, 2, 8, 8] y) <float[4] s = {1, 1, 2, 2}> "
        '{ y = Resize<mode = "linear", antialias = 0, keep_aspect_ratio_policy = "stretch">(x, , s) }',
        "(float[N, 2, 4] x) => (float[N, 2, 4] y) <float[2] s = {1, 2}, float[2] b = {0, 1}, "
        "float[2] m = {0, 0}, float[2] v = {1, 4}>"
        " { y = BatchNormalization<training_mode = 0>(x, s, b, m, v) }",
    ],
)
def test_opset_13_computes_the_same(body: str) -> None:
    model = parsed(body)
    after = model.clone()
    assert not lower(after, 13)
    assert after.opset_imports[""] == 13
    onnx.checker.check_model(ir.to_proto(after))
    assert not compare_models(model, after).reason


def test_grid_sample_goes_by_its_older_names() -> None:
    model = parsed(
        "(float[1, 1, 4, 4] x, float[1, 3, 3, 2] g) => (float[1, 1, 3, 3] y) "
        '{ y = GridSample<mode = "linear">(x, g) }'
    )
    after = model.clone()
    assert not lower(after, 17)
    assert [node.attributes.get_string("mode") for node in after.graph] == ["bilinear"]
    assert not compare_models(model, after).reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "(float[N, 3] x) => (float[N, 3] y) { y = ReduceMax<noop_with_empty_axes = 1>(x) }",
            "no axis at all",
        ),
        ("(float[N, 3] x, int64[1] a) => (float[A, B] y) { y = ReduceMax(x, a) }", "axes are computed"),
        (
            "(float[1, 2, 4, 4] x) => (float[1, 2, 2, 2] y) <float[4] s = {1, 1, 0.5, 0.5}> "
            '{ y = Resize<mode = "linear", antialias = 1>(x, , s) }',
            "antialias came with opset 18",
        ),
        (
            '(float[4] x) => (float[6] y) <int64[2] p = {1, 1}> { y = Pad<mode = "wrap">(x, p) }',
            "'wrap' came with opset 19",
        ),
        ("(float[N, 3] x) => (float[N, 3] y) { y = Gelu(x) }", "came with opset 20"),
    ],
)
def test_what_cannot_be_said_is_named(body: str, reason: str) -> None:
    model = parsed(body)
    (problem,) = lower(model, 13)
    assert reason in problem.reason
    assert model.opset_imports[""] == 21


def test_subgraphs_are_lowered_too() -> None:
    model = parsed(
        """(bool c, float[2, 3] x) => (float[2, 1] y) <int64[1] a = {1}> {
            y = If(c) <
                then_branch = t () => (float[2, 1] p) { p = ReduceMax(x, a) },
                else_branch = e () => (float[2, 1] q) { q = ReduceMin(x, a) }
            >
        }"""
    )
    after = model.clone()
    assert not lower(after, 13)
    assert not compare_models(model, after).reason
