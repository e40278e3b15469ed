"""Our statement of the int8 kernels: bit for bit LiteRT's reference ones, within a step of its fast ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tflite_models import model, node, platform

from edgeopt.targets.tflite import Tflite, exact, xnnpack
from edgeopt.targets.tflite.flatbuffer import read, write
from edgeopt.targets.tflite.lower import lower
from edgeopt.targets.tflite.program import Program
from edgeopt.targets.tflite.reference import KERNELS, execute

interpreter = pytest.importorskip(
    "ai_edge_litert.interpreter", reason="needs the extra: pip install 'edgeopt[tflite]'"
)
EXAMPLES = 8


class Case:
    """A quantized one-operator model under construction, its parameters drawn at random."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.inputs: dict[str, list[int | str]] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def scale(self, low: float = 0.002, high: float = 0.2) -> float:
        return float(np.float32(np.exp(self.random.uniform(np.log(low), np.log(high)))))

    def pair(self, value: str, scale: float, zero: int) -> str:
        s, z, q, d = (self.name() for _ in range(4))
        self.constants[s], self.constants[z] = np.array(scale, np.float32), np.array(zero, np.int8)
        self.nodes += [
            node("QuantizeLinear", f"{value},{s},{z}", q),
            node("DequantizeLinear", f"{q},{s},{z}", d),
        ]
        return d

    def input(self, shape: list[int], scale: float | None = None, zero: int | None = None) -> str:
        name = self.name()
        self.inputs[name] = list(shape)
        given_zero = int(self.random.integers(-128, 128)) if zero is None else zero
        return self.pair(name, self.scale() if scale is None else scale, given_zero)

    def weight(self, shape: tuple[int, ...], axis: int | None) -> str:
        q, s, z, d = (self.name() for _ in range(4))
        count = () if axis is None else (shape[axis],)
        self.constants[q] = self.random.integers(-127, 128, shape).astype(np.int8)
        self.constants[s] = np.exp(self.random.uniform(-7, -3, count)).astype(np.float32)
        self.constants[z] = np.zeros(count, np.int8)
        self.nodes.append(
            node("DequantizeLinear", f"{q},{s},{z}", d, **({} if axis is None else {"axis": axis}))
        )
        return d

    def constant(self, array: np.ndarray) -> str:
        name = self.name()
        self.constants[name] = array
        return name

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = self.name()
        self.nodes.append(node(op_type, ",".join(inputs), name, **attributes))
        return name

    def program(self, output: str) -> Program:
        built: ir.Model = model(self.nodes, self.inputs, [output], self.constants)
        prepared, _ = Tflite(io="int8").prepare(built, platform())
        lowered = lower(prepared, "int8")
        assert not lowered.problems
        return lowered.program


def conv(case: Case, group: int, activation: str | None, **attributes: Any) -> str:
    x = case.input([1, 6, 7, 8])
    w = case.weight((12, 6 // group, 3, 3), 0)
    b = case.constant((case.random.standard_normal(12)).astype(np.float32))
    y = case.op("Conv", x, w, b, group=group, **attributes)
    if activation:
        y = case.op(activation, y)
    return case.pair(y, case.scale(0.02, 0.5), int(case.random.integers(-128, 128)))


def unary(op_type: str, scale: float | None = None, zero: int | None = None, **attributes: Any) -> Any:
    def build(case: Case) -> str:
        y = case.op(op_type, case.input([2, 3, 4, 5]), **attributes)
        return case.pair(
            y,
            case.scale() if scale is None else scale,
            int(case.random.integers(-128, 128)) if zero is None else zero,
        )

    return build


def binary(op_type: str, shapes: tuple[list[int], list[int]], activation: str | None = None) -> Any:
    def build(case: Case) -> str:
        y = case.op(op_type, case.input(shapes[0]), case.input(shapes[1]))
        if activation:
            y = case.op(activation, y)
        return case.pair(y, case.scale(0.005, 0.4), int(case.random.integers(-128, 128)))

    return build


def same_scale(op_type: str, *constants: np.ndarray, **attributes: Any) -> Any:
    def build(case: Case) -> str:
        scale, zero = case.scale(), int(case.random.integers(-128, 128))
        extra = [case.constant(array) for array in constants]
        return case.pair(
            case.op(op_type, case.input([1, 3, 8, 6], scale, zero), *extra, **attributes), scale, zero
        )

    return build


def product(case: Case) -> str:
    y = case.op("MatMul", case.input([2, 3, 8]), case.input([2, 8, 5]))
    return case.pair(y, case.scale(0.02, 0.5), int(case.random.integers(-128, 128)))


def transposed(case: Case) -> str:
    x, w = case.input([1, 3, 4, 5]), case.weight((3, 4, 3, 3), 1)
    y = case.op("ConvTranspose", x, w, strides=[2, 2], pads=[1, 1, 0, 0])
    return case.pair(y, case.scale(0.02, 0.5), int(case.random.integers(-128, 128)))


def dense(axis: int | None) -> Any:
    def build(case: Case) -> str:
        x, w = case.input([3, 20]), case.weight((7, 20), axis)
        y = case.op("Gemm", x, w, case.constant(case.random.standard_normal(7).astype(np.float32)), transB=1)
        return case.pair(y, case.scale(0.02, 0.5), int(case.random.integers(-128, 128)))

    return build


def joined(case: Case) -> str:
    y = case.op("Concat", case.input([1, 3, 4, 5]), case.input([1, 2, 4, 5]), axis=1)
    return case.pair(y, case.scale(), int(case.random.integers(-128, 128)))


def mean(case: Case) -> str:
    y = case.op("ReduceMean", case.input([1, 3, 8, 6]), case.constant(np.array([2, 3], np.int64)), keepdims=0)
    return case.pair(y, case.scale(0.001, 0.1), int(case.random.integers(-128, 128)))


def slope(case: Case) -> str:
    x = case.input([1, 4, 5, 6])
    y = case.op("PRelu", x, case.constant(case.random.standard_normal((4, 1, 1)).astype(np.float32)))
    return case.pair(y, case.scale(), int(case.random.integers(-128, 128)))


CASES: dict[str, Any] = {
    "conv": lambda c: conv(c, 1, None, pads=[1, 1, 1, 1]),
    "conv-strided-relu": lambda c: conv(c, 1, "Relu", strides=[2, 2], pads=[0, 0, 1, 1]),
    "conv-dilated": lambda c: conv(c, 1, None, dilations=[2, 2]),
    "conv-grouped": lambda c: conv(c, 2, None, pads=[1, 1, 1, 1]),
    "conv-depthwise": lambda c: conv(c, 6, "Relu", pads=[1, 1, 1, 1]),
    "transposed-conv": transposed,
    "dense": dense(None),
    "dense-per-channel": dense(0),
    "batch-matmul": product,
    "add": binary("Add", ([1, 3, 4, 5], [1, 3, 4, 5])),
    "add-relu": binary("Add", ([1, 3, 4, 5], [1, 3, 4, 5]), "Relu"),
    "add-broadcast": binary("Add", ([1, 3, 4, 5], [1, 3, 1, 1])),
    "sub": binary("Sub", ([1, 3, 4, 5], [1, 3, 4, 5])),
    "mul": binary("Mul", ([1, 3, 4, 5], [1, 3, 4, 5])),
    "mul-broadcast": binary("Mul", ([1, 3, 4, 5], [1, 3, 1, 1])),
    "relu": unary("Relu"),
    "leaky-relu": unary("LeakyRelu", alpha=0.1),
    "prelu": slope,
    "hard-swish": unary("HardSwish"),
    "sigmoid": unary("Sigmoid", 1 / 256, -128),
    "tanh": unary("Tanh", 1 / 128, 0),
    "softmax": unary("Softmax", 1 / 256, -128),
    "global-average": unary("GlobalAveragePool"),
    "mean": mean,
    "average-pool": same_scale("AveragePool", kernel_shape=[3, 3], strides=[2, 2]),
    "average-pool-same": same_scale("AveragePool", kernel_shape=[3, 3], auto_pad="SAME_UPPER"),
    "max-pool": same_scale("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "pad": same_scale("Pad", np.array([0, 0, 1, 2, 0, 0, 3, 1], np.int64)),
    "slice": same_scale("Slice", *(np.array(i, np.int64) for i in ([1, 0], [7, 6], [2, 3], [2, 1]))),
    "resize-linear": same_scale(
        "Resize", np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32), mode="linear"
    ),
    "resize-aligned": same_scale(
        "Resize",
        np.zeros(0, np.float32),
        np.array([1, 1, 2, 3], np.float32),
        mode="linear",
        coordinate_transformation_mode="align_corners",
    ),
    "resize-nearest": same_scale(
        "Resize",
        np.zeros(0, np.float32),
        np.array([1, 1, 2, 2], np.float32),
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    ),
    "concat": joined,
    "clip": same_scale("Clip", np.array(-0.4, np.float32), np.array(0.9, np.float32)),
}


def run_file(program: Program, feeds: dict[str, np.ndarray], resolver: Any) -> np.ndarray:
    made = interpreter.Interpreter(model_content=write(program), experimental_op_resolver_type=resolver)
    made.allocate_tensors()
    for detail in made.get_input_details():
        made.set_tensor(detail["index"], feeds[detail["name"]])
    made.invoke()
    return np.array(made.get_tensor(made.get_output_details()[0]["index"]))


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_one_operator(name, seed):
    case = Case(seed)
    program = case.program(CASES[name](case))
    feeds = {t.name: case.random.integers(-128, 128, t.shape).astype(np.int8) for t in program.inputs}
    expected = execute(program, feeds)[program.outputs[0].name]
    kinds = interpreter.OpResolverType
    assert np.array_equal(expected, run_file(program, feeds, kinds.BUILTIN_REF))
    fast = run_file(program, feeds, kinds.AUTO)
    assert np.abs(expected.astype(int) - fast.astype(int)).max() <= 1
    stated = execute(program, feeds, xnnpack.KERNELS)[program.outputs[0].name]
    assert np.array_equal(stated, fast)
    true = execute(program, feeds, exact.KERNELS)[program.outputs[0].name]
    assert np.abs(expected.astype(int) - true.astype(int)).max() <= 1


def test_the_file_read_back_computes_the_same():
    case = Case(5)
    program = case.program(conv(case, 1, "Relu", pads=[1, 1, 1, 1]))
    feeds = {t.name: case.random.integers(-128, 128, t.shape).astype(np.int8) for t in program.inputs}
    again = read(write(program))
    assert np.array_equal(
        execute(program, feeds)[program.outputs[0].name], execute(again, feeds)[again.outputs[0].name]
    )


def test_every_operator_that_runs_in_integers_is_stated():
    folder = Path(__import__("edgeopt").__file__).parent / "targets" / "tflite" / "operators"
    written = set().union(
        *(re.findall(r'"([A-Z][A-Z0-9_]{2,})"', p.read_text()) for p in folder.glob("*.py"))
    )
    assert set(KERNELS) - {"MEAN", "RELU_N1_TO_1", "RESHAPE"} <= written | {
        "PAD",
        "PADV2",
        "SLICE",
        "TRANSPOSE",
    }
