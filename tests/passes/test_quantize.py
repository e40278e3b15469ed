"""Quantizing real graphs: what runs in integers, what stays in float, and how faithful it is."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from networks import Net, Rows, attention_net, residual_net, rows

from edgeopt import fidelity, passes
from edgeopt.errors import UserError
from edgeopt.graph.change import Rewrite
from edgeopt.graph.execute import Executor
from edgeopt.graph.quantization import QuantParams, Site, read
from edgeopt.passes import Change, Context, Facets, Pass, Plan
from edgeopt.passes._sensitivity import Trial
from edgeopt.passes.base import Entry
from edgeopt.passes.distill import Distill
from edgeopt.passes.gptq import Gptq
from edgeopt.platform import load_platform
from edgeopt.stepping import State, Stepper
from edgeopt.steps import Store

LEARNING = ["distill"] if find_spec("torch") is not None else []
"""The step that needs torch."""


def facets(samples: Rows | None) -> Facets:
    rules = load_platform("generic-armv8").rules
    if samples is None:
        return Facets(rules=rules)
    return Facets(rules=rules, calibration=samples, validation=Rows(samples.rows[4::5]))


def follow(plan: Plan, model: ir.Model, served: Facets) -> tuple[ir.Model, list[Entry]]:
    ledger: list[Entry] = []
    while (step := plan.next(model, Context(served, plan.reads), ledger)) is not None:
        model = model.clone()
        change = step.apply(model, Context(served, step.reads))
        ledger.append(Entry(step, change, model))
    return model, ledger


def quantize(model: ir.Model, samples: Rows | None = None, **options: object) -> tuple[ir.Model, list[Entry]]:
    plan = passes.make("quantize", options)
    assert isinstance(plan, Plan)
    return follow(plan, model, facets(samples))


def apply(name: str, model: ir.Model, samples: Rows | None = None, **options: object) -> Change:
    step = passes.make(name, options)
    assert isinstance(step, Pass)
    return step.apply(model, Context(facets(samples), step.reads))


def decibels(one: ir.Model, other: ir.Model, samples: Rows) -> float:
    value = fidelity.compare(Executor(one).run, Executor(other).run, samples.feeds()).value
    assert value is not None
    return value


def test_a_convolutional_network_is_quantized_throughout() -> None:
    model, samples = residual_net(), rows((3, 8, 8))
    quantized, ledger = quantize(model, samples)
    assert [entry.step.name for entry in ledger] == [
        "smooth-activations",
        "move-pools",
        "keep-stem",
        "restore-pixels",
        "equalize-channels",
        "absorb-biases",
        "split-leaky-relu",
        "normalize-rows",
        "split-operands",
        "static-int8",
        "gptq",
        *LEARNING,
        "restore-float",
        *([] if LEARNING else ["end-plan"]),
    ]
    found = {where.value: where for where in read(quantized)}
    activations = [name for name in found if name.startswith("v")]
    # after each ReLU and each bare convolution, the sum, the pooling and the flattening; not the logits
    assert activations == ["v1", "v3", "v4", "v6", "v8", "v9", "v10", "v11"]
    assert decibels(model, quantized, samples) > 25


def test_a_transformer_keeps_what_lies_between_products_in_float() -> None:
    model, samples = attention_net(), rows((6, 32))
    quantized, _ = quantize(model, samples)
    params = read(quantized)
    products = {node.name for node in quantized.graph if node.op_type == "MatMul"}
    for where in params:
        if where.readers is not None:
            assert {reader for reader, _ in where.readers} <= products
    assert "c3" not in {where.value for where in params}  # the mask
    assert Site("x") not in params  # the residual sum reads the float
    assert decibels(model, quantized, samples) > 25


def test_a_value_with_infinities_is_not_quantized() -> None:
    net = Net(["n", 4, 8])
    mask = net.constant(np.array([0, -np.inf, 0, 0], np.float32).reshape(4, 1))
    masked = net.add("Add", net.x, mask)
    left = net.add("MatMul", net.add("Softmax", masked, axis=1), net.weight(8, 8))
    bad = net.add("MatMul", masked, net.weight(8, 8))
    model = net.model(left, bad)
    samples = rows((4, 8))
    change = apply("static-int8", model, samples)
    assert any("mask" in skipped.reason for skipped in change.skipped)
    assert len(change.rewrites) == 1
    assert masked.name not in {where.value for where in read(model)}


def test_keep_float_speaks_original_names() -> None:
    model, samples = residual_net(), rows((3, 8, 8))
    nodes = [node.name for node in model.graph if node.op_type == "Gemm"]
    quantized, _ = quantize(model, samples, keep_float=("/gemm_*",))
    gemm = next(node for node in quantized.graph if node.op_type == "Gemm")
    assert [gemm.name] == nodes
    assert all(value is not None and not value.name.endswith("dequantized") for value in gemm.inputs[1:])  # type: ignore[union-attr]
    with pytest.raises(UserError, match="no node matches") as error:
        quantize(model, samples, keep_float=("/gemmm_*",))
    assert "/gemm_12" in error.value.nearest


def test_the_bias_always_fits_int32() -> None:
    net = Net(["n", 4])
    weight = net.constant(np.diag([1.0, 1e-9, 1.0, 0.0]).astype(np.float32))
    bias = net.constant(np.array([1, 1000, -1, 5], np.float32))
    net_out = net.add("Gemm", net.x, weight, bias, transB=1)
    model = net.model(net_out)
    change = apply("static-int8", model, rows((4,)), observer="mse")
    params = read(model)
    assert any("biases are stored as 32-bit integers" in note and "/gemm_0" in note for note in change.notes)
    scale = params[Site("c0")][0].scale
    source = params[Site("x")][0].scale
    assert scale is not None and source is not None
    assert np.all(np.abs(bias.const_value.numpy()) / (scale * source) < 2**31)  # type: ignore[union-attr]


def test_inputs_whose_level_changes_get_their_range_at_every_call() -> None:
    net = Net(["n", 16])
    steady = net.model(net.add("MatMul", net.x, net.weight(16, 8)))
    moving = steady.clone()
    apply("static-int8", steady, rows((16,)))
    assert read(steady)[Site("x")][0].scale is not None
    samples = rows((16,)).rows
    loud = [{"x": feeds["x"] * np.float32(100)} for feeds in samples[:2]]
    served = Facets(
        rules=load_platform("generic-armv8").rules,
        calibration=Rows([*loud, *samples]),
        validation=Rows(samples[4::5]),
    )
    step = passes.make("static-int8")
    assert isinstance(step, Pass)
    judged = step.apply(moving, Context(served, step.reads)).details["fidelity"]
    assert read(moving)[Site("x")][0].scale is None
    assert judged["per-call"] > max(judged["mse"], judged["min-max"]) + 1


def test_a_shared_weight_has_one_scale() -> None:
    net = Net(["n", 4, 8])
    weight = net.weight(8, 8)
    model = net.model(net.add("MatMul", net.add("MatMul", net.x, weight), weight))
    apply("static-int8", model, rows((4, 8)))
    assert Site(weight.name or "") in read(model)


def test_without_data_matrix_products_are_dynamic_and_convolutions_store_bytes() -> None:
    dynamic, ledger = quantize(attention_net())
    assert [entry.step.name for entry in ledger] == ["dynamic-int8"]
    assert any(chain[0].scale is None for chain in read(dynamic).values())
    assert decibels(attention_net(), dynamic, rows((6, 32))) > 25
    model = residual_net()
    stored, ledger = quantize(model)
    assert [entry.step.name for entry in ledger] == ["weight-only"]
    assert all(where.value.startswith("c") for where in read(stored))
    assert any("calibration" in note for entry in ledger for note in entry.change.notes)
    with pytest.raises(UserError, match="needs calibration data"):
        quantize(model, scheme="static-int8")
    with pytest.raises(UserError, match="needs calibration data"):
        apply("static-int8", model)


def test_four_bits_come_in_blocks() -> None:
    net = Net(["n", 4, 64])
    model = net.model(net.add("MatMul", net.x, net.weight(64, 32)))
    quantized, _ = quantize(model, scheme="weight-only", bits=4, block=32)
    (params,) = read(quantized)[Site("c0")]
    assert (params.dtype, params.block, params.axis) == (ir.DataType.INT4, 32, 0)
    assert decibels(model, quantized, rows((4, 64))) > 15


def test_float16_halves_what_is_stored() -> None:
    model, samples = residual_net(), rows((3, 8, 8))
    quantized, _ = quantize(model, scheme="float16")
    large = [value for value in quantized.graph.initializers.values() if value.const_value.size >= 64]  # type: ignore[union-attr]
    assert large and all(value.dtype == ir.DataType.FLOAT16 for value in large)
    assert decibels(model, quantized, samples) > 60


def test_layers_that_int8_ruins_return_to_float() -> None:
    net = Net(["n", 3, 8, 8])
    first = net.conv(net.x, 3, 8)
    spread = net.constant(np.logspace(-4, 4, 8).astype(np.float32).reshape(1, 8, 1, 1))
    wild = net.add("Mul", first, spread)
    tame = net.constant(
        (1 / np.logspace(-4, 4, 8)).astype(np.float32).reshape(1, 8, 1, 1)
        + np.zeros(8, np.float32).reshape(8, 1, 1, 1)
    )
    model = net.model(net.add("Conv", wild, tame))
    samples = rows((3, 8, 8))
    quantized, ledger = quantize(model, samples, fidelity=20.0)
    (last,) = (entry.change for entry in ledger if entry.step.name == "restore-float")
    assert last.details["fidelity"] < 20
    assert last.details["restored"]
    assert any("stay in float" in note for note in last.notes)
    assert decibels(model, quantized, samples) >= 20


def test_no_layer_returns_to_float_where_everything_is_integers() -> None:
    model, samples = attention_net(), rows((6, 32))
    wanted = 200.0  # dB that no int8 reaches
    _, ledger = quantize(model, samples, fidelity=wanted)
    assert "restore-float" in [entry.step.name for entry in ledger]
    _, ledger = quantize(model, samples, fidelity=wanted, throughout="int8")
    assert "restore-float" not in [entry.step.name for entry in ledger]


def test_options_are_checked() -> None:
    with pytest.raises(UserError, match="scheme"):
        passes.make("quantize", {"scheme": "static-int"})
    with pytest.raises(UserError, match="bits"):
        passes.make("quantize", {"bits": 3})


def test_equalizing_changes_no_output_and_undoes_a_rescaling() -> None:
    model, samples = residual_net(), rows((3, 8, 8))
    rescaled = model.clone()
    values = rescaled.graph.initializers
    factors = np.exp2(np.linspace(-6, 6, 8)).astype(np.float32)  # between the block's two convolutions
    scaled = {
        "c2": values["c2"].const_value.numpy() * factors.reshape(8, 1, 1, 1),  # type: ignore[union-attr]
        "c3": values["c3"].const_value.numpy() * factors,  # type: ignore[union-attr]
        "c4": values["c4"].const_value.numpy() / factors.reshape(1, 8, 1, 1),  # type: ignore[union-attr]
    }
    for name, array in scaled.items():
        values[name].const_value = ir.tensor(array.astype(np.float32), name=name)
    equalized = rescaled.clone()
    change = apply("equalize-channels", equalized, samples)
    assert change.details["alpha"] is not None
    assert decibels(model, equalized, samples) > 100
    worse, _ = quantize(rescaled, samples, equalize=False, fidelity=0.0)
    better, _ = quantize(rescaled, samples, fidelity=0.0)
    assert decibels(model, better, samples) > decibels(model, worse, samples) + 3


def test_without_data_equalizing_uses_the_weights_alone() -> None:
    model = residual_net()
    equalized = model.clone()
    assert apply("equalize-channels", equalized).rewrites
    assert decibels(model, equalized, rows((3, 8, 8))) > 100


def test_a_quantized_model_is_left_as_it_is() -> None:
    model, samples = residual_net(), rows((3, 8, 8))
    quantized, _ = quantize(model, samples)
    params = read(quantized)
    preparing = (
        "absorb-biases",
        "keep-stem",
        "normalize-rows",
        "restore-pixels",
        "split-leaky-relu",
        "split-operands",
    )
    for scheme in ("static-int8", "dynamic-int8"):
        assert apply(scheme, quantized, samples).summary == "already quantized"
    quantized.metadata_props.clear()  # as if another tool had made it
    for scheme in (*preparing, "static-int8", "dynamic-int8"):
        assert apply(scheme, quantized, samples).summary == "already quantized"
        assert read(quantized) == params


def test_an_old_opset_gets_float16() -> None:
    model = attention_net()
    model.opset_imports[""] = 11
    _, ledger = quantize(model, rows((6, 32)))
    assert [entry.step.name for entry in ledger] == ["float16"]


def test_the_same_samples_give_the_same_quantization() -> None:
    model, samples = residual_net(), rows((3, 8, 8))
    once, _ = quantize(model, samples)
    again, _ = quantize(model, samples)
    assert ir.to_proto(once).SerializeToString() == ir.to_proto(again).SerializeToString()


def test_the_plan_names_the_steps_that_the_effort_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = residual_net(), rows((3, 8, 8))
    _, ledger = quantize(model.clone(), samples, effort="minimal")
    assert [entry.step.name for entry in ledger][-2:] == ["static-int8", "restore-float"]
    monkeypatch.setattr("edgeopt.passes.quantize.find_spec", lambda name: None)
    _, ledger = quantize(model.clone(), samples, effort="more")
    steps = ["static-int8", "search-ranges", "gptq", "restore-float", "end-plan"]
    assert [entry.step.name for entry in ledger][-5:] == steps
    assert "edgeopt[torch]" in ledger[-1].change.notes[0]
    assert ledger[-1].change.details["left_out"] == ["distill"]


def test_where_torch_is_installed_the_whole_model_is_trained(torch: Any) -> None:
    model, samples = residual_net(), rows((3, 8, 8))
    solved = taken("gptq", model, fidelity=20.0, fidelity_after=22.0)
    for effort, seconds in (("default", 12.0), ("more", 90.0)):
        step = following([solved], samples, effort=effort)
        assert isinstance(step, Distill) and step.seconds == seconds
    trained = taken("distill", model, fidelity=22.0, fidelity_after=23.0)
    last = following([solved, trained], samples)
    assert last is not None and last.name == "restore-float"


def following(ledger: list[Entry], samples: Rows, **options: object) -> Pass | None:
    plan = passes.make("quantize", options)
    assert isinstance(plan, Plan)
    return plan.next(ledger[-1].model, Context(facets(samples), plan.reads), ledger)


def taken(name: str, model: ir.Model, seconds: float = 0.0, **details: object) -> Entry:
    step = passes.make(name)
    assert isinstance(step, Pass)
    gained = [Rewrite(step.name, "conv", ("conv",))]
    return Entry(step, Change(rewrites=gained, details=dict(details)), model, seconds)


def test_no_step_begins_once_the_processor_time_is_spent() -> None:
    model, samples = residual_net(), rows((3, 8, 8))
    smoothed = taken("smooth-activations", model, 200.0)
    quantized = taken("static-int8", model, 50.0, fidelity={"mse": 20.0})
    names = (
        "move-pools",
        "keep-stem",
        "restore-pixels",
        "absorb-biases",
        "split-leaky-relu",
        "normalize-rows",
        "split-operands",
    )
    exact = [taken(name, model) for name in names]
    prepared = [smoothed, taken("equalize-channels", model, 30.0), *exact]
    early = following([*prepared, quantized], samples)
    assert isinstance(early, Pass) and early.name == "end-plan"
    change = early.apply(model, Context())
    left = ["gptq", "bias-correction", *LEARNING, "restore-float"]
    assert change.details["left_out"] == left
    assert change.notes == [f"the plan's 240 CPU seconds are spent: {', '.join(left)} left out"]
    assert not change.rewrites
    assert following([smoothed, quantized, Entry(early, change, model)], samples) is None
    within = following([smoothed, quantized], samples, cpu_seconds=251.0)
    assert within is not None and within.name == "gptq"
    endless = following([smoothed, quantized], samples, cpu_seconds=0.0)
    assert endless is not None and endless.name == "gptq"


def test_the_model_is_quantized_even_where_preparing_it_took_all_the_time() -> None:
    model, samples = residual_net(), rows((3, 8, 8))
    smoothed = taken("smooth-activations", model, 300.0)
    scheme = following([smoothed], samples)
    assert scheme is not None and scheme.name == "static-int8"
    end = following([smoothed, taken("static-int8", model, fidelity={"mse": 20.0})], samples)
    assert end is not None
    assert end.options()["left_out"] == (
        "move-pools",
        "keep-stem",
        "restore-pixels",
        "equalize-channels",
        "absorb-biases",
        "split-leaky-relu",
        "normalize-rows",
        "split-operands",
        "gptq",
        "bias-correction",
        *LEARNING,
        "restore-float",
    )


def test_a_negative_time_is_refused() -> None:
    with pytest.raises(UserError, match="processor time"):
        passes.make("quantize", {"cpu_seconds": -1})


def test_three_steps_in_a_row_that_gain_too_little_end_the_recovery() -> None:
    model, samples = residual_net(), rows((3, 8, 8))
    smoothed = taken("smooth-activations", model, fidelity={"none": 20.0, "smoothed": 20.05})
    equalized = taken("equalize-channels", model, fidelity={"none": 20.0, "0.5": 20.04})
    quantized = taken("static-int8", model, fidelity={"mse": 20.0})
    solved = Entry(Gptq(), Change(details={"fidelity": 20.0, "fidelity_after": 20.0}), model)
    ended = following([smoothed, equalized, quantized, solved], samples)
    assert ended is not None and ended.name == "restore-float"  # keeps a promise, so it is not left out
    equalized.change.details["fidelity"]["0.5"] = 20.2
    longer = following([smoothed, equalized, quantized, solved], samples)
    assert longer is not None and longer.name == "bias-correction"


def test_the_time_of_a_step_taken_from_the_store_counts_as_it_was_computed(tmp_path: Path) -> None:
    model, samples = residual_net(), rows((3, 8, 8))
    plan = passes.make("quantize", {"cpu_seconds": 1e-9})
    for _ in range(2):
        stepper = Stepper(Store(tmp_path), facets(samples), "teacher")
        steps = list(stepper.run(State("original", stepper.store, model), plan))
        assert [step.options.name for step in steps] == ["smooth-activations", "static-int8", "end-plan"]
    assert all(step.cached for step in steps)


def test_a_recurrent_layer_may_give_out_its_last_state_alone() -> None:
    net = Net(["n", 5, 6])
    first = net.constant(np.array([0], np.int64))
    gates, state = net.weight(1, 24, 6), net.weight(1, 24, 8)
    steps = net.add("Transpose", net.x, perm=[1, 0, 2])
    start = net.add(
        "MatMul", net.add("ReduceMean", steps, net.constant(np.array([0], np.int64))), net.weight(6, 8)
    )
    layer = ir.node(
        "GRU",
        [steps, gates, state, net.weight(1, 48), None, start],
        {"hidden_size": 8},
        num_outputs=2,
        name="gru",
    )
    layer.outputs[0].name, layer.outputs[1].name = "", "last"
    layer.outputs[1].dtype, layer.outputs[1].shape = ir.DataType.FLOAT, ir.Shape([1, "n", 8])
    net.nodes.append(layer)
    flat = net.add("Squeeze", layer.outputs[1], first)
    model = ir.from_proto(ir.to_proto(net.model(net.add("MatMul", flat, net.weight(8, 4)))))
    params = {Site(gates.name or ""): [QuantParams(ir.DataType.INT8, np.float32(0.02), None)]}
    assert Trial(model, params, rows((5, 6))).signals()["gru"] > 10


def test_what_a_ranking_costs_goes_by_the_size_of_the_images() -> None:
    net = Net(["n", 3, "height", "width"])
    model = net.model(net.conv(net.add("Relu", net.conv(net.x, 3, 64)), 64, 3))
    weights = [name for name, value in model.graph.initializers.items() if len(value.shape or ()) == 4]
    params = {Site(name): [QuantParams(ir.DataType.INT8, np.float32(0.02), None)] for name in weights}
    assert Trial(model, params, rows((3, 8, 8))).affordable() == 4
    large = Rows([{"x": np.broadcast_to(np.float32(0), (1, 3, 2048, 2048))}])
    assert Trial(model, params, large).affordable() == 0
