"""Layers by the difference of prefixes: a model cut after every layer, each counted by itself.

What a layer takes is the count up to it less the count up to the one before. That is approximate: a runtime
optimizes every prefix anew, may lay out the cut value otherwise, and copies it out; the first layer has what
the call itself takes. Cuts are made where kernels end: never between a product and the activation that its
kernel applies, and in a quantized model only at integers, since a product whose output is not quantized would
run in float.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edgeopt.graph.shapes import infer_shapes
from edgeopt.targets.tflite import flatbuffer
from edgeopt.targets.tflite.program import Operation, Program, Tensor

LIMIT = 32
"""Layers at most; larger models are cut into so many stretches of about equal length."""

PRODUCTS = (
    "Conv",
    "Gemm",
    "MatMul",
    "ConvTranspose",
    "LSTM",
    "GRU",
    "RNN",
    "Attention",
    "MultiHeadAttention",
)
FUSED = (
    "Relu",
    "Clip",
    "LeakyRelu",
    "Sigmoid",
    "HardSigmoid",
    "Tanh",
    "HardSwish",
    "BatchNormalization",
    "Add",
    "Mul",
)
"""Operators that kernels of products apply to their outputs; Mul is the second half of a swish."""

QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, slots=True)
class Prefix:
    """A model up to the end of a layer.

    Attributes:
        layer: The layer's name.
        kernel: Its class: the operator, with its kind where that decides the kernel.
        file: The prefix; the last one computes all that the model does.
    """

    layer: str
    kernel: str
    file: Path


def write(source: Path, folder: Path, limit: int = LIMIT) -> list[Prefix]:
    """Cuts a model, an ``.onnx`` or ``.tflite`` file, after each of its layers."""
    if source.suffix == ".tflite":
        return list(_of_tflite(source, folder, limit))
    return list(_of_onnx(source, folder, limit))


# ---- ONNX


def _of_onnx(source: Path, folder: Path, limit: int) -> Iterator[Prefix]:
    model = ir.load(source)
    ir.external_data.load_to_model(model)
    infer_shapes(model)
    nodes = _computing(model.graph)
    bounds = _spaced(_bounds(nodes, model.graph), limit)
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        heavy = _heavy(nodes[start:end])
        path = folder / f"prefix-{number}.onnx"
        cut = model.clone()
        own = _computing(cut.graph)
        if end < len(nodes):
            outputs = _live(own, end, cut.graph)
            cut.graph.outputs[:] = outputs
        _drop_unused(cut.graph)
        ir.save(cut, path)
        yield Prefix(heavy.name or heavy.op_type, _kernel(heavy), path)


def _bounds(nodes: Sequence[ir.Node], graph: ir.Graph) -> list[int]:
    """Where layers begin and end: at clean cuts, with something else than quantizers between them."""
    found = [0]
    for end in range(1, len(nodes)):
        quantizers = all(node.op_type in QUANTIZERS for node in nodes[found[-1] : end])
        if not quantizers and _clean(nodes, end, graph):
            found.append(end)
    if len(found) > 1 and all(node.op_type in QUANTIZERS for node in nodes[found[-1] :]):
        found.pop()
    return [*found, len(nodes)]


def _computing(graph: ir.Graph) -> list[ir.Node]:
    """The nodes whose outputs depend on the inputs, in order; the others the runtime folds away."""
    moving = {value for value in graph.inputs if not value.is_initializer()}
    found = []
    for node in graph:
        if any(value in moving for value in node.inputs if value is not None):
            moving.update(node.outputs)
            found.append(node)
    return found


def _live(nodes: Sequence[ir.Node], end: int, graph: ir.Graph) -> list[ir.Value]:
    """Values made before a cut that are read after it, or are outputs; integers rather than their floats."""
    later = {value for node in nodes[end:] for value in node.inputs if value is not None}
    made = [value for node in nodes[:end] for value in node.outputs]
    live = [value for value in made if value in later or value in graph.outputs]
    return list(dict.fromkeys(_integers(value) for value in live))


def _integers(value: ir.Value) -> ir.Value:
    """What a dequantized value was before, where that is computed."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return value
    return value if node.inputs[0].producer() is None else node.inputs[0]


def _clean(nodes: Sequence[ir.Node], end: int, graph: ir.Graph) -> bool:
    """Whether kernels end at a cut, and it holds a product since the start."""
    if not any(node.op_type in PRODUCTS for node in nodes[:end]):
        return False
    quantized = any(node.op_type in QUANTIZERS for node in nodes)
    for value in _live(nodes, end, graph):
        producer = value.producer()
        readers = [usage.node.op_type for usage in value.uses()]
        in_integers = producer is not None and producer.op_type == "QuantizeLinear"
        if quantized and not in_integers and "QuantizeLinear" in _next_types(value):
            return False
        if not in_integers and len(readers) >= 1 and all(reader in FUSED for reader in readers):
            return False
    return True


def _next_types(value: ir.Value, depth: int = 2) -> set[str]:
    """The operators that read a value, and those that read what these make."""
    found: set[str] = set()
    for usage in value.uses():
        found.add(usage.node.op_type)
        if depth > 1 and usage.node.op_type in FUSED:
            found |= _next_types(usage.node.outputs[0], depth - 1)
    return found


def _drop_unused(graph: ir.Graph) -> None:
    """Deletes what no output needs."""
    needed = set(graph.outputs)
    for node in reversed(graph):
        if any(value in needed for value in node.outputs):
            needed.update(value for value in node.inputs if value is not None)
            for inner in _captured(node):
                needed.add(inner)
        else:
            graph.remove(node, safe=False)
    for name, value in list(graph.initializers.items()):
        if value not in needed:
            del graph.initializers[name]


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """Values of the outer graph that a node's own graphs read."""
    for attribute in node.attributes.values():
        graphs: Sequence[ir.Graph] = []
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = list(attribute.as_graphs())
        for graph in graphs:
            for inner in graph:
                yield from (value for value in inner.inputs if value is not None and value.graph is not graph)
                yield from _captured(inner)


def _heavy(nodes: Sequence[ir.Node]) -> ir.Node:
    """The node that a stretch is named after: its first product, else the first that is no quantizer."""
    computing = [node for node in nodes if node.op_type not in QUANTIZERS] or list(nodes)
    return next((node for node in computing if node.op_type in PRODUCTS), computing[0])


def _kernel(node: ir.Node) -> str:
    if node.op_type == "Conv" and node.attributes.get_int("group", 1) > 1:
        return "Conv depthwise"
    if node.op_type == "Conv" and set(node.attributes.get_ints("kernel_shape", (0,))) == {1}:
        return "Conv 1x1"
    return node.op_type


# ---- TFLite


def _of_tflite(source: Path, folder: Path, limit: int) -> Iterator[Prefix]:
    program = flatbuffer.read(source.read_bytes())
    bounds = _spaced(list(range(len(program.operations) + 1)), limit)
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        stretch = program.operations[start:end]
        heavy = next((item for item in stretch if "CONV" in item.code or "FULLY" in item.code), stretch[0])
        path = folder / f"prefix-{number}.tflite"
        path.write_bytes(flatbuffer.write(_cut(program, end)))
        yield Prefix(heavy.outputs[0].name or heavy.code, _tflite_kernel(heavy), path)


def _cut(program: Program, end: int) -> Program:
    """The first operations, with what is read after them as outputs."""
    later = {id(tensor) for item in program.operations[end:] for tensor in item.inputs if tensor is not None}
    later |= {id(tensor) for tensor in program.outputs}
    made: list[Tensor] = [tensor for item in program.operations[:end] for tensor in item.outputs]
    cut = Program(inputs=program.inputs, outputs=[tensor for tensor in made if id(tensor) in later])
    cut.operations.extend(program.operations[:end])
    return cut


def _tflite_kernel(item: Operation) -> str:
    weights = item.inputs[1] if len(item.inputs) > 1 else None
    if item.code == "CONV_2D" and weights is not None and tuple(weights.shape[1:3]) == (1, 1):
        return "CONV_2D 1x1"
    return item.code


def _spaced(bounds: list[int], limit: int) -> list[int]:
    """At most so many stretches, evenly chosen, the first and last bound among them."""
    if len(bounds) - 1 <= limit:
        return bounds
    step = (len(bounds) - 1) / limit
    return [bounds[round(number * step)] for number in range(limit)] + [bounds[-1]]
