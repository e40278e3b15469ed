"""Operators that no runtime knows.

A model that uses one still loads, so that it can be inspected; whoever lowers it refuses it by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import onnx.defs
import onnx_ir as ir

from edgeopt.errors import ModelError


@dataclass(frozen=True, slots=True)
class UnknownOperator:
    """A node whose operator neither ONNX nor onnxruntime defines.

    Attributes:
        node: The node's name, or its first output where it has none.
        op_type: The operator.
        domain: Its domain; "" is ai.onnx.
        opset: The version of the domain that the model imports; 0 where it imports none.
        reason: What is wrong, as a sentence's end: ``is an operator no runtime knows``.
    """

    node: str
    op_type: str
    domain: str
    opset: int
    reason: str

    def __str__(self) -> str:
        name = f"{self.domain}::{self.op_type}" if self.domain else self.op_type
        return f"the node {self.node!r}: {name} {self.reason}"


def unknown_operators(model: ir.Model) -> list[UnknownOperator]:
    """Lists the nodes of a model, its subgraphs and functions that no runtime can run, in order."""
    found = []
    for node, imports in _nodes(model):
        if node.op_identifier() in model.functions:
            continue
        domain = "" if node.domain == "ai.onnx" else node.domain
        opset = imports.get(domain, imports.get(node.domain, 0))
        if (reason := _reason(node.op_type, domain, opset)) is not None:
            name = node.name or next((out.name for out in node.outputs if out.name), "") or ""
            found.append(UnknownOperator(name, node.op_type, domain, opset, reason))
    return found


def refuse_unknown_operators(model: ir.Model) -> None:
    """Refuses a model that no runtime can run, naming the first such node.

    Raises:
        ModelError: There is one.
    """
    if unknown := unknown_operators(model):
        more = f"{len(unknown) - 1} more: {', '.join(item.node for item in unknown[1:6])}"
        raise ModelError(str(unknown[0]), where=more if len(unknown) > 1 else None)


def _nodes(model: ir.Model) -> Iterator[tuple[ir.Node, dict[str, int]]]:
    for node in model.graph.all_nodes():
        yield node, model.opset_imports
    for function in model.functions.values():
        for node in function.all_nodes():
            yield node, function.opset_imports or model.opset_imports


def _reason(op_type: str, domain: str, opset: int) -> str | None:
    if onnx.defs.has(op_type, domain):
        if opset == 0:
            return f"is of the domain {domain or 'ai.onnx'!r}, which the model does not import"
        try:
            schema = onnx.defs.get_schema(op_type, opset, domain)
        except onnx.defs.SchemaError:
            first = onnx.defs.get_schema(op_type, domain=domain).since_version
            return f"does not exist in opset {opset} (the model's); the current one is of opset {first}"
        return f"was removed before opset {opset} (the model's)" if schema.deprecated else None
    if (domain, op_type) in _runtime_operators():
        return None
    return "is an operator no runtime knows"


@cache
def _runtime_operators() -> frozenset[tuple[str, str]]:
    """The operators that onnxruntime defines beyond ONNX's own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return frozenset((schema.domain, schema.name) for schema in state.get_all_operator_schema())
