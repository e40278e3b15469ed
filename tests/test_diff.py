from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.diff import diff, match, seeded_samples, structure, take
from edgeopt.errors import ModelError
from edgeopt.graph.names import ORIGINAL_NAMES

TEXT = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[batch,4] x) => (float[batch,4] y)
    <float[4] a = {1.0, 2.0, 3.0, 4.0}, float[4] b = {0.5, 0.5, 0.5, 0.5}>
    { m = Mul(x, a)  s = Add(m, b)  y = Tanh(s) }
"""


def model(text: str = TEXT) -> ir.Model:
    parsed = ir.from_onnx_text(text)
    for node, name in zip(parsed.graph, ("scale", "shift", "squash"), strict=False):
        node.name = name
    return parsed


def test_a_model_does_not_differ_from_itself() -> None:
    found = diff(model(), model(), seeded_samples(model(), 3))
    assert found.first is None
    assert found.worst is None
    assert found.outputs == {"y": 200.0}
    assert found.structure is not None
    assert found.structure.same


def test_the_first_and_the_worst_layer_are_named() -> None:
    changed = model(TEXT.replace("float[4] b = {0.5,", "float[4] b = {9.5,"))
    found = diff(model(), changed, seeded_samples(model(), 3))
    assert found.first is not None
    assert found.worst is not None
    assert found.first.node == "shift"
    assert [tensor.equal for tensor in found.tensors] == [True, False, False]
    assert found.worst.snr == min(tensor.snr for tensor in found.tensors)
    assert found.structure is not None
    assert found.structure.initializers == ["b"]


def test_signal_over_noise_is_computed_over_all_samples() -> None:
    changed = model(TEXT.replace("Tanh(s)", "Identity(s)"))
    samples = seeded_samples(model(), 2)
    found = diff(model(), changed, samples)
    a, b = np.array([1, 2, 3, 4], np.float32), np.float32(0.5)
    sums = [feeds["x"] * a + b for feeds in samples]
    signal = sum(float(np.square(np.tanh(value)).sum()) for value in sums)
    noise = sum(float(np.square(np.tanh(value) - value).sum()) for value in sums)
    assert found.outputs["y"] == pytest.approx(10 * np.log10(signal / noise), abs=1e-3)


def test_a_rewritten_node_stands_for_the_last_of_those_it_replaced() -> None:
    fused = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[batch,4] x) => (float[batch,4] out)
        <float[4] a = {1.0, 2.0, 3.0, 4.0}>
        { f = Mul(x, a)  out = Tanh(f) }
    """)
    fused.graph[0].name = "fused"
    fused.graph[0].metadata_props[ORIGINAL_NAMES] = '["scale", "shift"]'
    fused.graph[1].name = "squash"
    pairs = {found.node: found.other for found in match(model(), fused)}
    assert pairs["shift"] == "f"
    assert pairs["squash"] == "out"
    found = structure(model(), fused)
    assert found.operators == {"Add": -1}
    assert found.removed == found.added == []


def test_a_quantized_value_is_compared_as_its_readers_get_it() -> None:
    quantized = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[batch,4] x) => (float[batch,4] y)
        <float[4] a = {1.0, 2.0, 3.0, 4.0}, float[4] b = {0.5, 0.5, 0.5, 0.5}, float q = {0.5}, int8 z = {0}>
        {
            m = Mul(x, a)  mq = QuantizeLinear(m, q, z)  mf = DequantizeLinear(mq, q, z)
            s = Add(mf, b)  y = Tanh(s)
        }
    """)
    found = diff(model(), quantized, seeded_samples(model(), 4))
    assert found.first is not None
    assert (found.first.tensor, found.first.node) == ("m", "scale")
    assert found.first.largest <= 0.25 + 1e-6


def test_other_inputs_are_refused_with_both_lists() -> None:
    other = model(TEXT.replace("batch,4] x)", "batch,4] z)").replace("Mul(x", "Mul(z"))
    with pytest.raises(ModelError, match="other inputs") as caught:
        diff(model(), other, [])
    assert caught.value.where == "first: x\n  second: z"


def test_an_output_of_another_shape_is_unlimited_noise() -> None:
    other = model(TEXT.replace("y = Tanh(s)", "y = Concat<axis=0>(s, s)"))
    found = diff(model(), other, seeded_samples(model(), 1))
    assert found.outputs["y"] == -200.0
    assert found.first is not None


def test_seeded_samples_are_the_same_every_time_and_differ_from_each_other() -> None:
    first, again = seeded_samples(model(), 2), seeded_samples(model(), 2)
    assert all(np.array_equal(one["x"], other["x"]) for one, other in zip(first, again, strict=True))
    assert not np.array_equal(first[0]["x"], first[1]["x"])


def test_taking_reads_no_more_than_it_needs() -> None:
    def endless():  # type: ignore[no-untyped-def]
        number = 0
        while True:
            assert number < 3, "one sample too many was read"
            yield {"x": np.array([number])}
            number += 1

    assert len(take(endless(), 2)) == 2
