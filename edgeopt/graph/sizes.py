"""Concrete types and shapes of every value in a model, and how often every node runs.

``unroll`` binds the symbolic dimensions of the inputs to numbers and walks the model once in order. The
shape of a node's outputs comes from ONNX's own inference for that node; small integer values (shapes,
axes, indices) are computed on the way, so that what depends on them is known too. Branches, loop bodies
and model-local functions are walked as well, a function once for every call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx
import onnx_ir as ir

from edgeopt.errors import ModelError, nearest
from edgeopt.graph.fold import Unfoldable, fold

SMALL = 4096
"""Values of up to this many elements are computed where their inputs are known."""

Shapes = Mapping[str, Sequence[int]]
"""Per input its shape."""


STRING_BITS = 8 * 32
"""What a string takes in a tensor: the object that C++ standard libraries make of it, without a long text."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """What is known of one value.

    Attributes:
        dtype: Its element type, ``None`` where unknown or no tensor.
        shape: Its shape, ``None`` where unknown.
        value: Its elements, where it is small and computable without running the model.
        constant: It is an initializer or made by a Constant node.
    """

    dtype: ir.DataType | None = None
    shape: tuple[int, ...] | None = None
    value: np.ndarray | None = None
    constant: bool = False

    @property
    def elements(self) -> int:
        """The number of elements, 0 where unknown."""
        return 0 if self.shape is None else prod(self.shape)

    @property
    def bytes(self) -> int:
        """The size in memory, int4 packed in halves of a byte; 0 where unknown."""
        if self.dtype is None:
            return 0
        bits = STRING_BITS if self.dtype == ir.DataType.STRING else self.dtype.bitwidth
        return (self.elements * bits + 7) // 8


@dataclass(slots=True)
class Step:
    """One node, with what is known of its inputs and outputs.

    Attributes:
        node: The node.
        inputs: What is known of each input, ``None`` where it is left out.
        outputs: The same for outputs.
        bodies: The branches of an If, the body of a Loop, Scan or function.
        trips: How often the body runs; ``None`` where that depends on the data.
    """

    node: ir.Node
    inputs: list[Tensor | None]
    outputs: list[Tensor]
    bodies: list[Unrolled] = field(default_factory=list)
    trips: int | None = 1


@dataclass(slots=True)
class Unrolled:
    """The steps of a graph, in order.

    Attributes:
        steps: One for every node.
        inputs: The graph's own inputs.
        outputs: The values that it returns.
        tensors: What is known of every value, also of values outside that it reads.
        assumed: Symbolic dimensions that no shape was given for, taken as 1.
    """

    steps: list[Step]
    inputs: list[ir.Value]
    outputs: list[ir.Value]
    tensors: dict[ir.Value, Tensor]
    assumed: dict[str, int] = field(default_factory=dict)

    def all_steps(self) -> Iterator[Step]:
        """Walks the steps of this graph and of everything inside it."""
        for step in self.steps:
            yield step
            for body in step.bodies:
                yield from body.all_steps()

    @property
    def unknown(self) -> list[str]:
        """The names of values whose type or shape could not be found."""
        return [
            output.name or ""
            for step in self.all_steps()
            for output, tensor in zip(step.node.outputs, step.outputs, strict=False)
            if output.name and (tensor.dtype is None or tensor.shape is None)
        ]


def unroll(model: ir.Model, shapes: Shapes | None = None) -> Unrolled:
    """Walks a model with concrete shapes.

    Args:
        model: The model; it is not changed.
        shapes: Shapes of inputs. A symbolic dimension bound at one input is bound everywhere; one that
            is bound nowhere counts as 1 (a batch of one) and is listed in ``assumed``.

    Raises:
        ModelError: There is no such input, or a shape contradicts the model.
    """
    bound, assumed = _bind(model, shapes or {})
    tensors: dict[ir.Value, Tensor] = {}
    for value in model.graph.inputs:
        tensors[value] = _bound(value, (shapes or {}).get(value.name or ""), bound, assumed)
    walked = _Walker(model, bound).graph(model.graph, tensors)
    walked.assumed = assumed
    return walked


def _bind(model: ir.Model, shapes: Shapes) -> tuple[dict[str, int], dict[str, int]]:
    inputs = {value.name or "": value for value in model.graph.inputs}
    bound: dict[str, int] = {}
    for name, wanted in shapes.items():
        if name not in inputs:
            raise ModelError(
                f"the model has no input {name!r}",
                nearest=nearest(name, inputs),
                hint=f"its inputs are {', '.join(inputs)}",
            )
        shape = inputs[name].shape
        if shape is None:
            continue
        given = [dim if isinstance(dim, int) else dim.value for dim in shape]
        fits = len(given) == len(wanted) and all(
            size > 0 and (not isinstance(old, int) or old == size)
            for old, size in zip(given, wanted, strict=True)
        )
        if not fits:
            raise ModelError(
                f"the input {name!r} has the shape {_text(given)} and cannot take {_text(wanted)}"
            )
        for old, size in zip(given, wanted, strict=True):
            if isinstance(old, str) and bound.setdefault(old, size) != size:
                raise ModelError(f"the dimension {old!r} cannot be both {bound[old]} and {size}")
    return bound, {}


def _bound(
    value: ir.Value, given: Sequence[int] | None, bound: dict[str, int], assumed: dict[str, int]
) -> Tensor:
    if value.shape is None:
        return Tensor(value.dtype, None if given is None else tuple(given))
    sizes: list[int] = []
    for axis, dim in enumerate(value.shape):
        if isinstance(dim, int):
            sizes.append(dim)
            continue
        name = dim.value or f"{value.name}[{axis}]"
        if given is not None:
            sizes.append(given[axis])
            continue
        if name not in bound:
            assumed[name] = bound[name] = 1
        sizes.append(bound[name])
    return Tensor(value.dtype, tuple(sizes))


def _text(shape: Iterable[object]) -> str:
    return "[" + ", ".join(str("?" if size is None else size) for size in shape) + "]"


class _Walker:
    """Walks graphs; one per model."""

    def __init__(self, model: ir.Model, bound: Mapping[str, int]) -> None:
        self.model = model
        self.bound = bound
        self.versions = dict(model.opset_imports)

    def graph(self, graph: ir.Graph, tensors: dict[ir.Value, Tensor]) -> Unrolled:
        """Walks one graph; ``tensors`` holds its inputs and what lies outside, and is added to."""
        for value in graph.initializers.values():
            if value not in tensors or tensors[value].shape is None:
                tensors[value] = _of_constant(value.const_value)
        return self._nodes(graph, list(graph.inputs), list(graph.outputs), tensors)

    def _nodes(
        self,
        nodes: Iterable[ir.Node],
        inputs: list[ir.Value],
        outputs: list[ir.Value],
        tensors: dict[ir.Value, Tensor],
    ) -> Unrolled:
        steps: list[Step] = []
        for node in nodes:
            given = [None if value is None else tensors.get(value, Tensor()) for value in node.inputs]
            step = self._step(node, given, tensors)
            tensors.update(zip(node.outputs, step.outputs, strict=False))
            steps.append(step)
        return Unrolled(steps, inputs, outputs, tensors)

    def _step(self, node: ir.Node, inputs: list[Tensor | None], tensors: dict[ir.Value, Tensor]) -> Step:
        function = self.model.functions.get(node.op_identifier())
        if function is not None:
            inner = dict(zip(function.inputs, (tensor or Tensor() for tensor in inputs), strict=False))
            body = self._nodes(function, list(function.inputs), list(function.outputs), inner)
            returned = [inner.get(value, Tensor()) for value in function.outputs]
            return Step(node, inputs, self._known(node, returned), [body])
        if node.op_type == "If" and node.domain == "":
            return self._branches(node, inputs, tensors)
        if node.op_type in ("Loop", "Scan") and node.domain == "":
            return self._loop(node, inputs, tensors)
        if (values := self._fold(node, inputs)) is not None:
            return Step(node, inputs, values)
        return Step(node, inputs, self._known(node, self._infer(node, inputs)))

    def _fold(self, node: ir.Node, inputs: list[Tensor | None]) -> list[Tensor] | None:
        """Computes a node whose inputs are known, or whose output depends on a shape alone."""
        try:
            arrays = fold(node, inputs, SMALL)
        except (Unfoldable, ValueError, IndexError, TypeError, ZeroDivisionError):
            return None  # not computed; the inference says what it knows
        constant = node.op_type == "Constant"
        return [Tensor(ir.DataType.from_numpy(array.dtype), array.shape, array, constant) for array in arrays]

    def _infer(self, node: ir.Node, inputs: list[Tensor | None]) -> list[Tensor]:
        unknown = [Tensor() for _ in node.outputs]
        given = inputs[0] if inputs else None
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.domain == "" and given is not None:
            dtype = node.outputs[0].dtype
            if dtype is not None and given.shape is not None:  # half of a quantized graph's nodes
                return [Tensor(dtype, given.shape)]
        version = node.version or self.versions.get(node.domain, 1)
        try:
            schema = onnx.defs.get_schema(node.op_type, version, node.domain)
            types: dict[str, onnx.TypeProto] = {}
            data: dict[str, onnx.TensorProto] = {}
            for value, tensor in zip(node.inputs, inputs, strict=True):
                if value is None or tensor is None or tensor.dtype is None or tensor.shape is None:
                    continue
                if min(tensor.shape, default=1) < (1 if node.op_type == "Slice" else 0):
                    return unknown  # a window larger than its input; of Slice, ONNX's inference would abort
                name = value.name or ""
                types[name] = onnx.helper.make_tensor_type_proto(int(tensor.dtype), tensor.shape)
                if tensor.value is not None:
                    data[name] = onnx.numpy_helper.from_array(tensor.value, name)
            found = onnx.shape_inference.infer_node_outputs(
                schema,
                ir.to_proto(node),
                types,
                data,
                opset_imports=[onnx.helper.make_opsetid(name, v) for name, v in self.versions.items()],
            )
        except Exception:  # unknown operators and contradictions, each an exception of its own in C++
            return unknown
        return [_of_type(found.get(value.name or "")) for value in node.outputs]

    def _known(self, node: ir.Node, found: list[Tensor]) -> list[Tensor]:
        """Completes what was found by what the file says."""
        result = []
        for value, tensor in zip(node.outputs, found, strict=False):
            dtype, shape = tensor.dtype, tensor.shape
            if shape is None and value.shape is not None:
                sizes = [
                    dim if isinstance(dim, int) else self.bound.get(dim.value or "") for dim in value.shape
                ]
                if all(size is not None for size in sizes):
                    shape = tuple(size for size in sizes if size is not None)
            result.append(Tensor(dtype or value.dtype, shape, tensor.value, tensor.constant))
        return result

    def _branches(self, node: ir.Node, inputs: list[Tensor | None], tensors: dict[ir.Value, Tensor]) -> Step:
        bodies = [
            self.graph(node.attributes[name].as_graph(), dict(tensors))
            for name in ("then_branch", "else_branch")
        ]
        outputs = []
        for position in range(len(node.outputs)):
            options = [body.tensors.get(body.outputs[position], Tensor()) for body in bodies]
            largest = max(options, key=lambda tensor: tensor.bytes)
            outputs.append(Tensor(largest.dtype, largest.shape))
        return Step(node, inputs, self._known(node, outputs), bodies)

    def _loop(self, node: ir.Node, inputs: list[Tensor | None], tensors: dict[ir.Value, Tensor]) -> Step:
        graph = node.attributes["body"].as_graph()
        inner = dict(tensors)
        trips: int | None
        if node.op_type == "Loop":
            limit = inputs[0]
            known = None if limit is None else limit.value
            trips = None if known is None or known.size != 1 else int(known.reshape(()))
            carried = len(graph.inputs) - 2
            inner[graph.inputs[0]] = Tensor(ir.DataType.INT64, ())
            inner[graph.inputs[1]] = Tensor(ir.DataType.BOOL, ())
            for value, tensor in zip(graph.inputs[2:], inputs[2:], strict=False):
                inner[value] = _unvalued(tensor)
            first = 1
        else:
            scanned = int(node.attributes["num_scan_inputs"].as_int())
            carried = len(inputs) - scanned
            for value, tensor in zip(graph.inputs[:carried], inputs[:carried], strict=False):
                inner[value] = _unvalued(tensor)
            lengths = [tensor.shape[0] for tensor in inputs[carried:] if tensor is not None and tensor.shape]
            trips = lengths[0] if lengths else None
            for value, tensor in zip(graph.inputs[carried:], inputs[carried:], strict=False):
                one_slice = None if tensor is None or not tensor.shape else tensor.shape[1:]
                inner[value] = Tensor(None if tensor is None else tensor.dtype, one_slice)
            first = 0
        body = self.graph(graph, inner)
        results = [inner.get(value, Tensor()) for value in graph.outputs[first:]]
        outputs = [
            _unvalued(tensor)
            if position < carried
            else Tensor(
                tensor.dtype,
                None if tensor.shape is None or trips is None else (trips, *tensor.shape),
            )
            for position, tensor in enumerate(results)
        ]
        return Step(node, inputs, self._known(node, outputs), [body], trips)


def _unvalued(tensor: Tensor | None) -> Tensor:
    """What stays known of a value that changes from one round to the next."""
    return Tensor() if tensor is None else Tensor(tensor.dtype, tensor.shape)


def _of_constant(tensor: ir.TensorProtocol | None) -> Tensor:
    if tensor is None:
        return Tensor()
    shape = tuple(int(size) for size in tensor.shape.numpy()) if isinstance(tensor.shape, ir.Shape) else ()
    small = prod(shape) <= SMALL and tensor.dtype.is_integer() and tensor.dtype.bitwidth >= 8
    small = small or (prod(shape) <= 16 and tensor.dtype in (ir.DataType.FLOAT, ir.DataType.BOOL))
    return Tensor(tensor.dtype, shape, tensor.numpy() if small else None, constant=True)


def _of_type(proto: onnx.TypeProto | None) -> Tensor:
    if proto is None or not proto.HasField("tensor_type"):
        return Tensor()
    tensor = proto.tensor_type
    dtype = ir.DataType(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return Tensor(dtype)
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    if any(size is None for size in sizes):
        return Tensor(dtype)
    return Tensor(dtype, tuple(size for size in sizes if size is not None))
