"""Solving for weights in closed form: what it must compute, and what it is worth on networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from networks import Net, Rows, attention_net, residual_net, rows

from edgeopt import fidelity, passes
from edgeopt.errors import UserError
from edgeopt.graph.execute import Executor
from edgeopt.graph.quantization import QuantParams, Site, read, strip, write
from edgeopt.load import load
from edgeopt.passes import Change, Context, Facets, Pass
from edgeopt.passes._least_squares import Moments, best_weights, residual, round_columns, shifted
from edgeopt.passes._products import read_product
from edgeopt.passes.gptq import Gptq
from edgeopt.platform import load_platform


def apply(name: str, model: ir.Model, samples: Rows, teacher: ir.Model, **options: object) -> Change:
    step = passes.make(name, options)
    assert isinstance(step, Pass)
    facets = Facets(
        rules=load_platform("generic-armv8").rules,
        calibration=samples,
        validation=Rows(samples.rows[4::5]),
        teacher=teacher,
    )
    return step.apply(model, Context(facets, step.reads))


def decibels(one: ir.Model, other: ir.Model, samples: Rows) -> float:
    value = fidelity.compare(Executor(one).run, Executor(other).run, samples.feeds()).value
    assert value is not None
    return value


def correlated(shape: tuple[int, ...], count: int, seed: int) -> Rows:
    """Samples whose last axis has few degrees of freedom, as real activations have."""
    mixing = np.random.default_rng(0).standard_normal((shape[-1] // 4, shape[-1])).astype(np.float32)
    small = rows((*shape[:-1], shape[-1] // 4), count, seed=seed).rows
    noise = rows(shape, count, seed=seed + 1).rows
    return Rows([{"x": one["x"] @ mixing / 2 + two["x"] / 8} for one, two in zip(small, noise, strict=True)])


def test_a_residual_network_becomes_more_faithful_on_samples_it_has_not_seen() -> None:
    original = residual_net()
    model, samples = original.clone(), rows((3, 8, 8), 200)
    apply("static-int8", model, samples, original)
    fresh = rows((3, 8, 8), 64, seed=7)
    before = decibels(original, model, fresh)
    names = [node.name for node in model.graph]
    change = apply("gptq", model, samples, original)
    assert len(change.rewrites) >= 3
    assert change.details["fidelity_after"] > change.details["fidelity"]
    assert decibels(original, model, fresh) > before + 0.5
    assert [node.name for node in model.graph] == names


def test_few_samples_do_not_judge_what_was_solved_for_them() -> None:
    net = Net(["n", 6, 32])
    hidden = net.add("Relu", net.add("Add", net.add("MatMul", net.x, net.weight(32, 64)), net.weight(64)))
    original = net.model(net.add("Add", net.add("MatMul", hidden, net.weight(64, 32)), net.weight(32)))
    model, samples = original.clone(), rows((6, 32), 12)
    apply("static-int8", model, samples, original)
    facets = Facets(
        rules=load_platform("generic-armv8").rules, calibration=samples, validation=samples, teacher=original
    )
    fresh = rows((6, 32), 200, seed=7)
    before = decibels(original, model, fresh)
    Gptq().apply(model, Context(facets, Gptq().reads))
    assert decibels(original, model, fresh) > before - 0.2  # it lost 3 dB where they judged themselves


def test_weights_in_a_file_of_their_own_are_solved_alike(tmp_path: Path) -> None:
    """As torch's exporter writes them: also biases that are small enough to be part of what is run alone."""
    original = residual_net()
    ir.save(original, tmp_path / "net.onnx", external_data="net.data", size_threshold_bytes=0)
    samples, found = rows((3, 8, 8), 100), []
    for net in (original, load(tmp_path / "net.onnx")):
        model = net.clone()
        apply("static-int8", model, samples, net)
        found.append([item.site for item in apply("gptq", model, samples, net).rewrites])
    assert found[0]
    assert found[0] == found[1]


def test_matrix_products_gain_where_their_inputs_are_correlated() -> None:
    net = Net(["n", 6, 32])
    hidden = net.add("Relu", net.add("Add", net.add("MatMul", net.x, net.weight(32, 64)), net.weight(64)))
    original = net.model(net.add("Add", net.add("MatMul", hidden, net.weight(64, 32)), net.weight(32)))
    model, samples = original.clone(), correlated((6, 32), 200, 1)
    apply("static-int8", model, samples, original)
    fresh = correlated((6, 32), 64, 7)
    before = decibels(original, model, fresh)
    change = apply("gptq", model, samples, original)
    assert change.rewrites
    assert decibels(original, model, fresh) > before + 0.3


def test_what_does_not_gain_on_the_validation_samples_is_not_kept() -> None:
    original = attention_net()  # its inputs are not correlated, so there is nothing to hand on
    model, samples = original.clone(), rows((6, 32), 200)
    apply("static-int8", model, samples, original)
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    change = apply("gptq", model, samples, original)
    assert not change.rewrites
    assert change.details["fidelity_after"] == change.details["fidelity"]
    assert any("not kept" in skipped.reason for skipped in change.skipped)
    assert {name: value.const_value for name, value in model.graph.initializers.items()} == before


def test_weights_lie_on_their_grids() -> None:
    original = residual_net()
    model, samples = original.clone(), rows((3, 8, 8), 100)
    apply("static-int8", model, samples, original)
    solved = {item.site for item in apply("gptq", model, samples, original).rewrites}
    params = read(model)
    plain = model.clone()
    strip(plain)
    seen = 0
    for where, chain in params.items():
        if where.value not in plain.graph.initializers or chain[0].scale is None:
            continue
        if not solved & {use.node.name for use in plain.graph.initializers[where.value].uses()}:
            continue
        tensor = plain.graph.initializers[where.value].const_value
        assert tensor is not None
        array, scale = tensor.numpy(), chain[0].scale
        steps = scale.reshape([-1 if axis == chain[0].axis else 1 for axis in range(array.ndim)])
        levels = array / steps
        assert np.abs(levels).max() <= 128
        np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
        seen += 1
    assert seen == len(solved) >= 3


def test_a_model_whose_float_form_is_another_is_left_alone() -> None:
    original = residual_net()
    model, samples = original.clone(), rows((3, 8, 8), 100)
    apply("static-int8", model, samples, original)
    bias = next(node for node in model.graph if node.op_type == "Gemm").inputs[2]
    assert bias is not None and bias.const_value is not None
    bias.const_value = ir.tensor(bias.const_value.numpy() + 0.3, name=bias.name)
    change = apply("gptq", model, samples, original)
    assert not change.rewrites
    assert "float form" in change.summary


def test_it_needs_data_and_sensible_options() -> None:
    step = passes.make("gptq")
    assert isinstance(step, Pass)
    with pytest.raises(UserError, match="calibration data"):
        step.apply(residual_net(), Context(Facets(), step.reads))
    with pytest.raises(UserError):
        passes.make("gptq", {"samples": 0})


def test_a_model_without_quantization_has_nothing_to_round() -> None:
    original = residual_net()
    change = apply("gptq", original.clone(), rows((3, 8, 8), 50), original)
    assert not change.rewrites
    assert "no quantized weights" in change.summary


def test_the_closed_form_is_least_squares() -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((2, 5, 6))
    exact = generator.standard_normal((2, 400, 6))
    given = exact + 0.3 * generator.standard_normal((2, 400, 6)) + 0.1
    errors = np.einsum("gnk,gok->gno", exact - given, weight)
    moments = Moments.empty(2, 5, 6)
    moments.see(given[:, :150], errors[:, :150])
    moments.see(given[:, 150:], errors[:, 150:])
    square, cross = moments.about_means(free=True)
    best = best_weights(weight, square, cross)
    wanted = np.einsum("gnk,gok->gno", exact, weight)
    for group in range(2):
        augmented = np.concatenate([given[group], np.ones((400, 1))], axis=1)
        solution = np.linalg.lstsq(augmented, wanted[group], rcond=None)[0]
        np.testing.assert_allclose(best[group], solution[:-1].T, rtol=1e-6, atol=1e-9)
    change = best - weight
    shift = moments.errors / 400 - np.einsum("gok,gk->go", change, moments.inputs / 400)
    left = residual(change, moments) + shifted(change, shift, moments)
    nothing = np.zeros_like(change)
    none = residual(nothing, moments) + shifted(nothing, np.zeros_like(shift), moments)
    expected = np.square(wanted - given @ np.swapaxes(best, 1, 2) - shift[:, None]).mean(1)
    unchanged = np.square(wanted - given @ np.swapaxes(weight, 1, 2)).mean(1)
    # the figures lack the same constant, so differences agree
    full = np.square(errors).mean(1)
    np.testing.assert_allclose(none, 0, atol=1e-12)
    np.testing.assert_allclose(unchanged, full, rtol=1e-9)
    without = np.square(errors - given @ np.swapaxes(change, 1, 2)).mean(1)
    np.testing.assert_allclose(left, expected - full, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(residual(change, moments), without - full, rtol=1e-6, atol=1e-9)
    assert (left <= none + 1e-12).all()
    assert (expected <= without + 1e-12).all()


def test_sums_of_many_columns_take_rows_by_blocks_and_float_outputs_instead_of_errors() -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((1, 3, 1100))
    rows = generator.standard_normal((1, 1500, 1100)).astype(np.float32)
    outputs = generator.standard_normal((1, 1500, 3)).astype(np.float32)
    once, blocks = Moments.empty(1, 3, 1100), Moments.empty(1, 3, 1100)
    once.see(rows, outputs - (rows @ weight[0].T).astype(np.float32))
    for start in range(0, 1500, 250):
        blocks.see(rows[:, start : start + 250], outputs[:, start : start + 250])
    blocks.less(weight)
    assert once.count == blocks.count == 1500
    assert not once.waiting and not blocks.waiting
    for name in ("inputs", "errors", "square", "cross"):
        one, other = getattr(once, name), getattr(blocks, name)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3 * np.abs(one).mean())


def test_handing_errors_on_beats_rounding_to_nearest() -> None:
    generator = np.random.default_rng(1)
    mixing = generator.standard_normal((40, 40)) * np.linspace(0.05, 1, 40)
    data = generator.standard_normal((2000, 40)) @ mixing.T
    square = (data.T @ data / 2000)[None] + 1e-3 * np.eye(40)
    weight = generator.standard_normal((1, 8, 40))
    steps = np.full((1, 8), 0.25)
    nearest = np.clip(np.rint(weight / 0.25), -128, 127) * 0.25
    solved = round_columns(weight, steps, square, -128, 127)

    def error(grid: np.ndarray) -> float:
        return float(np.einsum("gok,gkl,gol->", grid - weight, square, grid - weight))

    np.testing.assert_allclose(solved / 0.25, np.rint(solved / 0.25), atol=1e-9)
    assert error(solved) < 0.5 * error(nearest)


@pytest.mark.parametrize(
    ("shape", "kernel", "attributes"),
    [
        ((2, 4, 9, 7), (6, 4, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 1]}),
        ((2, 4, 9, 7), (8, 2, 3, 2), {"group": 2, "dilations": [2, 1], "pads": [0, 1, 2, 0]}),
        ((2, 4, 9, 7), (4, 1, 3, 3), {"group": 4}),
        ((2, 4, 9), (6, 4, 3), {"pads": [1, 0]}),
    ],
)
def test_rows_times_weights_are_a_convolution(
    shape: tuple[int, ...], kernel: tuple[int, ...], attributes: dict[str, object]
) -> None:
    generator = np.random.default_rng(0)
    net = Net(["n", *shape[1:]])
    weight = generator.standard_normal(kernel).astype(np.float32)
    model = net.model(net.add("Conv", net.x, net.constant(weight), **attributes))
    node = next(node for node in model.graph if node.op_type == "Conv")
    product = read_product(node)
    assert product is not None
    x = generator.standard_normal(shape).astype(np.float32)
    output = next(iter(Executor(model).run({model.graph.inputs[0].name or "": x}).values()))
    positions = product.positions(output, 20, generator)
    found = np.einsum("gnk,gok->gno", product.rows(x, output.shape, positions), product.matrix(weight))
    np.testing.assert_allclose(found, product.outputs(output, positions), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(product.unmatrix(product.matrix(weight), weight.shape), weight)


def test_weights_with_scales_along_their_columns_stay_as_they_are() -> None:
    """As a Gemm has them whose product stays float, so that only the file becomes smaller."""
    net = Net(["n", 16])
    generator = np.random.default_rng(3)
    first = net.constant(generator.standard_normal((16, 32)).astype(np.float32))
    hidden = net.add("Relu", net.add("Gemm", net.x, first))
    second = net.constant(generator.standard_normal((32, 8)).astype(np.float32))
    original = net.model(net.add("Gemm", hidden, second))
    samples = rows((16,), 64)
    model = original.clone()
    weight = next(iter(model.graph.initializers.values()))
    assert weight.const_value is not None and weight.name
    steps = np.abs(weight.const_value.numpy()).max(1) / np.float32(127)
    write(model, {Site(weight.name): [QuantParams(ir.DataType.INT8, steps, None, 0)]})
    before = read(model)
    change = apply("gptq", model, samples, original)
    assert not change.rewrites
    assert read(model) == before
