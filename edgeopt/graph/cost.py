"""What a model costs to run: multiply-accumulates, operations, parameters and bytes, node by node.

Costs are counted for concrete shapes (a batch of one unless told otherwise). Of an If the larger branch
counts, the body of a Loop or Scan as often as it runs where that is known, a function once for each
call. In a quantized graph a node between DequantizeLinear and QuantizeLinear counts as one integer
kernel, and bytes at their integer width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal

import onnx_ir as ir

from edgeopt.graph.integers import ACTIVATIONS, Integers, fused_activation, integers, is_constant
from edgeopt.graph.macs import Operands, macs, operations
from edgeopt.graph.sizes import Shapes, Step, Tensor, Unrolled, unroll

Kernel = Literal[
    "conv3x3",
    "conv",
    "conv1x1",
    "conv-first",
    "depthwise",
    "fully-connected",
    "matmul",
    "recurrent",
    "pooling",
    "normalization",
    "elementwise",
    "movement",
    "control",
    "free",
]
"""What kind of kernel a node needs. ``conv3x3`` has stride 1 and one group, which fast algorithms serve;
``conv-first`` reads at most four channels; ``movement`` copies; ``free`` costs nothing at run time."""

_MOVEMENT = """
    Reshape Flatten Squeeze Unsqueeze Identity Transpose Concat Split Slice Gather GatherElements
    GatherND ScatterElements ScatterND Pad Expand Tile Resize Upsample DepthToSpace SpaceToDepth Cast
    ConstantOfShape ReverseSequence Compress OneHot
"""
MOVEMENT = frozenset(_MOVEMENT.split())
_POOLING = """
    MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool ReduceMean ReduceSum ReduceMax ReduceMin
    ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSumExp ArgMax ArgMin TopK QLinearAveragePool
    QLinearGlobalAveragePool
"""
POOLING = frozenset(_POOLING.split())
_NORMALIZATION = """
    LayerNormalization InstanceNormalization GroupNormalization RMSNormalization LRN Softmax LogSoftmax
    LpNormalization MeanVarianceNormalization SkipLayerNormalization SimplifiedLayerNormalization
    SkipSimplifiedLayerNormalization QLinearSoftmax
"""
NORMALIZATION = frozenset(_NORMALIZATION.split())


@dataclass(frozen=True, slots=True)
class NodeCost:
    """What one node costs.

    Attributes:
        name: The node's name.
        op_type: Its operator.
        kernel: The kind of kernel.
        dtype: What it computes in: ``float32``, ``float16``, ``int8``, ``int64``, ...
        macs: Multiply-accumulates.
        operations: Elementary operations: two for each multiply-accumulate, one for each element of an
            elementwise result.
        parameters: Elements of its constant operands, shapes and indices left out.
        parameter_bytes: Their size as stored.
        read_bytes: Activations read.
        written_bytes: Activations written.
        shape: The shape of its first output.
        fused: A runtime computes it inside the layer before: an activation or batch normalization.
        repeats: How often it runs in one call of the model.
    """

    name: str
    op_type: str
    kernel: Kernel
    dtype: str
    macs: int
    operations: int
    parameters: int
    parameter_bytes: int
    read_bytes: int
    written_bytes: int
    shape: tuple[int, ...] | None
    fused: bool = False
    repeats: int = 1


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model costs.

    Attributes:
        nodes: Every node that runs, in order; those of loop bodies and functions stand in their place.
        parameters: Elements of all constant operands, each tensor once, shapes and indices left out.
        parameter_bytes: Their size as stored, each tensor once.
        assumed: Symbolic dimensions without a given size, taken as 1.
        unknown: Values whose shape is not known; their cost is not counted.
        unbounded: Loops whose number of rounds depends on the data, counted as one round.
    """

    nodes: list[NodeCost]
    parameters: int
    parameter_bytes: int
    assumed: dict[str, int] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    unbounded: list[str] = field(default_factory=list)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one call."""
        return sum(node.macs * node.repeats for node in self.nodes)

    @property
    def operations(self) -> int:
        """Elementary operations of one call."""
        return sum(node.operations * node.repeats for node in self.nodes)

    @property
    def moved_bytes(self) -> int:
        """Activations read and written in one call."""
        return sum((node.read_bytes + node.written_bytes) * node.repeats for node in self.nodes)


def cost(model: ir.Model, shapes: Shapes | None = None) -> Cost:
    """Counts what one call of a model costs.

    Args:
        model: The model; it is not changed.
        shapes: Shapes of inputs; a symbolic dimension not bound by them counts as 1.

    Raises:
        ModelError: There is no such input, or a shape contradicts the model.
    """
    return cost_of(unroll(model, shapes), model)


def cost_of(walked: Unrolled, model: ir.Model) -> Cost:
    """Counts the cost of a model that is already unrolled."""
    counter = _Counter()
    nodes = list(counter.graph(walked, 1))
    parameters, _ = _stored(model)
    return Cost(
        nodes=nodes,
        parameters=parameters,
        parameter_bytes=model_size(model),
        assumed=walked.assumed,
        unknown=walked.unknown,
        unbounded=counter.unbounded,
    )


def model_size(model: ir.Model) -> int:
    """Counts the bytes of a model's weights as an artifact stores them.

    A weight followed by QuantizeLinear counts at its quantized width, scales and zero points as they
    are; a tensor that several values share counts once.
    """
    return _stored(model)[1]


def _stored(model: ir.Model) -> tuple[int, int]:
    """Returns the number of elements and bytes of all constants."""
    elements = size = 0
    seen: set[int] = set()
    for value, tensor in _constants(model):
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        count = prod(int(dim) for dim in tensor.shape.numpy()) if isinstance(tensor.shape, ir.Shape) else 0
        if tensor.dtype not in (ir.DataType.INT64, ir.DataType.BOOL):  # shapes, axes and indices
            elements += count
        for width in _widths(value, tensor):
            size += (count * width + 7) // 8
    return elements, size


def _constants(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value
        for node in graph:
            attribute = node.attributes.get("value") if node.op_type == "Constant" else None
            if attribute is not None:
                yield node.outputs[0], attribute.as_tensor()
    for function in model.functions.values():
        for node in function:
            attribute = node.attributes.get("value") if node.op_type == "Constant" else None
            if attribute is not None and not attribute.is_ref():
                yield node.outputs[0], attribute.as_tensor()


def _widths(value: ir.Value, tensor: ir.TensorProtocol) -> set[int]:
    """The widths in bits that a constant is stored at: its own, or that of its quantized forms."""
    readers = value.consumers()
    quantized = {
        reader.outputs[0].dtype.bitwidth if reader.outputs[0].dtype is not None else _zero_point_width(reader)
        for reader in readers
        if reader.op_type == "QuantizeLinear" and reader.inputs[0] is value
    }
    floating = not readers or any(
        reader.op_type != "QuantizeLinear" or reader.inputs[0] is not value for reader in readers
    )
    return quantized | ({tensor.dtype.bitwidth} if floating else set())


def _zero_point_width(quantizer: ir.Node) -> int:
    """The width that a QuantizeLinear makes, by its attribute or zero point; uint8 by default."""
    attribute = quantizer.attributes.get("output_dtype")
    if attribute is not None and attribute.as_int():
        return ir.DataType(attribute.as_int()).bitwidth
    zero_point = quantizer.inputs[2] if len(quantizer.inputs) > 2 else None
    dtype = None if zero_point is None else zero_point.dtype
    if dtype is None and zero_point is not None and zero_point.const_value is not None:
        dtype = zero_point.const_value.dtype
    return 8 if dtype is None else dtype.bitwidth


class _Counter:
    """Turns steps into costs."""

    def __init__(self) -> None:
        self.unbounded: list[str] = []

    def graph(self, walked: Unrolled, repeats: int) -> Iterator[NodeCost]:
        quantized = integers(step.node for step in walked.steps)
        fused = _fused(walked)
        for step in walked.steps:
            if step.bodies:
                yield from self._bodies(step, repeats)
            else:
                yield self._node(step, walked, quantized, step.node in fused, repeats)

    def _bodies(self, step: Step, repeats: int) -> Iterator[NodeCost]:
        trips = step.trips
        if trips is None:
            self.unbounded.append(step.node.name or step.node.op_type)
            trips = 1
        options = [list(self.graph(body, repeats * trips)) for body in step.bodies]
        # Of two branches the one with more arithmetic is the worse case.
        yield from max(options, key=lambda nodes: sum(node.operations * node.repeats for node in nodes))

    def _node(self, step: Step, walked: Unrolled, quantized: Integers, fused: bool, repeats: int) -> NodeCost:
        node = step.node
        operands = _operands(step, walked, quantized)
        reads = written = parameters = parameter_bytes = 0
        seen: Counter[ir.Value] = Counter()
        for value in node.inputs:
            if value is None:
                continue
            stored = quantized.as_read(node, value)
            tensor = _peeled(stored, walked)
            seen[stored] += 1
            if seen[stored] > 1:
                continue
            if is_constant(value):
                if tensor.dtype not in (ir.DataType.INT64, ir.DataType.BOOL):
                    parameters += tensor.elements
                parameter_bytes += tensor.bytes
            else:
                reads += tensor.bytes
        for value in node.outputs:
            if value.name:
                written += walked.tensors.get(quantized.held.get(value, value), Tensor()).bytes
        kernel = _kernel(step, operands)
        if node in quantized.absorbed or kernel == "free" or _constant_result(step):
            return self._free(step, parameters, parameter_bytes, repeats)
        count = macs(step, operands)
        return NodeCost(
            name=node.name or node.op_type,
            op_type=node.op_type,
            kernel=kernel,
            dtype=_dtype(step, node in quantized.nodes, operands),
            macs=count,
            operations=2 * count or operations(step),
            parameters=parameters,
            parameter_bytes=parameter_bytes,
            read_bytes=reads,
            written_bytes=written,
            shape=step.outputs[0].shape if step.outputs else None,
            fused=fused,
            repeats=repeats,
        )

    def _free(self, step: Step, parameters: int, parameter_bytes: int, repeats: int) -> NodeCost:
        dtype = step.outputs[0].dtype if step.outputs else None
        return NodeCost(
            name=step.node.name or step.node.op_type,
            op_type=step.node.op_type,
            kernel="free",
            dtype="" if dtype is None else _name(dtype),
            macs=0,
            operations=0,
            parameters=parameters,
            parameter_bytes=parameter_bytes,
            read_bytes=0,
            written_bytes=0,
            shape=step.outputs[0].shape if step.outputs else None,
            repeats=repeats,
        )


def _operands(step: Step, walked: Unrolled, quantized: Integers) -> Operands:
    """Finds the activation and the weight of a node, by the operator's place for them."""
    places = {"QLinearConv": (0, 3), "QLinearMatMul": (0, 3), "QGemm": (0, 3)}
    first, second = places.get(step.node.op_type, (0, 1))
    inputs = step.inputs
    weight_value = step.node.inputs[second] if len(inputs) > second else None
    return Operands(
        data=inputs[first] if inputs and len(inputs) > first else None,
        weight=inputs[second] if len(inputs) > second else None,
        constant_weight=weight_value is not None and is_constant(weight_value),
    )


def _peeled(value: ir.Value, walked: Unrolled) -> Tensor:
    """What is stored of a constant: its integers where it is quantized in the graph."""
    producer = value.producer()
    while producer is not None and producer.op_type == "DequantizeLinear" and is_constant(value):
        source = producer.inputs[0]
        if source is None:
            break
        value = source
        producer = value.producer()
    return walked.tensors.get(value, Tensor())


def _constant_result(step: Step) -> bool:
    """Whether the node computes something that is the same in every call, such as a shape."""
    return bool(step.outputs) and all(tensor.value is not None for tensor in step.outputs)


def _fused(walked: Unrolled) -> set[ir.Node]:
    found: set[ir.Node] = set()
    for step in walked.steps:
        node = step.node
        if node.op_type == "BatchNormalization" and node.inputs[0] is not None:
            before = node.inputs[0].producer()
            if before is not None and before.op_type in ("Conv", "Gemm", "ConvTranspose"):
                found.add(node)
        activation = fused_activation(node)
        if activation is not None and activation.op_type in ACTIVATIONS:
            found.add(activation)
    return found


def _kernel(step: Step, operands: Operands) -> Kernel:
    op_type = step.node.op_type
    if op_type in ("Constant", "Shape", "Size") or op_type in ("Dropout", "Identity"):
        return "free"
    if op_type in ("Conv", "ConvInteger", "QLinearConv", "FusedConv", "NhwcFusedConv", "NhwcConv"):
        return _convolution(step, operands)
    if op_type in ("ConvTranspose", "DeformConv"):
        return "conv"
    if op_type in ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"):
        return "recurrent"
    if op_type in ("Gemm", "QGemm", "MatMulNBits", "DynamicQuantizeMatMul", "GatherBlockQuantized"):
        return "fully-connected"
    if "MatMul" in op_type or op_type == "Einsum":
        return "fully-connected" if operands.constant_weight else "matmul"
    if "Attention" in op_type:
        return "matmul"
    if op_type in POOLING:
        return "pooling"
    if op_type in NORMALIZATION:
        return "normalization"
    if op_type in MOVEMENT:
        return "movement"
    return "elementwise"


def _convolution(step: Step, operands: Operands) -> Kernel:
    weight, data, node = operands.weight, operands.data, step.node
    if weight is None or weight.shape is None or data is None or data.shape is None:
        return "conv"
    group = node.attributes["group"].as_int() if "group" in node.attributes else 1
    kernel = weight.shape[2:]
    channels = data.shape[-1] if node.op_type.startswith("Nhwc") else data.shape[1]
    if group > 1 and weight.shape[1] == 1:
        return "depthwise"
    if channels <= 4 and group == 1:
        return "conv-first"
    if all(size == 1 for size in kernel):
        return "conv1x1"
    strides = node.attributes["strides"].as_ints() if "strides" in node.attributes else (1,)
    dilations = node.attributes["dilations"].as_ints() if "dilations" in node.attributes else (1,)
    plain = all(step == 1 for step in (*strides, *dilations)) and group == 1
    return "conv3x3" if plain and tuple(kernel) == (3, 3) else "conv"


def _dtype(step: Step, in_integers: bool, operands: Operands) -> str:
    if in_integers or step.node.op_type in (
        "ConvInteger",
        "MatMulInteger",
        "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
        "MatMulIntegerToFloat",
    ):
        return "int8"
    for tensor in (operands.data, *step.outputs):
        if tensor is not None and tensor.dtype is not None:
            return _name(tensor.dtype)
    return ""


def _name(dtype: ir.DataType) -> str:
    names = {"FLOAT": "float32", "DOUBLE": "float64"}
    return names.get(dtype.name, "int8" if dtype.name == "UINT8" else dtype.name.lower())


def total(nodes: list[NodeCost]) -> NodeCost:
    """Adds up costs under the first one's name: a layer that several nodes make up."""
    first = nodes[0]
    return replace(
        first,
        macs=sum(node.macs * node.repeats for node in nodes),
        operations=sum(node.operations * node.repeats for node in nodes),
        parameters=sum(node.parameters for node in nodes),
        parameter_bytes=sum(node.parameter_bytes for node in nodes),
        read_bytes=sum(node.read_bytes * node.repeats for node in nodes),
        written_bytes=sum(node.written_bytes * node.repeats for node in nodes),
        repeats=1,
    )
