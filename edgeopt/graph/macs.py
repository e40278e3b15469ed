"""How many multiply-accumulates an operator takes, from the shapes of its operands."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from edgeopt.graph.sizes import Step, Tensor

_PER_ELEMENT = {
    "Softmax": 5,
    "LogSoftmax": 5,
    "LayerNormalization": 8,
    "InstanceNormalization": 8,
    "GroupNormalization": 8,
    "BatchNormalization": 2,
    "Sigmoid": 4,
    "HardSigmoid": 2,
    "HardSwish": 4,
    "Tanh": 5,
    "Erf": 8,
    "Gelu": 10,
    "Exp": 4,
    "Log": 4,
    "Pow": 4,
    "QuantizeLinear": 3,
    "DequantizeLinear": 2,
    "DynamicQuantizeLinear": 5,
}
"""Elementary operations for each element of the result; one where not listed."""

_COPYING = """
    Reshape Flatten Squeeze Unsqueeze Identity Transpose Concat Split Slice Gather Pad Expand Tile Shape
    Constant ConstantOfShape Size Dropout
"""
_COPIES = frozenset(_COPYING.split())


@dataclass(frozen=True, slots=True)
class Operands:
    """The two operands of a product, and whether the second is a constant weight."""

    data: Tensor | None
    weight: Tensor | None
    constant_weight: bool


def macs(step: Step, operands: Operands) -> int:
    """Counts the multiply-accumulates of one run of a node; 0 where it has none or shapes are unknown."""
    op_type = step.node.op_type
    output = step.outputs[0].elements if step.outputs else 0
    data = operands.data.shape if operands.data is not None else None
    weight = operands.weight.shape if operands.weight is not None else None
    if op_type in ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"):
        return _recurrent(step)
    if op_type == "Einsum":
        return _einsum(step)
    if "Attention" in op_type:
        return _attention(step)
    if op_type == "MatMulNBits":
        return output * step.node.attributes["K"].as_int()
    if data is None or weight is None:
        return 0
    if op_type == "ConvTranspose":
        return operands.data.elements * prod(weight[1:]) if operands.data is not None else 0
    if "Conv" in op_type and len(weight) > 2:
        return output * prod(weight[1:])
    if op_type in ("Gemm", "QGemm"):
        transposed = "transA" in step.node.attributes and step.node.attributes["transA"].as_int()
        return output * data[0 if transposed else -1]
    if "MatMul" in op_type and data:
        transposed = "transA" in step.node.attributes and step.node.attributes["transA"].as_int()
        return output * data[-2 if transposed and len(data) > 1 else -1]
    return 0


def operations(step: Step) -> int:
    """Counts the elementary operations of a node without multiply-accumulates."""
    op_type = step.node.op_type
    if op_type in _COPIES or not step.outputs:
        return 0
    output = step.outputs[0].elements
    if op_type in ("MaxPool", "AveragePool", "LpPool") and "kernel_shape" in step.node.attributes:
        return output * prod(step.node.attributes["kernel_shape"].as_ints())
    if op_type.startswith(("Reduce", "Global", "Arg")) and step.inputs and step.inputs[0] is not None:
        return step.inputs[0].elements
    return output * _PER_ELEMENT.get(op_type, 1)


def _recurrent(step: Step) -> int:
    """Input and recurrent products of every step: gates × hidden × (input + hidden), each direction."""
    inputs = step.inputs
    if len(inputs) < 3 or any(tensor is None or tensor.shape is None for tensor in inputs[:3]):
        return 0
    data, weight = inputs[0], inputs[1]
    if data is None or weight is None or data.shape is None or weight.shape is None or len(data.shape) != 3:
        return 0
    gates = {"LSTM": 4, "DynamicQuantizeLSTM": 4, "GRU": 3, "RNN": 1}[step.node.op_type]
    hidden = step.node.attributes["hidden_size"].as_int()
    return data.shape[0] * data.shape[1] * weight.shape[0] * gates * hidden * (data.shape[2] + hidden)


def _einsum(step: Step) -> int:
    """The product of the sizes of all indices that occur."""
    left = step.node.attributes["equation"].as_string().replace(" ", "").split("->")[0]
    sizes: dict[str, int] = {}
    for term, tensor in zip(left.split(","), step.inputs, strict=False):
        if tensor is None or tensor.shape is None or "." in term or len(term) != len(tensor.shape):
            return 0
        sizes.update(zip(term, tensor.shape, strict=True))
    return prod(sizes.values())


def _attention(step: Step) -> int:
    """Scores and their product with the values, and the projections where the operator holds them."""
    query = step.inputs[0] if step.inputs else None
    if query is None or query.shape is None or len(query.shape) < 3:
        return 0
    key = step.inputs[1] if len(step.inputs) > 1 else None
    if step.node.domain == "com.microsoft" and step.node.op_type in ("Attention", "QAttention"):
        batch, length, width = query.shape
        projected = key.shape[-1] if key is not None and key.shape else 3 * width
        return batch * length * (width * projected + 2 * length * (projected // 3))
    length = (
        key.shape[-2] if key is not None and key.shape is not None and len(key.shape) > 2 else query.shape[-2]
    )
    return 2 * query.elements * length
