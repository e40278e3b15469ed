"""Products with constant quantized weights as rows times a matrix.

Every Conv, Gemm and MatMul is read as groups of rows q [columns] times weights [outputs, columns]: a row is
what one output position reads. Positions are drawn evenly at random.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeopt.graph.placement import is_constant


@dataclass(frozen=True, slots=True)
class Product:
    """A node that multiplies rows of its input by a constant matrix.

    Attributes:
        node: Its name.
        operator: ``Conv``, ``Gemm`` or ``MatMul``, which is also a Gemm that adds no bias of its own.
        source: The value it reads, by name.
        weight: Its weight, by name.
        groups: How many groups its channels are in.
        transposed: Whether the weight is [columns, outputs].
        bias: The constant added to its outputs, by name, if one number per output, else ``None``.
        scaled: The Mul behind it that multiplies each row by a factor, and the factors' value, by name: the
            bias comes behind it, and rows count with their factors.
        kernel, strides, pads, dilations: Those of a Conv of two spatial axes; a missing axis has length 1.
    """

    node: str
    operator: str
    source: str
    weight: str
    groups: int = 1
    transposed: bool = False
    bias: str | None = None
    scaled: tuple[str, str] | None = None
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)

    @property
    def last(self) -> str:
        """The node whose output is the product, by name."""
        return self.node if self.scaled is None else self.scaled[0]

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """Returns weights as [groups, outputs, columns]."""
        flat = weight.T if self.transposed else weight.reshape(weight.shape[0], -1)
        return flat.reshape(self.groups, flat.shape[0] // self.groups, flat.shape[1])

    def unmatrix(self, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The inverse of ``matrix``."""
        flat = matrix.reshape(-1, matrix.shape[-1])
        array: np.ndarray = (flat.T if self.transposed else flat).reshape(shape)
        return array

    def positions(self, output: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
        """Draws positions of an output [..., outputs] or [batch, outputs, ...], without repetition."""
        total = output.size // max(output.shape[1 if self.operator == "Conv" else -1], 1)
        if total <= count:
            return np.arange(total)
        drawn: np.ndarray = np.sort(generator.choice(total, count, replace=False))
        return drawn

    def outputs(self, array: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns an output's numbers at positions, [groups, positions, outputs]."""
        rows = np.moveaxis(array, 1, -1) if self.operator == "Conv" else array
        if self.operator == "Conv":
            index = np.unravel_index(positions, rows.shape[:-1])
            picked = rows[index]
        else:
            picked = rows.reshape(-1, rows.shape[-1])[positions]
        grouped: np.ndarray = np.moveaxis(picked.reshape(len(positions), self.groups, -1), 1, 0)
        return grouped

    def rows(self, array: np.ndarray, output: tuple[int, ...], positions: np.ndarray) -> np.ndarray:
        """Returns what the output positions read of an input, [groups, positions, columns]."""
        if self.operator != "Conv":
            read: np.ndarray = array.reshape(-1, array.shape[-1])[positions][None]
            return read
        if array.ndim == 3:  # one spatial axis: as if the other had length 1
            array, output = array[:, :, None], (*output[:2], 1, output[2])
        top, left, bottom, right = self.pads
        if any(self.pads):
            array = np.pad(array, ((0, 0), (0, 0), (top, bottom), (left, right)))
        batch, down, across = np.unravel_index(positions, (output[0], *output[2:]))
        y = (down * self.strides[0])[:, None] + np.arange(self.kernel[0]) * self.dilations[0]
        x = (across * self.strides[1])[:, None] + np.arange(self.kernel[1]) * self.dilations[1]
        channels_last = np.ascontiguousarray(np.moveaxis(array, 1, -1))
        patches = channels_last[batch[:, None, None], y[:, :, None], x[:, None, :]]  # [n, kh, kw, C]
        patches = np.moveaxis(patches, -1, 1).reshape(len(positions), self.groups, -1)
        return np.ascontiguousarray(np.moveaxis(patches, 1, 0))


def read_product(node: ir.Node) -> Product | None:
    """Reads a node of a model whose weights are plain constants; ``None`` where it is no such product."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    source, weight = node.inputs[0], node.inputs[1]
    if source is None or weight is None or not is_constant(weight) or weight.const_value is None:
        return None
    if weight.dtype != ir.DataType.FLOAT or len(list(weight.uses())) != 1:
        return None
    shape = tuple(weight.const_value.shape.numpy())
    name, values = node.name or "", (source.name or "", weight.name or "")
    if node.op_type == "Conv":
        return _convolution(node, name, values, shape)
    if len(shape) != 2:
        return None
    if node.op_type == "MatMul":
        scaled, last = _scaled(node)
        bias = _added(last, shape[1])
        return Product(name, "MatMul", *values, transposed=True, bias=bias, scaled=scaled)
    if node.attributes.get_int("transA", 0) or node.attributes.get_float("alpha", 1.0) != 1:
        return None
    if node.attributes.get_float("beta", 1.0) != 1:
        return None
    transposed = not node.attributes.get_int("transB", 0)
    outputs = shape[1 if transposed else 0]
    if len(node.inputs) < 3 or node.inputs[2] is None:
        scaled, last = _scaled(node)
        if scaled is not None:
            bias = _added(last, outputs)
            return Product(name, "MatMul", *values, transposed=transposed, bias=bias, scaled=scaled)
    bias = _bias(node.inputs[2] if len(node.inputs) > 2 else None, outputs)
    return Product(name, "Gemm", *values, transposed=transposed, bias=bias)


def _convolution(node: ir.Node, name: str, values: tuple[str, str], shape: tuple[int, ...]) -> Product | None:
    spatial = len(shape) - 2
    if spatial not in (1, 2) or node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    kernel = list(shape[2:])
    strides = list(node.attributes.get_ints("strides") or [1] * spatial)
    dilations = list(node.attributes.get_ints("dilations") or [1] * spatial)
    pads = list(node.attributes.get_ints("pads") or [0] * 2 * spatial)
    if spatial == 1:
        kernel, strides, dilations = [1, *kernel], [1, *strides], [1, *dilations]
        pads = [0, pads[0], 0, pads[1]]
    bias = _bias(node.inputs[2] if len(node.inputs) > 2 else None, shape[0])
    return Product(
        name,
        "Conv",
        *values,
        groups=node.attributes.get_int("group", 1) or 1,
        bias=bias,
        kernel=(kernel[0], kernel[1]),
        strides=(strides[0], strides[1]),
        pads=(pads[0], pads[1], pads[2], pads[3]),
        dilations=(dilations[0], dilations[1]),
    )


def _bias(value: ir.Value | None, count: int) -> str | None:
    if value is None or not is_constant(value) or value.const_value is None:
        return None
    if value.dtype != ir.DataType.FLOAT or len(list(value.uses())) != 1 or value.is_graph_output():
        return None
    return value.name if tuple(value.const_value.shape.numpy()) == (count,) else None


def _scaled(node: ir.Node) -> tuple[tuple[str, str] | None, ir.Node]:
    """The Mul, the only reader, that multiplies a product's rows by computed factors; and which is last."""
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output() or uses[0].node.op_type != "Mul" or output.shape is None:
        return None, node
    behind = uses[0].node
    factors = behind.inputs[1 - uses[0].idx]
    if factors is None or is_constant(factors) or factors.shape is None or factors is output:
        return None, node
    if len(factors.shape) != len(output.shape) or factors.shape[-1] != 1 or output.shape[-1] == 1:
        return None, node
    pairs = zip(list(factors.shape)[:-1], list(output.shape)[:-1], strict=True)
    if any(one != two and isinstance(one, int) and isinstance(two, int) for one, two in pairs):
        return None, node
    return (behind.name or "", factors.name or ""), behind


def _added(node: ir.Node, count: int) -> str | None:
    """The constant that an Add, the only reader, puts on the product."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output() or uses[0].node.op_type != "Add":
        return None
    return _bias(uses[0].node.inputs[1 - uses[0].idx], count)
