"""Running a model, or a segment of it, under torch with gradients.

A *cut* is a set of values of the main graph. A segment runs from one cut to another: what lies between is
computed node by node with our own table of operators; what depends on neither the cut nor a parameter is
computed once and kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from edgeopt.errors import ModelError
from edgeopt.graph.autograd.dtypes import to_torch, torch_dtype
from edgeopt.graph.autograd.operators import Call, Operator, Tensor, require_torch, table

FIRST_OPSET = 7
"""Before it broadcasting was something else."""

ON_HOST = 64
"""Integers of at most so many elements stay on the host: they are shapes, axes and sizes."""


class Segment:
    """A model from one cut to another, ready to run.

    Args:
        model: The model; it is not changed.
        from_values: Names of the values that will be given; by default the inputs of the graph. A value
            made inside the graph may be one.
        to_values: Names of the values wanted; by default the outputs of the graph.
        parameters: Names of initializers that will be given as tensors, and may require gradients.
        dtype: The floating-point type to compute in, such as ``float64``; by default the model's own.
        device: Where: by default a GPU if torch sees one, else the CPU.
        quantized: Whether QuantizeLinear and DequantizeLinear compute; otherwise they pass floats on, so
            the segment computes what it would without quantization, under the same names.

    Raises:
        MissingExtra: torch is not installed.
        ModelError: A name is not in the graph, an operator is not supported, or a value wanted depends on
            an input that is not given.
    """

    def __init__(
        self,
        model: ir.Model,
        from_values: Sequence[str] | None = None,
        to_values: Sequence[str] | None = None,
        parameters: Sequence[str] = (),
        *,
        dtype: str | None = None,
        device: str | None = None,
        quantized: bool = True,
    ) -> None:
        self._quantized = quantized
        torch = require_torch()
        self.operators = table()
        if model.functions:
            model = model.clone()
            InlinePass()(model)
        self.opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
        if self.opset < FIRST_OPSET:
            raise ModelError(f"running under torch needs opset {FIRST_OPSET}, the model has {self.opset}")
        self.dtype = None if dtype is None else getattr(torch, dtype)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._graph = model.graph
        values = _values(model.graph)
        inputs = [value.name or "" for value in model.graph.inputs if not value.is_initializer()]
        outputs = [value.name or "" for value in model.graph.outputs]
        self.from_values = list(inputs if from_values is None else from_values)
        self.to_values = list(outputs if to_values is None else to_values)
        self.parameters = list(parameters)
        for name in [*self.from_values, *self.to_values, *self.parameters]:
            if name not in values:
                raise ModelError(f"the main graph has no value {name!r}")
        self._given = {values[name] for name in [*self.from_values, *self.parameters]}
        self._wanted = [values[name] for name in self.to_values]
        self._nodes = self._between()
        self._pairs = self._round_trips() if quantized else {}
        self._nodes = [node for node in self._nodes if node not in set(self._pairs.values())]
        self._kept = self._constants()
        self._dead = self._ends()

    def _between(self) -> list[ir.Node]:
        """Lists the nodes that the wanted values need, in order."""
        needed: set[ir.Node] = set()
        todo = list(self._wanted)
        while todo:
            value = todo.pop()
            if value in self._given or value.is_initializer():
                continue
            node = value.producer()
            if node is None:
                raise ModelError(f"the segment needs the input {value.name!r}, which is not given")
            if node not in needed:
                needed.add(node)
                todo.extend(read(node))
        nodes = [node for node in self._graph if node in needed]
        if missing := unsupported(nodes):
            raise ModelError(
                f"{len(missing)} operators cannot run under torch: {', '.join(missing)}",
                where=next(node.name for node in nodes if _name(node) in missing),
            )
        return nodes

    def _round_trips(self) -> dict[ir.Node, ir.Node]:
        """Finds each DequantizeLinear that undoes a QuantizeLinear whose integers only such read."""
        inside = set(self._nodes)
        ends = {*self._given, *self._wanted}
        pairs: dict[ir.Node, ir.Node] = {}
        for node in self._nodes:
            if node.op_type != "QuantizeLinear" or node.outputs[0] in ends:
                continue
            uses = list(node.outputs[0].uses())
            readers = [use.node for use in uses if use.node in inside]
            if any(use.node.graph is not node.graph for use in uses):
                continue  # a branch reads the integers
            if all(_undoes(reader, node) for reader in readers):
                pairs.update(dict.fromkeys(readers, node))
        return pairs

    def _read(self, node: ir.Node) -> list[ir.Value]:
        """Lists what a node reads when it is computed."""
        return read(self._pairs.get(node, node))

    def _constants(self) -> dict[ir.Value, Tensor]:
        """Computes what depends on nothing that is given."""
        torch = require_torch()
        known: dict[ir.Value, Tensor] = {}
        varying = set(self._given)
        rest = []
        with torch.no_grad():
            for value in self._initializers():
                known[value] = self._place(to_torch(value.const_value, value.name or "", self.dtype))
            for node in self._nodes:
                if any(value in varying for value in self._read(node)):
                    varying.update(node.outputs)
                    rest.append(node)
                else:
                    self._compute(node, known)
        self._nodes = rest
        used = {value for node in rest for value in self._read(node)} | set(self._wanted)
        return {value: tensor for value, tensor in known.items() if value in used}

    def _initializers(self) -> list[ir.Value]:
        found = {value for node in self._nodes for value in self._read(node)} | set(self._wanted)
        return [
            value
            for value in found
            if value.is_initializer() and value not in self._given and value.const_value is not None
        ]

    def _ends(self) -> list[list[ir.Value]]:
        """Lists per node the values that are read no more after it, so that memory is freed."""
        last: dict[ir.Value, int] = {}
        for index, node in enumerate(self._nodes):
            last.update(dict.fromkeys([*self._read(node), *node.outputs], index))
        dead: list[list[ir.Value]] = [[] for _ in self._nodes]
        kept = {*self._wanted, *self._kept}
        for value, index in last.items():
            if value not in kept:
                dead[index].append(value)
        return dead

    def _place(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() and tensor.numel() <= ON_HOST:
            return tensor
        return tensor.to(self.device)

    def placed(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Makes tensors of inputs, where the segment computes, so that they need not move at every call."""
        return {name: self._place(to_torch(array, name, self.dtype)) for name, array in inputs.items()}

    def __call__(
        self, inputs: Mapping[str, Any], parameters: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """Runs the segment.

        Args:
            inputs: A numpy array or torch tensor for every value of the first cut.
            parameters: A tensor for every parameter; a tensor that requires gradients gets them.

        Returns:
            A torch tensor for every wanted value; gradients are recorded as torch's settings say.

        Raises:
            ModelError: An input or parameter is missing, or the form of an operator is not supported.
        """
        given = {**inputs, **(parameters or {})}
        known = dict(self._kept)
        for value in self._given:
            name = value.name or ""
            if name not in given:
                raise ModelError(f"the segment needs a tensor for {name!r}")
            known[value] = self._place(to_torch(given[name], name, self.dtype))
        for node, dead in zip(self._nodes, self._dead, strict=True):
            self._compute(node, known)
            for value in dead:
                known.pop(value, None)
        results = zip(self.to_values, self._wanted, strict=True)
        return {name: _typed(value, known[value]) for name, value in results}

    def _compute(self, node: ir.Node, known: dict[ir.Value, Tensor]) -> None:
        if node.op_type == "If":
            results: Sequence[Tensor] = self._branch(node, known)
        elif (first := self._pairs.get(node)) is not None:
            calls = [Call(step, self.opset, self.dtype) for step in (first, node)]
            from edgeopt.graph.autograd.quantizers import round_trip

            arguments = _arguments(self.operators[first.op_type], first, known, self.device)
            results = (round_trip(calls[0], calls[1], arguments),)
        elif not self._quantized and (source := _unquantized(node)) is not None:
            results = (known[source],)
        else:
            entry = self.operators[node.op_type]
            arguments = _arguments(entry, node, known, self.device)
            found = entry.function(Call(node, self.opset, self.dtype), *arguments)
            results = found if isinstance(found, (tuple, list)) else (found,)
        known.update(zip(node.outputs, results, strict=False))

    def _branch(self, node: ir.Node, known: dict[ir.Value, Tensor]) -> list[Tensor]:
        """Runs the branch of an If that its condition, known by now, chooses."""
        condition = node.inputs[0]
        assert condition is not None
        name = "then_branch" if bool(known[condition].reshape(-1)[0].item()) else "else_branch"
        graph = node.attributes[name].as_graph()
        inner = dict(known)
        for value in graph.initializers.values():
            inner[value] = self._place(to_torch(value.const_value, value.name or "", self.dtype))
        for step in graph:
            self._compute(step, inner)
        return [inner[value] for value in graph.outputs]


def run(
    model: ir.Model,
    inputs: Mapping[str, Any],
    from_values: Sequence[str] | None = None,
    to_values: Sequence[str] | None = None,
    parameters: Mapping[str, Any] | None = None,
    *,
    dtype: str | None = None,
    device: str | None = None,
) -> dict[str, Tensor]:
    """Runs a model from one cut to another under torch, once; ``Segment`` is for running it often.

    Args:
        model: The model; it is not changed.
        inputs: A numpy array or torch tensor for every value of the first cut.
        from_values: The first cut, names of values; by default the inputs of the graph.
        to_values: The last cut; by default the outputs of the graph.
        parameters: Tensors in the place of initializers, by name; they may require gradients.
        dtype: The floating-point type to compute in; by default the model's own.
        device: Where; by default a GPU if torch sees one, else the CPU.

    Raises:
        MissingExtra: torch is not installed.
        ModelError: As for ``Segment``.
    """
    segment = Segment(model, from_values, to_values, list(parameters or {}), dtype=dtype, device=device)
    return segment(inputs, parameters)


def read(node: ir.Node) -> list[ir.Value]:
    """Lists the values that a node reads, those that its branches capture included."""
    found = [value for value in node.inputs if value is not None]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graph = attribute.as_graph()
            own = set(graph.initializers.values()) | set(graph.inputs)
            own |= {output for inner in graph for output in inner.outputs}
            everything = [value for inner in graph for value in read(inner)] + list(graph.outputs)
            found += [value for value in everything if value not in own]
    return found


def unsupported(nodes: Sequence[ir.Node]) -> list[str]:
    """Names the operators among nodes, and in their branches, that are not in the table."""
    known = table()
    missing = []
    for node in nodes:
        if node.domain in ("", "ai.onnx") and node.op_type == "If":
            for attribute in node.attributes.values():
                missing += unsupported(list(attribute.as_graph()))
        elif node.domain not in ("", "ai.onnx") or node.op_type not in known:
            missing.append(_name(node))
    return sorted(set(missing))


def _unquantized(node: ir.Node) -> ir.Value | None:
    """The value that a quantizer passes on when nothing is quantized; ``None`` for other nodes."""
    source = node.inputs[0] if node.inputs else None
    if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
        return source
    if node.op_type != "DequantizeLinear" or source is None:
        return None
    maker = source.producer()
    quantizes = maker is not None and maker.op_type in ("QuantizeLinear", "DynamicQuantizeLinear")
    return source if quantizes else None  # integer constants have no float form but this one


def _undoes(second: ir.Node, first: ir.Node) -> bool:
    """Whether a DequantizeLinear has the very scale and zero point of a QuantizeLinear."""
    if second.op_type != "DequantizeLinear" or list(second.inputs[1:]) != list(first.inputs[1:]):
        return False
    return all(
        second.attributes.get_int(name, default) == first.attributes.get_int(name, default)
        for name, default in (("axis", 1), ("block_size", 0))
    )


def _name(node: ir.Node) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    values = {value.name or "": value for value in (*graph.inputs, *graph.initializers.values())}
    values.update((output.name or "", output) for node in graph for output in node.outputs)
    return values


def _arguments(entry: Operator, node: ir.Node, known: dict[ir.Value, Tensor], device: Any) -> list[Any]:
    tensors = [None if value is None else known[value] for value in node.inputs]
    arguments: list[Any] = [
        None if tensor is None else tensor.tolist() if index in entry.host else tensor
        for index, tensor in enumerate(tensors)
    ]
    if device.type != "cpu":
        free = [tensor for index, tensor in enumerate(tensors) if index not in entry.host]
        if any(tensor is not None and tensor.device.type != "cpu" for tensor in free):
            arguments = [item.to(device) if hasattr(item, "device") else item for item in arguments]
    return arguments


def _typed(value: ir.Value, tensor: Tensor) -> Tensor:
    """Casts integers that were carried as floats to their own type; a float's type stays."""
    kind = value.dtype
    if kind is None or not kind.is_integer() or not tensor.is_floating_point():
        return tensor
    return tensor.detach().to(torch_dtype(kind))


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Makes a numpy array of a tensor, without its gradients; bfloat16 becomes float32."""
    torch = require_torch()
    tensor = tensor.detach().cpu()
    array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
