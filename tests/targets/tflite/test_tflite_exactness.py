"""Files compute what the quantized graph says, bit for bit where the runtime's kernels allow it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tflite_models import Calls, convert, feeds_of, model, node, platform, quantize

from edgeopt.graph.execute import Executor
from edgeopt.graph.slopes import fitting
from edgeopt.passes import Context, Facets, make
from edgeopt.targets.tflite import Tflite, exact, xnnpack
from edgeopt.targets.tflite.flatbuffer import write
from edgeopt.targets.tflite.lower import lower
from edgeopt.targets.tflite.program import Operation, Program, Tensor
from edgeopt.targets.tflite.reference import execute
from edgeopt.targets.tflite.session import from_runtime, to_runtime

pytest.importorskip("ai_edge_litert", reason="needs the extra: pip install 'edgeopt[tflite]'")

RANDOM = np.random.default_rng(11)


def weight(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def stated(prepared: ir.Model, feeds: dict[str, np.ndarray], kernels: dict) -> dict[str, np.ndarray]:
    lowered = lower(prepared)
    adapters = {side: [a for a in lowered.adapters if a.side == side] for side in ("input", "output")}
    given = {
        tensor.name: to_runtime(feeds[adapter.name], adapter)
        for tensor, adapter in zip(lowered.program.inputs, adapters["input"], strict=True)
    }
    values = execute(lowered.program, given, kernels)
    return {
        adapter.name: from_runtime(values[tensor.name], adapter)
        for tensor, adapter in zip(lowered.program.outputs, adapters["output"], strict=True)
    }


def gates() -> ir.Model:
    nodes = [
        node("Conv", "x,w0,b0", "c0", pads=[1, 1, 1, 1]),
        node("HardSwish", "c0", "h"),
        node("Conv", "h,w1,b0", "c1"),
        node("HardSigmoid", "c1", "g", alpha=1 / 6, beta=0.5),
        node("Mul", "h,g", "m"),
        node("Conv", "m,w1,b0", "y"),
    ]
    constants = {"w0": weight(8, 3, 3, 3), "b0": weight(8), "w1": weight(8, 8, 1, 1)}
    return model(nodes, {"x": [1, 3, 9, 9]}, ["y"], constants)


def slopes() -> ir.Model:
    nodes = [
        node("Conv", "x,w0,b0", "c0", pads=[1, 1, 1, 1]),
        node("LeakyRelu", "c0", "l0", alpha=0.1),
        node("Conv", "l0,w1,b0", "c1"),
        node("LeakyRelu", "c1", "l1", alpha=0.3),
        node("Conv", "l1,w1,b0", "y"),
    ]
    constants = {"w0": weight(8, 3, 3, 3), "b0": weight(8), "w1": weight(8, 8, 1, 1)}
    return model(nodes, {"x": [1, 3, 9, 9]}, ["y"], constants)


@pytest.mark.parametrize("build", [gates, slopes])
def test_the_file_is_the_graph_bit_for_bit(build, tmp_path):
    session, prepared = convert(quantize(build()), tmp_path)
    for seed in range(100, 110):
        feeds = feeds_of(prepared, seed)
        got = session.run(feeds)["y"]
        for kernels in (exact.KERNELS, xnnpack.KERNELS):
            np.testing.assert_allclose(got, stated(prepared, feeds, kernels)["y"], rtol=1e-6, atol=0)


def test_gates_are_convolutions():
    given = gates()
    context = Context(Facets(rules=platform().rules, calibration=Calls([feeds_of(given, 0)])))
    make("static-int8", {"observer": "min-max"}).apply(given, context)
    prepared, _ = Tflite().prepare(given, None)
    codes = [operation.code for operation in lower(prepared).program.operations]
    assert "HARD_SWISH" not in codes
    # One convolution a gate, and one product each: HardSwish and HardSigmoid alike.
    assert codes.count("DEPTHWISE_CONV_2D") == 2
    assert codes.count("MUL") == 2


def test_slopes_are_factors_of_eight_bits():
    prepared, change = Tflite().prepare(quantize(slopes()), None)
    found = [o for o in lower(prepared).program.operations if o.code == "LEAKY_RELU"]
    assert [rewrite.rule for rewrite in change.rewrites].count("fit-slope") == len(found) == 2
    for operation, alpha in zip(found, (0.1, 0.3), strict=True):
        ratio = 256 * float(operation.inputs[0].scale[0]) / float(operation.outputs[0].scale[0])
        slope = ratio * operation.options["alpha"]
        assert ratio == pytest.approx(round(ratio), abs=1e-3)
        assert slope == pytest.approx(round(slope), abs=1e-3)
        assert operation.options["alpha"] == pytest.approx(alpha, rel=0.02)
    _, change = Tflite().prepare(prepared, None)
    assert "fit-slope" not in {rewrite.rule for rewrite in change.rewrites}


def test_scores_that_are_means_stay_float(tmp_path):
    nodes = [
        node("Conv", "x,w", "c"),
        node("GlobalAveragePool", "c", "g"),
        node("Flatten", "g", "y"),
    ]
    given = quantize(model(nodes, {"x": [1, 3, 9, 9]}, ["y"], {"w": weight(40, 3, 1, 1)}))
    session, prepared = convert(given, tmp_path)
    codes = [operation.code for operation in lower(prepared).program.operations]
    assert codes == ["QUANTIZE", "CONV_2D", "DEQUANTIZE", "MEAN"]
    feeds = feeds_of(prepared, 100)
    np.testing.assert_allclose(session.run(feeds)["y"], Executor(prepared).run(feeds)["y"], atol=1e-5)
    # Integer outputs that were asked for stay integers.
    asked = lower(Tflite(io="int8").prepare(given, None)[0], "int8").program
    assert [operation.code for operation in asked.operations] == ["CONV_2D", "MEAN"]


def test_factors_widen_until_the_slope_is_close():
    for ratio in (0.6, 1.0, 1.37, 2.3, 7.1):
        k, m = fitting(ratio, 0.1, 256) or (0, 0)
        assert ratio * 256 - 1e-3 <= k <= ratio * 256 * 1.025 + 1
        assert m / k == pytest.approx(0.1, rel=0.02 / ratio)
        assert fitting(k / 256 * (1 + 3e-7), m / k, 256) == (k, m)
    assert fitting(1000.0, 0.1, 256) is None
    assert fitting(1.0, 1e-6, 256) is None


def test_a_kernel_of_xnnpack_leaves_alone_what_it_does_not_take():
    tensors = []
    for name, scale in (("x", 0.001), ("y", 0.9)):
        tensor = Tensor(name, (256,), "int8")
        tensor.scale, tensor.zero_point = np.array([scale], np.float32), np.array([0], np.int64)
        tensors.append(tensor)
    operation = Operation("QUANTIZE", [tensors[0]], [tensors[1]], "QuantizeOptions")
    array = np.arange(-128, 128).astype(np.int8)
    made = xnnpack.KERNELS["QUANTIZE"](operation, [array])
    assert set(made.tolist()) == {0}


def test_what_repeats_is_written_once():
    def file(names: tuple[str, ...]) -> bytes:
        first = Tensor("x", (1, 4, 4, 64), "int8")
        first.scale, first.zero_point = np.array([0.1], np.float32), np.array([3], np.int64)
        operations, source = [], first
        for name in names:
            kernel = Tensor(f"{name}w", (64, 1, 1, 64), "int8", np.zeros((64, 1, 1, 64), np.int8))
            kernel.scale, kernel.zero_point = np.full(64, 0.1, np.float32), np.zeros(64, np.int64)
            bias = Tensor(f"{name}b", (64,), "int32", np.zeros(64, np.int32))
            bias.scale, bias.zero_point = np.full(64, 0.01, np.float32), np.zeros(64, np.int64)
            made = Tensor(name, (1, 4, 4, 64), "int8")
            made.scale, made.zero_point = first.scale, first.zero_point
            options = dict.fromkeys(("strideH", "strideW", "dilationHFactor", "dilationWFactor"), 1)
            inputs: list[Tensor | None] = [source, kernel, bias]
            operations.append(
                Operation("CONV_2D", inputs, [made], "Conv2DOptions", {"padding": 1, **options})
            )
            source = made
        return write(Program(operations, [first], [source]))

    one, two = file(("a",)), file(("a", "b"))
    # A second convolution costs its 4096 weights and its tables; scales, zero points and zero biases repeat.
    assert len(two) - len(one) < 4096 + 600
