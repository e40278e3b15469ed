"""Small random networks whose outputs depend on their inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.graph.shapes import infer_shapes


class Rows:
    """Samples held in memory."""

    labels = None

    def __init__(self, rows: Sequence[dict[str, np.ndarray]]) -> None:
        self.rows = list(rows)
        state = hashlib.sha256()
        for row in self.rows:
            for name, array in row.items():
                state.update(name.encode() + array.tobytes())
        self.digest = state.hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def feeds(self, batch: int = 1) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(self.rows), batch):
            part = self.rows[start : start + batch]
            yield {name: np.concatenate([row[name] for row in part]) for name in part[0]}


class Net:
    """Builds a graph node by node."""

    def __init__(self, shape: Sequence[int | str], seed: int = 0, dtype: ir.DataType = ir.DataType.FLOAT):
        self.random = np.random.default_rng(seed)
        self.x = ir.val("x", dtype, shape)
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def constant(self, array: np.ndarray, name: str | None = None) -> ir.Value:
        name = name or f"c{len(self.constants)}"
        tensor = ir.tensor(array, name=name)
        value = ir.val(name, tensor.dtype, array.shape, const_value=tensor)
        self.constants.append(value)
        return value

    def weight(self, *shape: int, scale: float | None = None) -> ir.Value:
        scale = scale or 1 / np.sqrt(max(1, np.prod(shape[1:])))
        return self.constant((self.random.standard_normal(shape) * scale).astype(np.float32))

    def add(self, op: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        node = ir.node(op, inputs, attributes, name=f"/{op.lower()}_{len(self.nodes)}")
        node.outputs[0].name = f"v{len(self.nodes)}"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        self.nodes.append(node)
        return node.outputs[0]

    def conv(self, value: ir.Value, size: int, out: int, kernel: int = 3, group: int = 1) -> ir.Value:
        weight = self.weight(out, size // group, kernel, kernel)
        pads = [kernel // 2] * 4
        return self.add("Conv", value, weight, self.weight(out, scale=0.1), pads=pads, group=group)

    def model(self, *outputs: ir.Value) -> ir.Model:
        graph = ir.Graph(
            [self.x], outputs, nodes=self.nodes, initializers=self.constants, opset_imports={"": 21}, name="g"
        )
        model = ir.Model(graph, ir_version=10)
        infer_shapes(model)
        return model


def residual_net(seed: int = 0) -> ir.Model:
    """Convolutions with ReLUs, a residual sum, a depthwise layer, pooling and a classifier."""
    net = Net(["n", 3, 8, 8], seed)
    first = net.add("Relu", net.conv(net.x, 3, 8))
    inner = net.conv(net.add("Relu", net.conv(first, 8, 8)), 8, 8)
    joined = net.add("Relu", net.add("Add", inner, first))
    deep = net.add("Relu", net.conv(joined, 8, 8, group=8))
    pooled = net.add("Flatten", net.add("GlobalAveragePool", net.conv(deep, 8, 16, kernel=1)))
    return net.model(net.add("Gemm", pooled, net.weight(4, 16), net.weight(4), transB=1))


def attention_net(seed: int = 0) -> ir.Model:
    """One masked attention head with a residual sum, over float embeddings [n, 6, 32]."""
    net = Net(["n", 6, 32], seed)
    query, key, value = (net.add("MatMul", net.x, net.weight(32, 32, scale=0.2)) for _ in range(3))
    scores = net.add("MatMul", query, net.add("Transpose", key, perm=[0, 2, 1]))
    mask = np.triu(np.full((6, 6), np.finfo(np.float32).min, np.float32), 1)
    masked = net.add("Add", scores, net.constant(mask))
    mixed = net.add("MatMul", net.add("Softmax", masked, axis=-1), value)
    return net.model(net.add("Add", mixed, net.x))


def rows(shape: Sequence[int], count: int = 60, seed: int = 1) -> Rows:
    """Normally distributed samples of the input ``x``."""
    random = np.random.default_rng(seed)
    return Rows([{"x": random.standard_normal((1, *shape)).astype(np.float32)} for _ in range(count)])
