"""A model of as many GB as wanted: products with distinct pseudo-random weights in external data."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

WIDTH = 4096
"""Rows and columns of each weight: 64 MiB in float32."""


def layers_of(gigabytes: float) -> int:
    """Returns how many weights make a model of so many GB."""
    return max(1, round(gigabytes * 1e9 / (4 * WIDTH * WIDTH)))


def write(folder: Path, layers: int) -> Path:
    """Writes ``large.onnx`` and ``large.data``: products, ReLUs and nodes that do nothing."""
    random = np.random.default_rng(0)
    nodes, weights, offset, last = [], [], 0, "x"
    with (folder / "large.data").open("wb") as data:
        for layer in range(layers):
            numbers = random.standard_normal((WIDTH, WIDTH), dtype=np.float32) / 64
            weight = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
            weight.data_location = TensorProto.EXTERNAL
            place = {"location": "large.data", "offset": offset, "length": numbers.nbytes}
            for key, value in place.items():
                weight.external_data.add(key=key, value=str(value))
            numbers.tofile(data)
            offset += numbers.nbytes
            weights.append(weight)
            nodes.append(helper.make_node("Identity", [last], [f"i{layer}"]))
            nodes.append(helper.make_node("MatMul", [f"i{layer}", f"w{layer}"], [f"m{layer}"]))
            nodes.append(helper.make_node("Relu", [f"m{layer}"], [f"r{layer}"]))  # or products would merge
            last = f"r{layer}"
        data.flush()
        os.fsync(data.fileno())
    nodes.append(helper.make_node("Sigmoid", [last], ["y"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])]
    graph = helper.make_graph(nodes, "large", inputs, outputs, weights)
    imports = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), folder / "large.onnx")
    return folder / "large.onnx"
