"""Random valid graphs, each from a seed, for the fuzzer."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.random_graphs.blocks import attend, branch, call, compound, gate, loop, normalize, scan, turn
from benchmarks.random_graphs.elements import (
    binary,
    cast,
    choose,
    clip,
    constants,
    convolve,
    integers,
    product,
    quantize,
    reduce,
    round_trip,
    unary,
)
from benchmarks.random_graphs.graph import FLOAT, INT64, Graph, Value
from benchmarks.random_graphs.moves import cut, join, reshape, transpose

STEPS = (
    *(unary, unary, clip, binary, binary, binary, cast, reshape, reshape, transpose, transpose, cut, cut),
    *(join, join, reduce, product, product, convolve, convolve, convolve, compound, compound, choose),
    *(constants, quantize, branch, loop, scan, round_trip, integers, attend, turn, normalize, call),
)
OPSETS = (11, 13, 17, 18, 20, 21, 23, 24)
SHAPES = ((1, 4, 6, 6), (2, 3, 8), (2, 8), (2, 1, 4), (1, 5, 4), (2, 4, 5, 3))
DTYPES = (*("float16", "float64", "bool", "int8", "int16", "int32"), *("uint8", "uint16", "uint32", "uint64"))

Calls = list[dict[str, np.ndarray]]


def grow(seed: int) -> tuple[onnx.ModelProto, Calls]:
    """Grows the graph of a seed; returns it with the inputs of a few calls.

    Of the sizes of inputs none, the first, or any may be symbolic or unnamed. Where only the first is, the
    second call has another; onnxruntime may refuse it, since some steps write sizes down.
    """
    random = np.random.default_rng(seed)
    g = Graph(random, int(random.choice(OPSETS)))
    inputs: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    for number in range(int(random.integers(1, 4))):
        dtype = FLOAT
        if number and random.random() < 0.4:
            dtype = INT64 if random.random() < 0.3 else np.dtype(g.pick(DTYPES))
        inputs[f"x{number}"] = (SHAPES[int(random.integers(len(SHAPES)))], dtype)
    g.pool += [Value(name, shape, dtype, True) for name, (shape, dtype) in inputs.items()]
    for _ in range(int(random.integers(1, 41))):
        g.pick(STEPS)(g)
        g.pool = [value for value in g.pool if np.prod(value.shape) <= 20000]
    given = set(inputs)
    read = {name for node in g.nodes for name in node.input}
    ends = [v for v in g.pool if v.name not in read and v.name not in given]
    some = [v for v in g.pool if v.name not in given and random.random() < 0.05]
    outputs = list({v.name: v for v in [*ends[-4:], *some]}.values())
    dynamic = str(random.choice(["none", "none", "first", "first", "any"]))
    info = helper.make_tensor_value_info
    declared = [
        info(name, _type(dtype), _sizes(g, name, shape, dynamic)) for name, (shape, dtype) in inputs.items()
    ]
    nodes, weights = _with_constant_nodes(g)
    graph = helper.make_graph(
        nodes, f"fuzz{seed}", declared, [info(v.name, _type(v.dtype), None) for v in outputs], weights
    )
    imports = [helper.make_opsetid("", g.opset), *([helper.make_opsetid("own", 1)] if g.calls else [])]
    functions = [gate(g.opset)] if g.calls else []
    version = 8 if g.opset < 20 else 11
    model = helper.make_model(graph, opset_imports=imports, ir_version=version, functions=functions)
    return model, [_call(random, inputs, batch) for batch in ((None, 3) if dynamic == "first" else (None,))]


def _type(dtype: np.dtype) -> int:
    return int(helper.np_dtype_to_tensor_dtype(dtype))


def _sizes(g: Graph, name: str, shape: tuple[int, ...], dynamic: str) -> list[int | str | None]:
    if dynamic == "first":
        return ["n", *shape[1:]]
    if dynamic == "none":
        return list(shape)
    return [g.pick([size, f"{name}.{axis}", None]) for axis, size in enumerate(shape)]


def _with_constant_nodes(g: Graph) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nodes and initializers; some constants stand in nodes, as older exporters write them."""
    inside, weights = [], []
    for name, array in g.weights.items():
        tensor = numpy_helper.from_array(array, name)
        if g.chance(0.1):
            inside.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            weights.append(tensor)
    return [*inside, *g.nodes], weights


def _call(
    random: np.random.Generator, inputs: dict[str, tuple[tuple[int, ...], np.dtype]], batch: int | None
) -> dict[str, np.ndarray]:
    feeds = {}
    for name, (shape, dtype) in inputs.items():
        sizes = shape if batch is None else (batch, *shape[1:])
        drawn = random.standard_normal(sizes) if dtype.kind == "f" else random.integers(0, 5, sizes)
        feeds[name] = drawn.astype(dtype)
    return feeds
