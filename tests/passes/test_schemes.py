"""16-bit activations, bfloat16 weights, and activations that float16 cannot hold."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from networks import Net, Rows, residual_net, rows

from edgeopt import fidelity, passes
from edgeopt.errors import PassError, UserError
from edgeopt.graph.change import Change
from edgeopt.graph.execute import Executor
from edgeopt.graph.quantization import read
from edgeopt.passes.base import Context, Facets, Pass
from edgeopt.platform import RuntimeVersion, load_platform

SHAPE = (3, 8, 8)


def apply(
    name: str,
    model: ir.Model,
    data: Rows | None = None,
    rules: RuntimeVersion | None = None,
    **options: object,
) -> tuple[ir.Model, Change]:
    step = passes.make(name, options)
    assert isinstance(step, Pass)
    changed = model.clone()
    return changed, step.apply(changed, Context(Facets(calibration=data, rules=rules)))


def decibels(model: ir.Model, other: ir.Model) -> float:
    value = fidelity.compare(Executor(model).run, Executor(other).run, rows(SHAPE).feeds(8)).value
    assert value is not None
    return value


def test_sixteen_bits_leave_the_noise_of_the_weights_alone() -> None:
    model = residual_net()
    eight, _ = apply("static-int8", model, rows(SHAPE))
    sixteen, change = apply("static-int8", model, rows(SHAPE), activation_bits=16)
    kinds = {chain[0].dtype for chain in read(sixteen).values()}
    assert kinds == {ir.DataType.UINT16, ir.DataType.INT8}
    assert decibels(model, sixteen) > decibels(model, eight) + 2
    assert any("no integer kernels" in note for note in change.notes)
    old = model.clone()
    old.opset_imports[""] = 19
    with pytest.raises(PassError, match="opset 21"):
        apply("static-int8", old, rows(SHAPE), activation_bits=16)
    with pytest.raises(UserError, match="8 or 16"):
        passes.make("quantize", {"activation_bits": 12})


def test_bfloat16_has_the_range_of_float32() -> None:
    net = Net(["n", 16])
    large = net.constant((np.random.default_rng(0).standard_normal((16, 16)) * 1e6).astype(np.float32))
    model = net.model(net.add("MatMul", net.x, large))
    _, change = apply("float16", model)
    assert change.skipped and "65504" in change.skipped[0].reason
    (note,) = change.notes
    assert "stays in float32: /matmul" in note
    stored, change = apply("float16", model, type="bfloat16")
    assert not change.skipped and "bfloat16" in change.summary
    data = rows((16,))
    value = fidelity.compare(Executor(model).run, Executor(stored).run, data.feeds()).value
    assert value is not None and 45 < value < 70


def test_what_would_round_to_infinity_stays_in_float32() -> None:
    net = Net(["n", 64])
    mask = np.where(np.arange(64) % 2, 0.0, np.finfo(np.float32).min).astype(np.float32)
    weight = net.constant(np.eye(64, dtype=np.float32))
    model = net.model(
        net.add("Softmax", net.add("Add", net.add("MatMul", net.x, weight), net.constant(mask)))
    )
    for kind in ("float16", "bfloat16"):
        stored, change = apply("float16", model, type=kind)
        assert len(change.rewrites) == 1 and len(change.skipped) == 1
        with Executor(stored) as executor:
            (value,) = executor.run(next(rows((64,)).feeds())).values()
        assert np.isfinite(value).all()


def test_activations_that_overflow_an_engine_are_named() -> None:
    rules = load_platform("jetson-nano", "tensorrt").rules
    model = residual_net()
    _, change = apply("float16", model, rows(SHAPE), rules)
    assert change.notes == []
    data = Rows([{"x": row["x"] * 1e6} for row in rows(SHAPE, count=4).rows])
    _, change = apply("float16", model, data, rules)
    assert len(change.notes) == 1 and "the engine overflows there" in change.notes[0]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 1, 3), (1, 2, 0, 3)])
def test_schemes_mix_in_one_model(order: tuple[int, ...]) -> None:
    net, samples = Net(["n", 3, 8, 8]), rows(SHAPE)
    value = net.x
    for size in (3, 32, 32, 32):
        value = net.add("Relu", net.conv(value, size, 32))
    value = net.add("Flatten", net.add("GlobalAveragePool", value))
    model = net.model(net.add("Gemm", net.add("Gemm", value, net.weight(32, 32)), net.weight(32, 32)))
    names = [node.name or "" for node in model.graph if node.op_type in ("Conv", "Gemm")]
    weights, wide, *narrow, left, dynamic = names[1], names[2], names[0], names[3], names[4], names[5]

    def but(*layers: str) -> tuple[str, ...]:
        return tuple(name for name in names if name not in layers)

    steps = [
        ("weight-only", {"keep_float": but(weights)}, {weights}),
        ("static-int8", {"activation_bits": 16, "keep_float": but(wide)}, {wide}),
        ("dynamic-int8", {"keep_float": but(dynamic)}, {dynamic}),
        ("static-int8", {"keep_float": (left,)}, set(narrow)),
    ]
    mixed = model
    for name, options, layers in [steps[index] for index in order]:
        mixed, change = apply(name, mixed, samples, **options)  # type: ignore[arg-type]
        assert {item.site for item in change.rewrites} == layers
    params = read(mixed)
    links = [link for chain in params.values() for link in chain]
    assert {ir.DataType.UINT16, ir.DataType.UINT8, ir.DataType.INT8} <= {link.dtype for link in links}
    assert any(link.scale is None for link in links)
    last, change = apply("float16", mixed)
    assert read(last) == params
    assert {item.site for item in change.rewrites} == {left}
    assert decibels(model, last) > 30
    again, change = apply("static-int8", last, samples)
    assert change.summary == "already quantized" and read(again) == params


def test_quantization_that_came_with_a_model_is_not_mixed_with_ours() -> None:
    samples = rows(SHAPE)
    names = [node.name or "" for node in residual_net().graph if node.op_type in ("Conv", "Gemm")]
    theirs, _ = apply("static-int8", residual_net(), samples, keep_float=tuple(names[2:]))
    theirs.metadata_props.clear()
    for scheme in ("static-int8", "dynamic-int8"):
        again, change = apply(scheme, theirs, samples)
        assert not change.rewrites and read(again) == read(theirs)
