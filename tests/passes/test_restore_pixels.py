"""The 8-bit pixels behind float inputs: found where they are, read exactly, and nothing else touched."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import Net, Rows, residual_net, rows

from edgeopt import fidelity, passes
from edgeopt.graph.execute import Executor
from edgeopt.graph.observers import Observer
from edgeopt.graph.quantization import Names, read
from edgeopt.passes import Change, Context, Facets, Pass
from edgeopt.passes._lattice import channel_lattices, fitted
from edgeopt.passes.restore_pixels import first_convolution, move_input, move_of
from edgeopt.platform import load_platform

MEAN = np.array([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
DEVIATION = np.array([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)


def normalized(pixels: np.ndarray) -> np.ndarray:
    return ((pixels / 255 - MEAN) / DEVIATION).astype(np.float32)


def images(
    preprocess: Callable[[np.ndarray], np.ndarray] = normalized, count: int = 60, seed: int = 3
) -> Rows:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (count, 1, 3, 8, 8))
    return Rows([{"x": preprocess(image)} for image in pixels])


def apply(
    name: str, model: ir.Model, samples: Rows, device: str = "generic-armv8", **options: object
) -> Change:
    step = passes.make(name, options)
    assert isinstance(step, Pass)
    runtime = {"generic-armv8": "onnxruntime", "jetson-orin-nano": "tensorrt"}.get(device, "tflite")
    rules = load_platform("generic-armv8" if runtime == "tflite" else device, runtime).rules
    facets = Facets(rules=rules, calibration=samples, validation=Rows(samples.rows[4::5]))
    return step.apply(model, Context(facets, step.reads))


def decibels(one: ir.Model, other: ir.Model, samples: Rows) -> float:
    value = fidelity.compare(Executor(one).run, Executor(other).run, samples.feeds()).value
    assert value is not None
    return value


@given(
    mean=st.floats(-2, 200),
    deviation=st.floats(0.05, 100),
    scale=st.sampled_from([1.0, 255.0]),
    seed=st.integers(0, 1000),
)
def test_pixels_are_found_behind_any_mean_and_deviation(
    mean: float, deviation: float, scale: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (4, 1, 20, 20)).astype(np.float32)
    found = channel_lattices(
        [((image / scale - mean) / deviation).astype(np.float32)[None] for image in pixels]
    )
    if found is None:  # the mean drowns the steps in float32
        assert abs(mean) * 2.0**-22 > 0.001 / scale
        return
    assert found[0].step == pytest.approx(1 / scale / deviation, rel=1e-3)
    assert found[0].count <= 256


def test_what_is_no_image_has_no_lattice() -> None:
    random = np.random.default_rng(0)
    assert fitted(random.standard_normal(1000).astype(np.float32)) is None
    assert fitted(np.arange(300, dtype=np.float32)) is None
    assert fitted(np.zeros(10, np.float32)) is None
    assert channel_lattices([np.arange(20, dtype=np.float32).reshape(1, 1, 20)]) is None  # counts
    image = random.integers(0, 256, (1, 1, 30, 30)).astype(np.float32)
    assert channel_lattices([image, image + np.float32(0.3)]) is None


def test_levels_that_come_later_widen_the_lattice() -> None:
    few, all_levels = np.arange(100, 200, 2), np.arange(0, 256)
    found = channel_lattices(
        [few.reshape(1, 1, -1) / np.float32(255), all_levels.reshape(1, 1, -1) / np.float32(255)]
    )
    assert found is not None
    assert found[0].count == 256
    assert found[0].step == pytest.approx(1 / 255, rel=1e-5)
    assert found[0].offset == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 2, 0, 1]])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "preprocess", [normalized, lambda u: ((u - 127) / [[[40]], [[50]], [[60]]]).astype(np.float32)]
)
def test_moving_the_input_changes_no_output(
    group: int, pads: list[int], bias: bool, preprocess: Callable[[np.ndarray], np.ndarray]
) -> None:
    net = Net(["n", 3, 8, 8])
    constants = [net.weight(6, 3 // group, 3, 3), *([net.weight(6)] if bias else [])]
    model = net.model(net.add("Conv", net.x, *constants, pads=pads, group=group, strides=[1, 2]))
    samples = images(preprocess)
    moved = model.clone()
    conv = first_convolution(moved, moved.graph.inputs[0])
    lattices = channel_lattices(feeds["x"] for feeds in samples.feeds(8))
    assert conv is not None
    assert lattices is not None
    result = move_input(moved, conv, move_of(lattices), Names(moved))
    assert decibels(model, moved, samples) > 110
    with Executor(moved, [result.name or ""]) as executor:
        for feeds in samples.feeds():
            seen = executor.run(feeds, [result.name or ""])[result.name or ""]
            inner = seen[:, :, 1:, 2:] if any(pads) and preprocess is normalized else seen
            inner = inner[:, :, :8, :8]
            assert np.abs(inner - np.rint(inner)).max() < 1e-3
    assert any(node.op_type == "Pad" for node in moved.graph) == (any(pads) and preprocess is normalized)


def test_int8_reads_every_pixel_exactly() -> None:
    model, samples = residual_net(), images()
    moved = model.clone()
    change = apply("restore-pixels", moved, samples, gain=0.0)
    assert change.rewrites
    assert decibels(model, moved, samples) > 110
    alone = change.details["alone"]["x"]
    assert alone["after"] > alone["before"]
    apply("static-int8", moved, samples)
    conv = next(node for node in moved.graph if node.op_type == "Conv")
    pair = conv.inputs[0]
    assert pair is not None
    maker = pair.producer()
    assert maker is not None
    assert maker.op_type == "DequantizeLinear"
    params = next(chain[0] for where, chain in read(moved).items() if where.value.endswith("_add"))
    assert params.scale == 1
    assert params.zero_point is not None
    with Executor(moved, [pair.name or ""]) as executor:
        for feeds in images(seed=5).feeds():
            inner = executor.run(feeds, [pair.name or ""])[pair.name or ""][:, :, 1:-1, 1:-1]
            pixels = np.rint((feeds["x"] * DEVIATION + MEAN) * 255)
            np.testing.assert_array_equal(inner + int(params.zero_point), pixels)


def test_the_reckoned_gain_must_be_worth_it() -> None:
    model, samples = residual_net(), images()
    before = [node.name for node in model.graph]
    change = apply("restore-pixels", model, samples, gain=30.0)
    assert not change.rewrites
    assert "dB" in change.skipped[0].reason
    assert [node.name for node in model.graph] == before


@pytest.mark.parametrize("device", ["tflite", "jetson-orin-nano"])
def test_runtimes_that_would_quantize_the_move_or_want_symmetric_ranges_are_left_alone(device: str) -> None:
    model, samples = residual_net(), images()
    assert not apply("restore-pixels", model, samples, device).rewrites


def test_inputs_without_pixels_or_with_levels_that_one_scale_hits_are_left_alone() -> None:
    noise = apply("restore-pixels", residual_net(), rows((3, 8, 8)))
    assert "no 8-bit pixels" in noise.skipped[0].reason
    flat = apply("restore-pixels", residual_net(), images(lambda u: (u / 255).astype(np.float32)))
    assert not flat.rewrites
    assert "as it is" in flat.skipped[0].reason


def test_an_input_that_others_read_too_is_left_alone() -> None:
    net = Net(["n", 3, 8, 8])
    conv = net.conv(net.x, 3, 3)
    model = net.model(net.add("Add", conv, net.x))
    change = apply("restore-pixels", model, images())
    assert not change.rewrites
    assert not change.skipped


def test_observers_know_pixels_from_other_whole_numbers() -> None:
    def seen(*numbers: float) -> Observer:
        observer = Observer()
        observer.see(np.array([numbers], np.float32))
        return observer

    assert seen(0, 3, 255).pixels(ir.DataType.UINT8) == (0, 255)
    assert seen(-121, 3, 134).pixels(ir.DataType.INT8) == (-121, 134)
    assert seen(-100, 100).pixels(ir.DataType.UINT8) == (-127, 128)
    assert seen(0, 3.5, 255).pixels(ir.DataType.UINT8) is None
    assert seen(0, 1).pixels(ir.DataType.UINT8) is None  # flags
    assert seen(0, 256).pixels(ir.DataType.UINT8) is None
    assert seen(0, 200).pixels(ir.DataType.UINT16) is None
