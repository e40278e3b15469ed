"""A stable text form of a model, for tests and for reading a difference line by line.

One line a node, in order; values are numbered as they appear, so the text does not change with the
names that rewriting makes up. Inputs, outputs and constants keep their names. Constants of up to eight
elements show their values, larger ones a checksum.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

SHOWN = 8
"""Constants of up to this many elements are written out."""


def to_text(model: ir.Model) -> str:
    """Writes a model as text: the same graph gives the same text, whatever its inner names are."""
    opsets = [f"{domain or 'ai.onnx'}:{version}" for domain, version in sorted(model.opset_imports.items())]
    lines = [f"opset {' '.join(opsets)}"]
    lines += _graph(model.graph, {}, "")
    for _, function in sorted(model.functions.items()):
        names = {value: f"%{index}" for index, value in enumerate(function.inputs)}
        options = ", ".join(
            f"{name}={_attribute(item)}" if item.value is not None else name
            for name, item in sorted(function.attributes.items())
        )
        given = f"{f'<{options}>' if options else ''}({', '.join(names.values())})"
        lines.append(f"function {function.domain}.{function.name}{given}")
        for domain, version in sorted(function.opset_imports.items()):
            lines.append(f"  opset {domain or 'ai.onnx'}:{version}")
        lines += _nodes(function, names, "  ")
        lines.append(f"  return {', '.join(names.get(value, '?') for value in function.outputs)}")
    return "\n".join(lines) + "\n"


def _graph(graph: ir.Graph, outer: dict[ir.Value, str], indent: str) -> list[str]:
    names = dict(outer)
    lines = []
    for value in graph.inputs:
        names[value] = value.name or f"%{len(names)}"
        lines.append(f"{indent}input {names[value]} {_type(value)}")
    for name, value in sorted(graph.initializers.items()):
        names[value] = name
        lines.append(f"{indent}constant {name} {_constant(value.const_value)}")
    for value in graph.outputs:
        if value not in names:
            names[value] = value.name or "?"
    lines += _nodes(graph, names, indent)
    for value in graph.outputs:
        lines.append(f"{indent}output {names[value]} {_type(value)}")
    return lines


def _nodes(graph: ir.Graph | ir.Function, names: dict[ir.Value, str], indent: str) -> Iterator[str]:
    for node in graph:
        for value in node.outputs:
            if value not in names:
                names[value] = f"%{len(names)}"
        inputs = ", ".join("-" if value is None else names.get(value, "?") for value in node.inputs)
        outputs = ", ".join(names[value] for value in node.outputs)
        domain = f"{node.domain}." if node.domain else ""
        plain, graphs = [], []
        for name, attribute in sorted(node.attributes.items()):
            if attribute.type == ir.AttributeType.GRAPH:
                graphs.append((name, attribute.as_graph()))
            else:
                plain.append(f"{name}={_attribute(attribute)}")
        options = f"<{', '.join(plain)}>" if plain else ""
        yield f"{indent}{outputs} = {domain}{node.op_type}{options}({inputs})"
        for name, inner in graphs:
            yield f"{indent}  {name}:"
            yield from _graph(inner, names, indent + "    ")


def _attribute(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    if attribute.type == ir.AttributeType.TENSOR:
        return _constant(attribute.as_tensor())
    if isinstance(attribute.value, float):
        return f"{attribute.value:.6g}"
    if isinstance(attribute.value, (tuple, list)):
        return f"[{', '.join(f'{v:.6g}' if isinstance(v, float) else str(v) for v in attribute.value)}]"
    return str(attribute.value)


def _type(value: ir.Value) -> str:
    dtype = "?" if value.dtype is None else value.dtype.name.lower()
    if value.shape is None:
        return dtype
    return f"{dtype}[{', '.join(str(getattr(size, 'value', size) or '?') for size in value.shape)}]"


def _constant(tensor: ir.TensorProtocol | None) -> str:
    if tensor is None:
        return "?"
    head = f"{tensor.dtype.name.lower()}[{', '.join(str(size) for size in tensor.shape.numpy())}]"
    if tensor.dtype == ir.DataType.STRING:
        return head
    array = tensor.numpy()
    if array.size <= SHOWN:
        return f"{head} {{{', '.join(f'{item:.6g}' for item in np.asarray(array, np.float64).ravel())}}}"
    return f"{head} crc {zlib.crc32(np.ascontiguousarray(array).tobytes()):08x}"
