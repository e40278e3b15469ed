"""Random valid graphs, each from a seed, for the fuzzer."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.random_graphs.blocks import branch, compound, loop
from benchmarks.random_graphs.elements import (
    binary,
    cast,
    choose,
    clip,
    constants,
    convolve,
    product,
    quantize,
    reduce,
    unary,
)
from benchmarks.random_graphs.graph import FLOAT, INT64, Graph, Value
from benchmarks.random_graphs.moves import cut, join, reshape, transpose

STEPS = (
    *(unary, unary, clip, binary, binary, binary, cast, reshape, reshape, transpose, transpose, cut, cut),
    *(join, join, reduce, product, product, convolve, convolve, convolve, compound, choose, constants),
    *(quantize, branch, loop),
)


def grow(seed: int) -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    """Grows the graph of a seed; returns it with the inputs of a few calls."""
    random = np.random.default_rng(seed)
    g = Graph(random, int(random.choice([11, 13, 17, 18, 20, 21])))
    shapes = [(1, 4, 6, 6), (2, 3, 8), (2, 8), (2, 1, 4), (1, 5, 4), (2, 4, 5, 3)]
    inputs: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    for number in range(int(random.integers(1, 3))):
        dtype = INT64 if number and random.random() < 0.2 else FLOAT
        inputs[f"x{number}"] = (shapes[int(random.integers(len(shapes)))], dtype)
    g.pool += [Value(name, shape, dtype, True) for name, (shape, dtype) in inputs.items()]
    for _ in range(int(random.integers(1, 41))):
        g.pick(STEPS)(g)
        g.pool = [value for value in g.pool if np.prod(value.shape) <= 20000]
    given = set(inputs)
    read = {name for node in g.nodes for name in node.input}
    ends = [v for v in g.pool if v.name not in read and v.name not in given]
    some = [v for v in g.pool if v.name not in given and random.random() < 0.05]
    outputs = list({v.name: v for v in [*ends[-4:], *some]}.values())
    symbolic = random.random() < 0.4
    info = helper.make_tensor_value_info
    declared = [
        info(name, helper.np_dtype_to_tensor_dtype(dtype), [*(["n"] if symbolic else shape[:1]), *shape[1:]])
        for name, (shape, dtype) in inputs.items()
    ]
    graph = helper.make_graph(
        g.nodes,
        f"fuzz{seed}",
        declared,
        [info(v.name, helper.np_dtype_to_tensor_dtype(v.dtype), None) for v in outputs],
        [numpy_helper.from_array(array, name) for name, array in g.weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", g.opset)], ir_version=8)
    calls = []
    for batch in (None, 3) if symbolic else (None,):
        sizes = {n: shape if batch is None else (batch, *shape[1:]) for n, (shape, _) in inputs.items()}
        calls.append(
            {
                name: random.standard_normal(sizes[name]).astype(dtype)
                if dtype == FLOAT
                else random.integers(0, 5, sizes[name])
                for name, (_, dtype) in inputs.items()
            }
        )
    return model, calls
