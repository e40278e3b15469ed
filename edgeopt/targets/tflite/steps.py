"""From a prepared ONNX graph to the steps of a TFLite program.

A step is one TFLite operator to be (seldom a few): an ONNX node with the activation that runs in the
same kernel, and, where all that it reads and makes is quantized, with its QuantizeLinear and
DequantizeLinear taken in, so that it runs in integers. What is quantized around a node that cannot run
in integers stays as steps of its own, so no number changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.graph.layout import shape_of


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A value known now, perhaps behind a DequantizeLinear.

    Attributes:
        data: The numbers; of an integer type where ``scale`` is given.
        scale: float32, () or [channels].
        zero_point: Integers, shaped as ``scale``.
        axis: The axis of the channels.
    """

    data: np.ndarray
    scale: np.ndarray | None = None
    zero_point: np.ndarray | None = None
    axis: int = 0

    def real(self) -> np.ndarray:
        """The numbers that it stands for, dequantized."""
        if self.scale is None or self.zero_point is None:
            return self.data
        shape = [1] * self.data.ndim
        if self.scale.ndim:
            shape[self.axis] = -1
        scale, zero = self.scale.reshape(shape), self.zero_point.reshape(shape)
        return np.asarray((self.data.astype(np.int64) - zero).astype(np.float32) * scale)


@dataclass(frozen=True, slots=True, eq=False)
class Parameters:
    """The quantization of a value at run time: one scale and zero point."""

    dtype: str
    scale: float
    zero_point: int

    def same(self, other: Parameters | None) -> bool:
        """Whether another value is quantized alike."""
        return other is not None and (self.dtype, self.scale, self.zero_point) == (
            other.dtype,
            other.scale,
            other.zero_point,
        )


def constant(value: ir.Value | None) -> Constant | None:
    """The constant that a value is, if it is one: an initializer, a Constant, or one of these cast from
    float16 or dequantized."""
    if value is None:
        return None
    if (tensor := plain(value)) is not None:
        return Constant(tensor)
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "Cast" and (half := plain(node.inputs[0])) is not None:
        return Constant(half) if half.dtype == np.float16 else None
    if node.op_type != "DequantizeLinear":
        return None
    data, scale = plain(node.inputs[0]), plain(node.inputs[1])
    if data is None or scale is None or "block_size" in node.attributes:
        return None
    zero = plain(node.inputs[2]) if len(node.inputs) > 2 else None
    axis = attribute(node, "axis", 1) % max(data.ndim, 1)
    if zero is None:
        zero = np.zeros(scale.shape, np.int64)
    return Constant(data, scale.astype(np.float32), zero.astype(np.int64), axis if scale.ndim else 0)


def plain(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer or of a Constant node."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def parameters(value: ir.Value | None) -> Parameters | None:
    """The quantization of a value that QuantizeLinear makes per tensor."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "QuantizeLinear" or "block_size" in node.attributes:
        return None
    scale = plain(node.inputs[1])
    zero = plain(node.inputs[2]) if len(node.inputs) > 2 else np.zeros((), np.uint8)
    if scale is None or zero is None or scale.size != 1:
        return None
    return Parameters(zero.dtype.name, float(scale.reshape(())), int(zero.reshape(())))


def quantized(value: ir.Value | None) -> ir.Value | None:
    """The integer value behind a value that DequantizeLinear makes from one computed at run time."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    return node.inputs[0] if parameters(node.inputs[0]) is not None else None


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """An attribute's plain value, or the default."""
    found = node.attributes.get(name)
    if found is None:
        return default
    value = found.value
    return list(value) if isinstance(value, (tuple, list)) else value


@dataclass(slots=True, eq=False)
class Step:
    """One operator of the program to be.

    Attributes:
        node: The ONNX node.
        inputs: Its inputs; the quantized values themselves where it runs in integers.
        outputs: Its outputs, likewise; those of the activation where one is fused.
        integer: It runs in integers.
        activation: The fused activation: ``RELU``, ``RELU6``, ``RELU_N1_TO_1`` or empty.
    """

    node: ir.Node
    inputs: list[ir.Value | None]
    outputs: list[ir.Value]
    integer: bool = False
    activation: str = ""

    @property
    def op_type(self) -> str:
        """The ONNX operator."""
        return self.node.op_type

    @property
    def name(self) -> str:
        """The node's name, or failing that its first output's."""
        return self.node.name or (self.node.outputs[0].name or "")

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's plain value, or the default."""
        return attribute(self.node, name, default)

    def input(self, index: int) -> ir.Value | None:
        """An input, ``None`` where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def constant(self, index: int) -> Constant | None:
        """An input's constant, if it is one."""
        return constant(self.input(index))

    def array(self, index: int, name: str = "") -> np.ndarray | None:
        """A parameter that is a constant input or, in older opsets, an attribute."""
        if (found := self.constant(index)) is not None:
            return found.real()
        given = self.attribute(name) if name else None
        return None if given is None else np.array(given)

    def ints(self, index: int, name: str = "") -> list[int] | None:
        """As ``array``, for integers."""
        found = self.array(index, name)
        return None if found is None else [int(item) for item in found.reshape(-1)]

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """An input's shape."""
        value = self.input(index)
        return () if value is None else shape_of(value)

    def result(self, index: int = 0) -> tuple[int, ...]:
        """An output's shape."""
        return shape_of(self.outputs[index])


def only_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value, if there is just one and it is no graph output."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def clip_bounds(node: ir.Node) -> tuple[float, float]:
    """The bounds of a Clip, infinite where it has none, not a number where they are not known."""
    bounds = [float("-inf"), float("inf")]
    for index, name in ((1, "min"), (2, "max")):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None:
            known = constant(value)
            bounds[index - 1] = float("nan") if known is None else float(known.real().reshape(()))
        elif name in node.attributes:
            bounds[index - 1] = float(node.attributes[name].value)
    return bounds[0], bounds[1]
