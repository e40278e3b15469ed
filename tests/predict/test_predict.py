from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from edgeopt.graph.cost import cost
from edgeopt.graph.precision import WISH
from edgeopt.passes.base import Predictor
from edgeopt.platform import Accelerator, Device, load_platform
from edgeopt.predict import RooflinePredictor, peak_memory, predict
from edgeopt.predict.efficiency import Spread, load_efficiency
from edgeopt.predict.roofline import Machine, layer_seconds


def convolution(channels: int = 64) -> ir.Model:
    return ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[1,{channels},28,28] x, float[{channels},{channels},3,3] w) => (y)
        {{ c = Conv<pads=[1,1,1,1]>(x, w)  y = Relu(c) }}
    """)


QUANTIZED = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[1,64,28,28] x, int8[64,64,3,3] w) => (y)
    <float s = {0.1}, int8 z = {0}>
    {
        xq = QuantizeLinear(x, s, z)  xf = DequantizeLinear(xq, s, z)
        wf = DequantizeLinear(w, s, z)
        c = Conv<pads=[1,1,1,1]>(xf, wf)
        cq = QuantizeLinear(c, s, z)  y = DequantizeLinear(cq, s, z)
    }
"""


def quantized() -> ir.Model:
    import numpy as np

    model = ir.from_onnx_text(QUANTIZED)
    weight = model.graph.inputs[1]
    model.graph.inputs.remove(weight)
    weight.const_value = ir.tensor(np.ones((64, 64, 3, 3), np.int8), name="w")
    model.graph.register_initializer(weight)
    return model


def test_a_prediction_says_what_it_is() -> None:
    prediction = predict(convolution(), load_platform("raspberry-pi-4", "onnxruntime"))
    latency = prediction.latency
    assert (latency.how, latency.where, latency.unit, latency.n) == ("predicted", "raspberry-pi-4", "s", 0)
    assert latency.interval is not None
    assert latency.interval[0] < latency.value < latency.interval[1]
    assert sum(prediction.seconds) == pytest.approx(latency.value)
    assert latency.conditions["threads"] == 1


def test_a_faster_core_and_more_threads_take_less_time() -> None:
    model = convolution()
    times = [predict(model, load_platform(name, "onnxruntime")).latency.value for name in (
        "raspberry-pi-zero-2w", "raspberry-pi-4", "raspberry-pi-5"
    )]  # fmt: skip
    assert times == sorted(times, reverse=True)
    platform = load_platform("raspberry-pi-4", "onnxruntime")
    assert predict(model, platform, threads=4).latency.value < predict(model, platform).latency.value
    assert predict(model, platform, threads=400).latency.conditions["threads"] == 4


def test_more_arithmetic_takes_more_time() -> None:
    platform = load_platform("raspberry-pi-4", "onnxruntime")
    assert (
        predict(convolution(128), platform).latency.value > 3 * predict(convolution(), platform).latency.value
    )


@pytest.mark.parametrize(("device", "least"), [("raspberry-pi-4", 1.1), ("raspberry-pi-5", 1.8)])
def test_int8_is_faster_most_of_all_with_dot_products(device: str, least: float) -> None:
    platform = load_platform(device, "onnxruntime")
    slow, fast = predict(convolution(), platform), predict(quantized(), platform)
    gain = max(slow.seconds) / max(fast.seconds)
    assert gain > least
    assert fast.latency.interval is not None
    assert slow.latency.interval is not None
    assert fast.latency.interval[1] / fast.latency.value > slow.latency.interval[1] / slow.latency.value


def test_what_runs_inside_the_layer_before_takes_no_time() -> None:
    prediction = predict(convolution(), load_platform("raspberry-pi-4", "onnxruntime"))
    times = dict(zip((node.op_type for node in prediction.cost.nodes), prediction.seconds, strict=True))
    assert times["Relu"] == 0
    assert times["Conv"] > 0


def test_a_layer_takes_at_least_the_time_of_its_memory_traffic() -> None:
    platform = load_platform("raspberry-pi-4", "onnxruntime")
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[1,4096] x, float[4096,4096] w) => (float[1,4096] y) { y = MatMul(x, w) }
    """)
    (node,) = cost(model).nodes
    machine = Machine.of(platform.device, 4)
    assert layer_seconds(node, machine, platform) >= 4096 * 4096 * 4 / platform.device.memory.bandwidth


def test_threads_beyond_the_fast_cores_count_for_less() -> None:
    device: Device = load_platform("pixel-6", "onnxruntime").device
    assert Machine.of(device, 2).cores == 2
    assert 2 < Machine.of(device, 4).cores < 4
    assert Machine.of(device, 3).isa == {"neon", "fp16", "dotprod"}


def test_peak_memory_is_the_sum_of_its_three_parts() -> None:
    platform = load_platform("raspberry-pi-4", "onnxruntime")
    evidence = peak_memory(1_000_000, convolution(), platform)
    assert evidence.value == 1_000_000 + evidence.detail["activations"] + platform.rules.memory
    assert evidence.how == "predicted"
    assert evidence.interval is not None
    assert evidence.interval[0] < evidence.value < evidence.interval[1]


def test_the_predictor_serves_passes_and_its_digest_covers_platform_and_threads() -> None:
    platform = load_platform("raspberry-pi-4", "onnxruntime")
    predictor: Predictor = RooflinePredictor(platform)
    assert predictor.latency(convolution()) == predict(convolution(), platform).latency.value
    others = [
        RooflinePredictor(platform, 4),
        RooflinePredictor(load_platform("raspberry-pi-5", "onnxruntime")),
    ]
    assert len({predictor.digest, *(other.digest for other in others)}) == 3


def test_an_interval_widens_by_independent_uncertainty() -> None:
    spread = Spread(lower=0.5, upper=2.0)
    assert spread.widened(1.0).upper == pytest.approx(2.0)
    wider = spread.widened(2.0)
    assert wider.lower < 0.5
    assert 2.0 < wider.upper < 4.0


def test_every_precision_of_the_table_has_an_interval_around_one() -> None:
    for spread in load_efficiency().spread.values():
        assert spread.lower < 1 < spread.upper


@pytest.mark.parametrize("name", ["kws_dscnn_mlperf_tiny", "g2p_gru_encoder", "cct_vit_cifar10"])
def test_every_layer_of_a_real_model_gets_a_time(zoo: Path, name: str) -> None:
    model = ir.load(zoo / "models" / f"{name}.onnx")
    prediction = predict(model, load_platform("raspberry-pi-5", "onnxruntime"))
    assert all(seconds >= 0 for seconds in prediction.seconds)
    assert 1e-5 < prediction.latency.value < 1


def test_an_engine_is_predicted_on_the_accelerator_in_its_own_precision() -> None:
    model, platform = convolution(256), load_platform("jetson-nano", "tensorrt")
    single = predict(model, platform).latency
    assert single.value < predict(model, load_platform("jetson-nano", "onnxruntime")).latency.value / 3
    assert single.runtime == "tensorrt 8.2.1"
    assert single.interval is not None and single.interval[1] > 3 * single.value
    model.metadata_props[WISH] = "float16"
    assert predict(model, platform).latency.value < 0.7 * single.value


def test_the_profile_of_an_accelerator_with_a_runtime_has_all_figures() -> None:
    with pytest.raises(ValueError, match="needs clock"):
        Accelerator(name="GPU", kind="gpu", runtime="tensorrt")
