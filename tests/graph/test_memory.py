import itertools

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.graph.memory import peak_activation
from edgeopt.graph.sizes import Tensor


def parse(text: str) -> ir.Model:
    return ir.from_onnx_text(text)


def test_chain_holds_two_values_at_a_time() -> None:
    model = parse("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[1, 8] x) => (float[1, 8] y) { a = Relu(x)  b = Sigmoid(a)  y = Tanh(b) }
    """)
    peak = peak_activation(model)
    assert (peak.bytes, peak.given, peak.optimal) == (2 * 8 * 4, 2 * 8 * 4, True)


def test_the_order_that_frees_a_large_value_first_is_found() -> None:
    # Listed: both large values are made before either is reduced.
    model = parse("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[1, 4] x, int64[2] shape) => (float[1, 1] y)
        <int64[2] reps = {1, 64}, int64[1] axis = {1}>
        {
            a = Tile(x, reps)  b = Tile(x, reps)
            c = ReduceSum(a, axis)  d = ReduceSum(b, axis)
            y = Add(c, d)
        }
    """)
    peak = peak_activation(model)
    large, small, inputs = 256 * 4, 4, 4 * 4 + 2 * 8
    assert peak.given == inputs + 2 * large
    assert peak.bytes == inputs + large + small
    assert peak.optimal


def test_symbolic_batch_counts_as_one_and_can_be_bound() -> None:
    model = parse("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[batch, 8] x) => (float[batch, 8] y) { y = Relu(x) }
    """)
    assert peak_activation(model).bytes == 64
    assert peak_activation(model, {"x": [3, 8]}).bytes == 192


def test_values_between_integer_kernels_count_at_one_byte() -> None:
    model = parse("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[1, 8] x) => (float[1, 8] y)
        <float s = {0.1}, uint8 z = {0}>
        {
            xq = QuantizeLinear(x, s, z)  xf = DequantizeLinear(xq, s, z)
            a = Relu(xf)
            aq = QuantizeLinear(a, s, z)  af = DequantizeLinear(aq, s, z)
            b = Relu(af)
            bq = QuantizeLinear(b, s, z)  y = DequantizeLinear(bq, s, z)
        }
    """)
    # The float input beside its quantized form, or the last quantized value beside the float output.
    assert peak_activation(model).bytes == 8 * 4 + 8


def test_branches_count_their_own_peak() -> None:
    model = parse("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[1, 8] x, bool c) => (float[1, 8] y)
        {
            y = If (c) <
                then_branch = then () => (float[1, 8] t) { a = Relu(x)  t = Neg(a) },
                else_branch = other () => (float[1, 8] e) { e = Neg(x) }
            >
        }
    """)
    assert peak_activation(model).bytes == 32 + 1 + 32 + 64


@st.composite
def dags(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    count = draw(st.integers(2, 7))
    reads = [
        sorted(draw(st.sets(st.integers(0, node), min_size=1, max_size=min(3, node + 1))))
        for node in range(count)
    ]
    sizes = draw(st.lists(st.integers(1, 9), min_size=count + 1, max_size=count + 1))
    return reads, sizes


@settings(max_examples=60, deadline=None)
@given(dags())
def test_no_order_is_better_than_the_one_found(dag: tuple[list[list[int]], list[int]]) -> None:
    reads, sizes = dag
    peak = peak_activation(_model(reads, sizes))
    assert peak.optimal
    orders = (
        order
        for order in itertools.permutations(range(len(reads)))
        if all(r == 0 or order.index(r - 1) < order.index(n) for n in range(len(reads)) for r in reads[n])
    )
    assert peak.bytes == min(_peak(order, reads, sizes) for order in orders)
    assert peak.bytes == _peak([int(name) for name in peak.order], reads, sizes)


def _model(reads: list[list[int]], sizes: list[int]) -> ir.Model:
    """Makes a graph whose value 0 is the input and value n + 1 is made by node n; unread ones are outputs."""
    values = [ir.Value(name="v0", type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape([sizes[0]]))]
    nodes = []
    for number, sources in enumerate(reads):
        node = ir.node("Opaque", [values[source] for source in sources], domain="test", name=str(number))
        output = node.outputs[0]
        output.name = f"v{number + 1}"
        output.type, output.shape = ir.TensorType(ir.DataType.UINT8), ir.Shape([sizes[number + 1]])
        values.append(output)
        nodes.append(node)
    read = {source for sources in reads for source in sources}
    outputs = [value for index, value in enumerate(values) if index not in read and index]
    graph = ir.Graph([values[0]], outputs, nodes=nodes, opset_imports={"": 21, "test": 1}, name="g")
    return ir.Model(graph, ir_version=10)


def _peak(order: object, reads: list[list[int]], sizes: list[int]) -> int:
    """The definition, taken literally: at every step, the sizes of all values that exist."""
    order = list(order)  # type: ignore[call-overload]
    peak = 0
    made = {0}
    for position, node in enumerate(order):
        made.add(node + 1)
        later = {value for other in order[position:] for value in reads[other]}
        final = {value for value in range(1, len(sizes)) if not any(value in r for r in reads)}
        alive = {value for value in made if value in later or value in final or value == node + 1}
        peak = max(peak, sum(sizes[value] for value in alive))
    return peak


@pytest.mark.parametrize("name", ["yolo_fastestv2_coco", "dtln_model_2", "agnews_text_transformer"])
def test_on_real_models_the_optimum_is_proved(zoo: object, name: str) -> None:
    from pathlib import Path

    model = ir.load(Path(str(zoo)) / "models" / f"{name}.onnx")
    peak = peak_activation(model)
    assert peak.optimal
    assert 0 < peak.bytes <= peak.given


def test_large_constants_are_not_activations() -> None:
    weight = ir.tensor(np.zeros((8, 1000), np.float32), name="w")
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 8]))
    w = ir.Value(name="w", const_value=weight)
    node = ir.node("MatMul", [x, w])
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 21}, name="g")
    assert peak_activation(ir.Model(graph, ir_version=10)).bytes == 8 * 4 + 1000 * 4


def test_an_activation_inside_an_integer_kernel_takes_no_memory() -> None:
    model = parse("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (uint8[1, 8, 4, 4] xq) => (uint8[1, 8, 4, 4] yq)
        <float s = {0.1}, uint8 z = {0}, int8[8, 8, 1, 1] w = {
            1,1,1,1,1,1,1,1, 1,1,1,1,1,1,1,1, 1,1,1,1,1,1,1,1, 1,1,1,1,1,1,1,1,
            1,1,1,1,1,1,1,1, 1,1,1,1,1,1,1,1, 1,1,1,1,1,1,1,1, 1,1,1,1,1,1,1,1}, int8 wz = {0}>
        {
            xf = DequantizeLinear(xq, s, z)  wf = DequantizeLinear(w, s, wz)
            c = Conv(xf, wf)  r = Relu(c)  yq = QuantizeLinear(r, s, z)
        }
    """)
    assert peak_activation(model).bytes == 2 * 8 * 16


def test_strings_take_the_room_of_their_objects() -> None:
    """Seed 23 of the fuzzer: strings have no width of their own."""
    assert Tensor(ir.DataType.STRING, (3,)).bytes == 3 * 32


def test_a_window_larger_than_its_input_leaves_sizes_open() -> None:
    """Seed 6151 of the fuzzer: ONNX's inference of Slice aborts the process on a size below 1."""
    model = parse("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[1, 1, h, w] x) => (float[1, 1, a, b] y)
        <int64[1] start = {0}, int64[1] end = {2}, int64[1] axis = {3}>
        { p = MaxPool <kernel_shape = [3, 3]> (x)  y = Slice(p, start, end, axis) }
    """)
    assert peak_activation(model, {"x": [1, 1, 1, 1]}).bytes >= 4
