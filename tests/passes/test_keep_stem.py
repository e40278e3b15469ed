"""The first convolution stays in float where that pays, and the plan keeps it there."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from networks import Net, Rows, residual_net, rows

from edgeopt import passes
from edgeopt.graph.quantization import read
from edgeopt.passes import Change, Context, Facets, Pass, Plan
from edgeopt.passes.base import Entry
from edgeopt.platform import load_platform


def facets(samples: Rows, runtime: str = "onnxruntime") -> Facets:
    rules = load_platform("jetson-orin-nano" if runtime == "tensorrt" else "raspberry-pi-4", runtime).rules
    return Facets(rules=rules, calibration=samples, validation=Rows(samples.rows[4::5]))


def apply(model: ir.Model, samples: Rows, runtime: str = "onnxruntime", **options: object) -> Change:
    step = passes.make("keep-stem", options)
    assert isinstance(step, Pass)
    return step.apply(model, Context(facets(samples, runtime), step.reads))


def stem_net(channels: int = 3, wide: int = 64) -> ir.Model:
    """A small convolution whose leaky ReLU is noisy, before one that is large and reads no other noise."""
    net = Net(["n", channels, 8, 8])
    first = net.add("LeakyRelu", net.conv(net.x, channels, 8), alpha=0.05)
    return net.model(net.conv(net.add("Relu", net.conv(first, 8, wide)), wide, wide))


def test_a_noisy_stem_is_named_and_nothing_is_changed() -> None:
    model, samples = stem_net(), rows((3, 8, 8))
    before = [node.name for node in model.graph]
    change = apply(model, samples)
    assert change.details["keep_float"] == ["/conv_0"]
    assert change.details["gain"] > 0.1
    assert not change.rewrites
    assert [node.name for node in model.graph] == before


@pytest.mark.parametrize("runtime", ["tflite", "tensorrt"])
def test_runtimes_whose_integers_are_placed_otherwise_are_left_alone(runtime: str) -> None:
    assert "keep_float" not in apply(stem_net(), rows((3, 8, 8)), runtime).details


def test_a_stem_that_is_wide_dear_kept_or_without_noise_of_its_own_is_no_matter() -> None:
    samples = rows((3, 8, 8))
    assert not apply(stem_net(8), rows((8, 8, 8))).details
    assert not apply(stem_net(wide=8), samples).details
    assert not apply(stem_net(), samples, keep_float=("/conv_0",)).details
    assert not apply(residual_net(), samples).details
    assert "keep_float" not in apply(stem_net(), samples, gain=30.0).details


def test_the_plan_keeps_the_stem_in_float() -> None:
    model, samples = stem_net(), rows((3, 8, 8))
    plan = passes.make("quantize", {"keep_float": ("/conv_4",)})
    assert isinstance(plan, Plan)
    ledger: list[Entry] = []
    served = facets(samples)
    while (step := plan.next(model, Context(served, plan.reads), ledger)) is not None:
        ledger.append(Entry(step, step.apply(model, Context(served, step.reads)), model))
    static = next(entry for entry in ledger if entry.step.name == "static-int8")
    assert static.step.options()["keep_float"] == ("/conv_4", "/conv_0")
    assert static.change.details["kept_float"] == ["/conv_0", "/conv_4"]
    quantized = {where.value for where in read(model)}
    assert "x" not in quantized
    assert "v1" in quantized
