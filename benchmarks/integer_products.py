"""How far an ONNX file with QuantizeLinear and DequantizeLinear computes in integers.

Two regimes of 8 bits have to be told apart before fidelities may be compared: *throughout*, where what flows
between the products is quantized too, and *products*, where each product reads 8 bits and what follows stays
float. The first is what integer-only hardware needs, the second is easier.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import onnx

PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""Operators counted as products."""

MOVES = (
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Identity",
    "Slice",
    "Split",
    "MaxPool",
    "Gather",
)
"""Operators that keep the numbers as they are."""

POINTWISE = (
    "BatchNormalization",
    "Clip",
    "Elu",
    "Erf",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "PRelu",
    "Relu",
    "Sigmoid",
    "Tanh",
)
"""Operators that a product's kernel can take in, besides the addition of a bias and a scaling: number by
number, or channel by channel, before anything is stored."""

EIGHT = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)

THROUGHOUT = 0.75
"""From this share of 8-bit outputs on, a file counts as 8 bits throughout. Peers leave a few out: NNCF the
scores of attention, so 10 of 12 in a text transformer. Of the products alone 53 % are left in a ResNet, 68 %
in YOLO-FastestV2; in a chain of convolutions the regimes are the same."""


@dataclass(frozen=True, slots=True)
class Regime:
    """What of a file is computed in integers.

    Attributes:
        products: All products.
        integer: Those that read 8 bits on both sides.
        outputs: Products whose output flows on within the model.
        stored: Those whose output is quantized to 8 bits before anything but a bias, a scaling and an
            activation function reads it.
    """

    products: int
    integer: int
    outputs: int
    stored: int

    @property
    def name(self) -> str:
        """``throughout`` or ``products``."""
        return "throughout" if self.stored >= THROUGHOUT * self.outputs else "products"


def regime(path: Path) -> Regime:
    """Counts the products of a file.

    Args:
        path: An ONNX file.
    """
    graph = onnx.load(str(path)).graph
    producers = {output: node for node in graph.node for output in node.output}
    consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in set(node.input):
            consumers[name].append(node)
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            types[node.output[0]] = next(
                (one.t.data_type for one in node.attribute if one.name == "value"), onnx.TensorProto.FLOAT
            )
    outputs = {value.name for value in graph.output}

    def read_in_8_bits(name: str) -> bool:
        node = producers.get(name)
        while node is not None and node.op_type in MOVES:
            node = producers.get(node.input[0])
        if node is None or node.op_type != "DequantizeLinear":
            return False
        return eight_bits(node)

    def eight_bits(node: onnx.NodeProto) -> bool:
        """Whether a QuantizeLinear or DequantizeLinear is one of 8 bits."""
        if node.op_type == "DequantizeLinear" and node.input[0] in types:
            return types[node.input[0]] in EIGHT
        if len(node.input) > 2 and node.input[2]:
            return types.get(node.input[2]) in EIGHT
        if node.op_type == "QuantizeLinear":  # without a zero point: uint8
            return True
        source = producers.get(node.input[0])
        return source is not None and source.op_type == "QuantizeLinear" and eight_bits(source)

    def stored_in_8_bits(name: str) -> bool | None:
        """``None`` where nothing but the graph's output reads it."""
        readers = consumers[name]
        if name in outputs or not readers:
            return None
        found = []
        for node in readers:
            if node.op_type == "QuantizeLinear":
                found.append(None if last(node.output[0]) else eight_bits(node))
            elif node.op_type in (*MOVES, *POINTWISE) or by_number(node):
                found.append(stored_in_8_bits(node.output[0]))
            else:
                found.append(False)
        known = [one for one in found if one is not None]
        return all(known) if known else None

    def last(name: str) -> bool:
        """Whether a quantized value is only given out as the model's output."""
        return all(
            reader.op_type == "DequantizeLinear" and reader.output[0] in outputs for reader in consumers[name]
        )

    def constant(name: str) -> bool:
        if name in types:
            return True
        node = producers.get(name)
        return node is not None and node.op_type in (*MOVES, "DequantizeLinear") and constant(node.input[0])

    def by_number(node: onnx.NodeProto) -> bool:
        if node.op_type not in ("Add", "Mul", "Div"):
            return False
        if any(constant(name) for name in node.input):
            return True
        return node.op_type == "Mul" and len({origin(name) for name in node.input}) == 1  # x * gate(x)

    def origin(name: str) -> str:
        """What a value is a function of, number by number."""
        node = producers.get(name)
        if node is None:
            return name
        if node.op_type in POINTWISE:
            return origin(node.input[0])
        if node.op_type in ("Add", "Mul", "Div"):
            live = [one for one in node.input if not constant(one)]
            return origin(live[0]) if len(live) == 1 else name
        return name

    products = [node for node in graph.node if node.op_type in PRODUCTS]
    flows = [flow for node in products if (flow := stored_in_8_bits(node.output[0])) is not None]
    return Regime(
        products=len(products),
        integer=sum(all(read_in_8_bits(name) for name in node.input[:2]) for node in products),
        outputs=len(flows),
        stored=sum(flows),
    )
