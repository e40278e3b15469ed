from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgeopt.errors import ModelError
from edgeopt.graph.cost import cost, model_size
from edgeopt.graph.sizes import unroll

HEADER = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'


def parse(body: str) -> ir.Model:
    return ir.from_onnx_text(f"{HEADER}\n{body}")


@pytest.mark.parametrize(
    ("body", "macs", "kernel"),
    [
        ("g (float[1,8,10,10] x, float[16,8,3,3] w) => (y) { y = Conv(x, w) }", 16 * 64 * 72, "conv3x3"),
        (
            "g (float[1,8,10,10] x, float[16,8,3,3] w) => (y) { y = Conv<strides=[2,2]>(x, w) }",
            16 * 16 * 72,
            "conv",
        ),
        ("g (float[1,8,10,10] x, float[16,8,1,1] w) => (y) { y = Conv(x, w) }", 16 * 100 * 8, "conv1x1"),
        ("g (float[1,3,10,10] x, float[16,3,3,3] w) => (y) { y = Conv(x, w) }", 16 * 64 * 27, "conv-first"),
        (
            "g (float[1,8,10,10] x, float[8,1,3,3] w) => (y) { y = Conv<group=8>(x, w) }",
            8 * 64 * 9,
            "depthwise",
        ),
        (
            "g (float[1,8,5,5] x, float[8,4,2,2] w) => (y) { y = ConvTranspose<strides=[2,2]>(x, w) }",
            8 * 25 * 4 * 4,
            "conv",
        ),
        (
            "g (float[2,32] x, float[10,32] w) => (y) { y = Gemm<transB=1>(x, w) }",
            2 * 10 * 32,
            "fully-connected",
        ),
        ("g (float[2,4,8] x, float[2,8,6] z) => (y) { y = MatMul(x, z) }", 2 * 4 * 6 * 8, "matmul"),
        (
            'g (float[2,4,8] x, float[8,6] z) => (y) { y = Einsum<equation="bij,jk->bik">(x, z) }',
            2 * 4 * 8 * 6,
            "matmul",
        ),
        (
            "g (float[5,1,8] x, float[1,24,8] w, float[1,24,6] r) => (y, h, c)"
            " { y, h, c = LSTM<hidden_size=6>(x, w, r) }",
            5 * 4 * 6 * (8 + 6),
            "recurrent",
        ),
        (
            "g (float[5,1,8] x, float[1,18,8] w, float[1,18,6] r) => (y, h)"
            " { y, h = GRU<hidden_size=6>(x, w, r) }",
            5 * 3 * 6 * (8 + 6),
            "recurrent",
        ),
        ("g (uint8[2,8] x, uint8[8,6] w) => (y) { y = MatMulInteger(x, w) }", 2 * 6 * 8, "matmul"),
        ("g (float[1,8] x) => (y) { y = Relu(x) }", 0, "elementwise"),
        ("g (float[1,8] x) => (y) { y = Transpose<perm=[1,0]>(x) }", 0, "movement"),
    ],
)
def test_multiply_accumulates_follow_the_operators_definition(body: str, macs: int, kernel: str) -> None:
    model = parse(body)
    counted = cost(model)
    assert (counted.macs, counted.nodes[0].kernel) == (macs, kernel)
    assert counted.unknown == []


def test_operators_of_other_domains_are_counted_by_their_attributes() -> None:
    model = parse(
        "g (float[3,64] x, uint8[10,2,16] w, float[20] s) => (float[3,10] y)"
        " { y = com.microsoft.MatMulNBits<K=64, N=10, bits=4, block_size=32>(x, w, s) }"
    )
    assert cost(model).macs == 3 * 10 * 64


def test_the_batch_is_one_unless_given() -> None:
    model = parse("g (float[batch,8] x, float[4,8] w) => (float[batch,4] y) { y = Gemm<transB=1>(x, w) }")
    assert (cost(model).macs, cost(model).assumed) == (32, {"batch": 1})
    given = cost(model, {"x": [5, 8]})
    assert (given.macs, given.assumed) == (160, {})


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [({"z": [1, 8]}, "no input 'z'"), ({"x": [1, 9]}, "cannot take"), ({"x": [1]}, "cannot take")],
)
def test_a_shape_that_does_not_fit_is_refused(shapes: dict[str, list[int]], sentence: str) -> None:
    model = parse("g (float[batch,8] x) => (float[batch,8] y) { y = Relu(x) }")
    with pytest.raises(ModelError, match=sentence):
        cost(model, shapes)


def test_shapes_that_the_model_computes_are_followed() -> None:
    model = parse("""
        g (float[batch, 4, 6] x, float[12, 5] w) => (y)
        <int64[1] zero = {0}, int64[1] two = {2}, int64[1] one = {1}, int64[1] rest = {-1}>
        {
            s = Shape(x)  b = Slice(s, zero, one)  c = Slice(s, one, two)
            d = Div(c, two)  e = Concat<axis = 0>(b, d, rest)
            r = Reshape(x, e)
            y = MatMul(r, w)
        }
    """)
    counted = cost(model, {"x": [3, 4, 6]})
    assert counted.unknown == []
    assert counted.macs == 3 * 2 * 5 * 12


def test_of_two_branches_the_larger_counts() -> None:
    model = parse("""
        g (float[1,8] x, float[8,8] w, bool c) => (float[1,8] y)
        {
            y = If (c) <
                then_branch = large () => (float[1,8] t) { a = MatMul(x, w)  t = MatMul(a, w) },
                else_branch = small () => (float[1,8] e) { e = MatMul(x, w) }
            >
        }
    """)
    assert cost(model).macs == 2 * 64


@pytest.mark.parametrize(("trips", "rounds"), [("int64 n = {7}", 7), (None, 1)])
def test_a_loop_counts_as_often_as_it_runs(trips: str | None, rounds: int) -> None:
    inputs = "" if trips else "int64 n, "
    constants = f"<{trips}, bool go = {{1}}>" if trips else "<bool go = {1}>"
    model = parse(f"""
        g ({inputs}float[1,8] x, float[8,8] w) => (float[1,8] y)
        {constants}
        {{
            y = Loop (n, go, x) <
                body = round (int64 i, bool on, float[1,8] v) => (bool still, float[1,8] next)
                {{ still = Identity(on)  next = MatMul(v, w) }}
            >
        }}
    """)
    counted = cost(model)
    assert counted.macs == rounds * 64
    assert counted.unbounded == ([] if trips else [model.graph[0].name or "Loop"])


def test_a_scan_runs_once_for_every_slice() -> None:
    model = parse("""
        g (float[1,8] h, float[5,1,8] x, float[8,8] w) => (float[1,8] last, float[5,1,8] all)
        {
            last, all = Scan <num_scan_inputs = 1,
                body = round (float[1,8] s, float[1,8] v) => (float[1,8] t, float[1,8] o)
                { t = MatMul(s, w)  o = Add(t, v) }
            > (h, x)
        }
    """)
    assert cost(model).macs == 5 * 64
    (step,) = unroll(model).steps
    assert step.outputs[1].shape == (5, 1, 8)


def test_a_function_counts_for_every_call() -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 21, "local" : 1]>
        g (float[1,8] x, float[8,8] w) => (float[1,8] y) { a = local.f(x, w)  y = local.f(a, w) }
        <opset_import: ["" : 21], domain: "local"> f (v, u) => (r) { r = MatMul(v, u) }
    """)
    assert cost(model).macs == 2 * 64


QUANTIZED = """
    g (float[1,8] x) => (float[1,4] y)
    <float s = {0.1}, int8 z = {0}, float[4] ws = {0.1, 0.1, 0.1, 0.1}, int8[4] wz = {0, 0, 0, 0}>
    {
        xq = QuantizeLinear(x, s, z)  xf = DequantizeLinear(xq, s, z)
        wq = QuantizeLinear<axis=0>(w, ws, wz)  wf = DequantizeLinear<axis=0>(wq, ws, wz)
        f = Gemm<transB=1>(xf, wf)
        fq = QuantizeLinear(f, s, z)  y = DequantizeLinear(fq, s, z)
    }
"""


def quantized() -> ir.Model:
    model = parse(QUANTIZED.replace("(float[1,8] x)", "(float[1,8] x, float[4,8] w)"))
    weight = model.graph.inputs[1]
    model.graph.inputs.remove(weight)
    weight.const_value = ir.tensor(np.ones((4, 8), np.float32), name="w")
    model.graph.register_initializer(weight)
    return model


def test_a_quantized_layer_counts_in_bytes() -> None:
    gemm = next(node for node in cost(quantized()).nodes if node.op_type == "Gemm")
    assert (gemm.dtype, gemm.read_bytes, gemm.written_bytes, gemm.parameter_bytes) == ("int8", 8, 4, 32)


def test_the_size_of_a_model_counts_weights_at_their_quantized_width_and_the_scales() -> None:
    scales = 4 + 1 + 4 * 4 + 4
    assert model_size(quantized()) == 32 + scales


def test_a_tensor_that_is_shared_counts_once() -> None:
    model = parse("""
        g (float[1,2] x) => (float[1,2] y) <float[2] a = {1.0, 2.0}> { b = Add(x, a)  y = Mul(b, a) }
    """)
    assert model_size(model) == 8
    twin = ir.Value(name="twin", const_value=model.graph.initializers["a"].const_value)
    model.graph.register_initializer(twin)
    model.graph[1].replace_input_with(1, twin)
    assert model_size(model) == 8


def test_int4_weights_count_half_a_byte() -> None:
    model = quantized()
    quantizer = next(
        node for node in model.graph if node.op_type == "QuantizeLinear" and node.inputs[0].name == "w"
    )
    quantizer.attributes["output_dtype"] = ir.AttrInt64("output_dtype", int(ir.DataType.INT4))
    quantizer.outputs[0].dtype = ir.DataType.INT4
    assert model_size(model) == 16 + 4 + 1 + 16 + 4


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet20_cifar10", 40.55),  # 40.8 M in the paper with its projections; option A has none
        ("resnet56_cifar10", 125.49),
        ("kws_dscnn_mlperf_tiny", 2.66),
        ("yolo_fastestv2_coco", 106.38),
    ],
)
def test_real_models_are_known_whole(zoo: Path, name: str, millions: float) -> None:
    counted = cost(ir.load(zoo / "models" / f"{name}.onnx"))
    assert counted.unknown == []
    assert counted.macs / 1e6 == pytest.approx(millions, abs=0.01)
