"""Reading, writing and stripping quantization: inverse to each other on random graphs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeopt.errors import ModelError
from edgeopt.graph.execute import Executor
from edgeopt.graph.quantization import (
    QuantParams,
    Site,
    dequantize_array,
    quantize_array,
    read,
    strip,
    with_rounded_constants,
    write,
)

OPERATORS = ["Add", "Mul", "Relu", "MatMul", "Concat", "Identity"]
DTYPES = [ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.INT4]


@st.composite
def models(draw: st.DrawFn) -> ir.Model:
    """A random graph of 4 x 4 values: residual sums, shared weights, concat, several outputs."""
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    weights = [
        ir.Value(
            name=f"w{i}",
            shape=ir.Shape([4, 4]),
            type=ir.TensorType(ir.DataType.FLOAT),
            const_value=ir.tensor(random.standard_normal((4, 4)).astype(np.float32)),
        )
        for i in range(2)
    ]
    x = ir.val("x", ir.DataType.FLOAT, [4, 4])
    values, nodes = [x], []
    for index in range(draw(st.integers(1, 7))):
        kind = draw(st.sampled_from(OPERATORS))
        pick = st.sampled_from(values)
        if kind == "Concat":
            both = [draw(pick), draw(pick)]
            nodes.append(ir.node("Concat", both, {"axis": 0}, name=f"n{index}c"))
            nodes[-1].outputs[0].name = f"c{index}"
            halves = ir.node("Split", [nodes[-1].outputs[0]], {"axis": 0, "num_outputs": 2}, num_outputs=2)
            halves.name, halves.outputs[1].name = f"n{index}", f"u{index}"
            nodes.append(halves)
        else:
            inputs = [draw(pick)]
            if kind in ("Add", "Mul"):
                inputs.append(draw(pick))
            if kind == "MatMul":
                inputs.append(draw(st.sampled_from(weights)))
            nodes.append(ir.node(kind, inputs, name=f"n{index}"))
        output = nodes[-1].outputs[0]
        output.name, output.type, output.shape = f"v{index}", x.type, x.shape
        values.append(output)
    results = values[1:]
    outputs = draw(st.lists(st.sampled_from(results), min_size=1, max_size=2, unique=True))
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=weights, opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)


@st.composite
def quantizers(draw: st.DrawFn, constant: bool) -> QuantParams:
    if not constant and draw(st.integers(0, 5)) == 0:
        return QuantParams(ir.DataType.UINT8, None)
    dtype = draw(st.sampled_from(DTYPES))
    size = draw(st.sampled_from([(), (4,), (2, 4)] if constant else [()]))
    scale = np.asarray(draw(st.sampled_from([0.125, 0.03, 1.0])) * np.ones(size), np.float32)
    low, high = (0, 3) if dtype == ir.DataType.UINT8 else (-3, 3)
    zero = np.full(size, draw(st.integers(low, high)), dtype.numpy())
    axis = None if not size else 0 if len(size) == 2 else 1
    return QuantParams(dtype, scale, zero if np.any(zero.astype(int)) else None, axis, 2 * (len(size) == 2))


@st.composite
def quantized(draw: st.DrawFn) -> tuple[ir.Model, dict[Site, list[QuantParams]]]:
    model = draw(models())
    graph = model.graph
    params: dict[Site, list[QuantParams]] = {}
    candidates = [*graph.inputs, *graph.initializers.values()]
    candidates += [output for node in graph for output in node.outputs]
    for value in candidates:
        readers = [(use.node.name or "", use.idx) for use in value.uses()]
        readers += [("", index) for index, output in enumerate(graph.outputs) if output is value]
        if not readers or draw(st.booleans()):
            continue
        chain = st.lists(quantizers(value.is_initializer()), min_size=1, max_size=2)
        if draw(st.booleans()):
            params[Site(value.name or "")] = draw(chain)
            continue
        first = draw(st.lists(st.sampled_from(readers), min_size=1, unique=True))
        second = [reader for reader in readers if reader not in first]
        chosen = draw(chain)
        params[Site(value.name or "", tuple(sorted(first)) if second else None)] = chosen
        if second and draw(st.booleans()):
            longer = [*chosen, *draw(chain)] if draw(st.booleans()) else draw(chain)
            if longer != chosen:
                params[Site(value.name or "", tuple(sorted(second)))] = longer
    return model, params


def text(model: ir.Model) -> list[tuple[object, ...]]:
    """The graph without the names of values that are neither inputs nor outputs, in canonical order."""
    seen: dict[ir.Value, str] = {value: value.name or "" for value in model.graph.inputs}
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        seen[value] = f"{value.const_value.dtype}{value.const_value.numpy().tolist()}"

    def describe(value: ir.Value) -> str:
        if value in seen:
            return seen[value]
        node = value.producer()
        assert node is not None
        inputs = tuple(describe(item) for item in node.inputs if item is not None)
        attributes = tuple(sorted((name, str(item.value)) for name, item in node.attributes.items()))
        return f"{node.op_type}{inputs}{attributes}[{value.index()}]"

    return [(output.name, describe(output)) for output in model.graph.outputs]


fast = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@fast
@given(quantized())
def test_read_returns_what_write_was_given(case: tuple[ir.Model, dict[Site, list[QuantParams]]]) -> None:
    model, params = case
    write(model, params)
    assert read(model) == params


@fast
@given(quantized())
def test_strip_undoes_write(case: tuple[ir.Model, dict[Site, list[QuantParams]]]) -> None:
    model, params = case
    before = text(model)
    write(model, params)
    strip(model)
    assert text(model) == before
    assert read(model) == {}


@fast
@given(quantized())
def test_writing_what_was_read_restores_the_model(
    case: tuple[ir.Model, dict[Site, list[QuantParams]]],
) -> None:
    model, params = case
    write(model, params)
    expected = text(model)
    found = read(model)
    strip(model)
    write(model, found)
    assert text(model) == expected


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(quantized())
def test_a_written_model_runs(case: tuple[ir.Model, dict[Site, list[QuantParams]]]) -> None:
    model, params = case
    names = [output.name for output in model.graph.outputs]
    write(model, params)
    with Executor(model) as executor:
        assert list(executor.run({"x": np.ones((4, 4), np.float32)})) == names


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(quantized())
def test_constants_that_were_rounded_before_compute_the_same(
    case: tuple[ir.Model, dict[Site, list[QuantParams]]],
) -> None:
    model, params = case
    write(model, params)
    before, feeds = text(model), {"x": np.linspace(-2, 2, 16, dtype=np.float32).reshape(4, 4)}
    simulated = with_rounded_constants(model)
    assert text(model) == before
    with Executor(model) as one, Executor(simulated) as other:
        expected, actual = one.run(feeds), other.run(feeds)
    assert list(expected) == list(actual)
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, rtol=1e-5, atol=1e-5)


def test_rounded_constants_need_no_quantization() -> None:
    model = linear()
    write(model, {Site("w"): [QuantParams(ir.DataType.INT8, np.full(3, 0.01, np.float32), None, 0)]})
    simulated = with_rounded_constants(model)
    assert [node.op_type for node in simulated.graph] == ["Gemm"]


def linear(bias: bool = True) -> ir.Model:
    random = np.random.default_rng(0)
    tensors = {"w": random.standard_normal((3, 4)), "b": random.standard_normal(3)}
    values = {
        name: ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape(item.shape),
            const_value=ir.tensor(item.astype(np.float32)),
        )
        for name, item in tensors.items()
    }
    x = ir.val("x", ir.DataType.FLOAT, [1, 4])
    node = ir.node("Gemm", [x, *values.values()], {"transB": 1}, name="fc")
    node.outputs[0].name = "y"
    graph = ir.Graph(
        [x], node.outputs, nodes=[node], initializers=list(values.values()), opset_imports={"": 21}
    )
    return ir.Model(graph, ir_version=10)


def test_int32_is_folded_and_read_like_a_pair() -> None:
    model = linear()
    before = model.graph.initializers["b"].const_value
    assert before is not None
    expected = before.numpy()
    scale = np.array([0.001, 0.002, 0.003], np.float32)
    params = {Site("b"): [QuantParams(ir.DataType.INT32, scale, None, 0)]}
    write(model, params)
    folded = model.graph.initializers["b"]
    assert folded.dtype == ir.DataType.INT32
    assert read(model) == params
    strip(model)
    restored = model.graph.initializers["b"].const_value
    assert restored is not None
    np.testing.assert_allclose(restored.numpy(), expected, atol=0.002)


def test_quantized_arrays_agree_with_the_operators() -> None:
    array = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    scale = np.array([0.01, 0.02, 0.03], np.float32)
    zero = np.array([3, 0, 250], np.uint8)
    params = QuantParams(ir.DataType.UINT8, scale, zero, 0)
    model = linear()
    model.graph.initializers["w"].const_value = ir.tensor(array)
    write(model, {Site("w"): [params]})
    pair = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    with Executor(model, [pair[0].inputs[0].name, pair[0].outputs[0].name]) as executor:  # type: ignore[union-attr, list-item]
        result = executor.run({"x": np.ones((1, 4), np.float32)})
    integers = quantize_array(array, params)
    np.testing.assert_array_equal(result["w_quantized"], integers)
    np.testing.assert_array_equal(result["w_dequantized"], dequantize_array(integers, params))


def test_names_that_do_not_exist_are_errors() -> None:
    params = QuantParams(ir.DataType.INT8, np.float32(0.1))
    with pytest.raises(ModelError, match="no value 'nothing'"):
        write(linear(), {Site("nothing"): [params]})
    with pytest.raises(ModelError, match="no node 'nothing'"):
        write(linear(), {Site("x", (("nothing", 0),)): [params]})


def test_int4_needs_opset_21() -> None:
    model = linear()
    model.opset_imports[""] = 17
    with pytest.raises(ModelError, match="opset 21"):
        write(model, {Site("w"): [QuantParams(ir.DataType.INT4, np.array(np.float32(0.1)))]})


def test_integers_that_are_quantized_once_more_are_one_chain() -> None:
    """As in a file whose weights are stored narrow and read at another scale."""
    narrow = ir.Value(name="w", const_value=ir.tensor(np.arange(12, dtype=np.uint8).reshape(4, 3), name="w"))
    scales = [
        ir.Value(name=name, const_value=ir.tensor(np.array(number, np.float32), name=name))
        for name, number in (("one", 0.5), ("two", 0.25))
    ]
    x = ir.val("x", ir.DataType.FLOAT, [2, 4])
    wide = ir.node("DequantizeLinear", [narrow, scales[0]], name="first")
    again = ir.node("QuantizeLinear", [wide.outputs[0], scales[1]], name="again")
    back = ir.node("DequantizeLinear", [again.outputs[0], scales[1]], name="back")
    product = ir.node("MatMul", [x, back.outputs[0]], name="product")
    nodes = [wide, again, back, product]
    for index, node in enumerate(nodes):
        node.outputs[0].name = f"v{index}"
        node.outputs[0].type = ir.TensorType(ir.DataType.UINT8 if node is again else ir.DataType.FLOAT)
    for value in (narrow, *scales):
        value.type = ir.TensorType(value.const_value.dtype)
        value.shape = ir.Shape(value.const_value.shape.numpy())
    graph = ir.Graph(
        [x], product.outputs, nodes=nodes, initializers=[narrow, *scales], opset_imports={"": 21}, name="g"
    )
    model = ir.Model(graph, ir_version=10)
    params = read(model)
    assert [len(chain) for chain in params.values()] == [2]
    feeds = {"x": np.ones((2, 4), np.float32)}
    before = Executor(model).run(feeds)["v3"]
    strip(model)
    assert [node.op_type for node in model.graph] == ["MatMul"]
    write(model, params)
    np.testing.assert_array_equal(Executor(model).run(feeds)["v3"], before)
