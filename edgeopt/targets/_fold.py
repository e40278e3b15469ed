"""Folding quantized weights and biases to integers, for runtimes that take ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgeopt.graph.quantization import (
    Names,
    QuantParams,
    Site,
    add_initializer,
    drop_initializer,
    fold,
    read,
    strip,
    write,
)

WIDENED = (ir.DataType.INT8, ir.DataType.INT4)
"""Types of weights that Cast widens."""

RECURRENT = ("GRU", "LSTM", "RNN")
"""Operators that compute in float whatever their weights are stored in."""


@dataclass(slots=True)
class Biases:
    """How many biases were folded, and what a user must know."""

    count: int = 0
    notes: list[str] = field(default_factory=list)


def fold_constants(model: ir.Model, *, gathers_blocks: bool = False) -> int:
    """Puts integer initializers in the place of quantized float ones, in place.

    Every reader gets a DequantizeLinear of its own. A table that Gather reads is gathered as integers
    and dequantized afterwards, which computes the same.

    Args:
        model: The model.
        gathers_blocks: The runtime has GatherBlockQuantized (domain com.microsoft), which gathers rows of
            a table of 4-bit blocks.

    Returns:
        How many constants were folded.
    """
    params = read(model)
    constants = {
        where: chain[0]
        for where, chain in params.items()
        if where.value in model.graph.initializers and len(chain) == 1 and chain[0].scale is not None
    }
    strip(model)
    write(model, {where: chain for where, chain in params.items() if where not in constants})
    names = Names(model)
    nodes = {node.name: node for node in model.graph.all_nodes()}
    for where, chain in constants.items():
        value = model.graph.initializers[where.value]
        _fold_one(model, value, where, chain, nodes, names, gathers_blocks)
    return len(constants)


def _fold_one(
    model: ir.Model,
    value: ir.Value,
    where: Site,
    params: QuantParams,
    nodes: dict[str | None, ir.Node],
    names: Names,
    gathers_blocks: bool,
) -> None:
    graph = model.graph
    if where.readers is None:
        readers = [(use.node, use.idx) for use in value.uses()]
    else:
        readers = [(nodes[name], index) for name, index in where.readers if name]
    dequantized = fold(model, value, params, names)
    first = dequantized.producer()
    assert first is not None
    spare: ir.Node | None = first
    for node, index in readers:
        if _gathers(node, index, params) and node.graph is graph:
            node.replace_input_with(0, first.inputs[0])
            _dequantize_rows(graph, node, first, params, names)
            continue
        if _gathers_scales(node, index, params) and node.graph is graph:
            node.replace_input_with(0, first.inputs[0])
            _scale_rows(graph, node, params, names)
            continue
        if gathers_blocks and _gathers_blocks(node, index, params) and node.graph is graph:
            _gather_blocks(model, node, first, params)
            continue
        result = dequantized
        if spare is None:
            twin = ir.Node(
                "",
                "DequantizeLinear",
                list(first.inputs),
                list(first.attributes.values()),
                name=names.node(first.name or ""),
            )
            result = twin.outputs[0]
            result.name = names.value(dequantized.name or "")
            result.type, result.shape = dequantized.type, dequantized.shape
            graph.insert_after(first, twin)
        spare = None
        node.replace_input_with(index, result)
    if not dequantized.uses():
        read_by_it = [item for item in first.inputs[1:] if item is not None]
        graph.remove(first, safe=True)
        for item in read_by_it:
            drop_initializer(graph, item)
    drop_initializer(graph, value)


def _gathers(node: ir.Node, index: int, params: QuantParams) -> bool:
    """Whether a node gathers whole rows of a constant whose scale does not depend on the row."""
    table = node.inputs[0]
    rank = 0 if table is None or table.shape is None else len(table.shape)
    axis = node.attributes.get_int("axis", 0) or 0
    return (
        node.op_type == "Gather"
        and index == 0
        and axis == 0
        and not params.block
        and (params.axis is None or (rank >= 2 and params.axis % rank == rank - 1))
    )


def _gathers_scales(node: ir.Node, index: int, params: QuantParams) -> bool:
    """Whether a node gathers whole rows of a matrix that has a scale per row."""
    table = node.inputs[0]
    return (
        node.op_type == "Gather"
        and index == 0
        and table is not None
        and table.shape is not None
        and len(table.shape) == 2
        and node.attributes.get_int("axis", 0) == 0
        and params.axis == 0
        and params.zero_point is None
        and not params.block
    )


def _scale_rows(graph: ir.Graph, node: ir.Node, params: QuantParams, names: Names) -> None:
    """Gathers each row's scale as well, and multiplies: no DequantizeLinear takes scales like these."""
    rows, where = node.outputs[0], node.inputs[1]
    assert params.scale is not None and where is not None
    scales = ir.tensor(np.ascontiguousarray(params.scale.reshape(-1, 1), np.float32))
    table = add_initializer(graph, names.value(f"{rows.name}_scales"), scales)
    to = ir.AttrInt64("to", ir.DataType.FLOAT.value)
    made = [
        ir.node("Gather", [table, where], {"axis": 0}, name=names.node(f"{rows.name}_gather_scales")),
        ir.Node("", "Cast", [rows], [to], name=names.node(f"{rows.name}_cast")),
    ]
    values = [item.outputs[0] for item in made]
    made.append(ir.node("Mul", [values[1], values[0]], name=names.node(f"{rows.name}_scale")))
    for item in made:
        item.outputs[0].name = names.value(f"{item.name}_output")
        item.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    result = made[-1].outputs[0]
    result.shape = values[1].shape = rows.shape
    for use in tuple(rows.uses()):
        if use.node is not made[1]:
            use.node.replace_input_with(use.idx, result)
    for index, output in enumerate(graph.outputs):
        if output is rows:
            graph.outputs[index] = result
            result.name, rows.name = rows.name, names.value(f"{rows.name}_integers")
    rows.type = ir.TensorType(params.dtype)
    graph.insert_after(node, made)


def _dequantize_rows(
    graph: ir.Graph, node: ir.Node, pattern: ir.Node, params: QuantParams, names: Names
) -> None:
    """Dequantizes what a Gather returns; the scale's axis is the last one there."""
    rows = node.outputs[0]
    attributes = [] if params.axis is None else [ir.AttrInt64("axis", -1)]
    after = ir.Node(
        "",
        "DequantizeLinear",
        [rows, *pattern.inputs[1:]],
        attributes,
        name=names.node(f"{rows.name}_dequantize"),
    )
    result = after.outputs[0]
    result.name, result.type, result.shape = names.value(f"{rows.name}_dequantized"), rows.type, rows.shape
    for use in tuple(rows.uses()):
        if use.node is not after:
            use.node.replace_input_with(use.idx, result)
    for index, output in enumerate(graph.outputs):
        if output is rows:
            graph.outputs[index] = result
            result.name, rows.name = rows.name, names.value(f"{rows.name}_integers")
    rows.type = ir.TensorType(params.dtype)
    graph.insert_after(node, after)


def _gathers_blocks(node: ir.Node, index: int, params: QuantParams) -> bool:
    """Whether a node gathers rows of a matrix whose columns are in blocks of a size that the kernel takes."""
    table = node.inputs[0]
    return (
        node.op_type == "Gather"
        and index == 0
        and table is not None
        and table.shape is not None
        and len(table.shape) == 2
        and node.attributes.get_int("axis", 0) == 0
        and params.dtype == ir.DataType.INT4
        and params.axis == 1
        and params.block >= 16
        and params.block & (params.block - 1) == 0
        and params.zero_point is None
    )


def _gather_blocks(model: ir.Model, node: ir.Node, pattern: ir.Node, params: QuantParams) -> None:
    """Puts GatherBlockQuantized, which gathers and dequantizes at once, in the place of a Gather."""
    integers, scale = pattern.inputs[:2]
    fused = ir.node(
        "GatherBlockQuantized",
        [integers, node.inputs[1], scale],
        {"gather_axis": 0, "quantize_axis": 1, "block_size": params.block},
        domain="com.microsoft",
        name=node.name,
    )
    fused.metadata_props.update(node.metadata_props)
    model.opset_imports.setdefault("com.microsoft", 1)
    old, new = node.outputs[0], fused.outputs[0]
    new.type, new.shape = old.type, old.shape
    new.name, old.name = old.name, f"{old.name}_before"
    model.graph.insert_before(node, fused)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)


def widen_at_load(model: ir.Model) -> int:
    """Lets a runtime dequantize weights once, at load, where their operator computes in float, in place.

    DequantizeLinear of a constant is never folded by onnxruntime, so a recurrent layer or a convolution
    that reads one widens its weights at every call. The same numbers as Cast and Mul are folded.

    Returns:
        How many weights are widened at load.
    """
    graph = model.graph
    names = Names(model)
    count = 0
    for node in list(graph):
        if node.op_type != "DequantizeLinear":
            continue
        integers, scale = node.inputs[0], node.inputs[1]
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        result = node.outputs[0]
        if integers is None or scale is None or scale.const_value is None or integers.const_value is None:
            continue
        if integers.dtype not in WIDENED or not all(_in_float(use.node) for use in result.uses()):
            continue
        if zero is not None and (
            zero.const_value is None or np.any(zero.const_value.numpy().astype(np.int8))
        ):
            continue
        shape = integers.const_value.shape.numpy()
        axis = (node.attributes.get_int("axis", 1) or 0) % max(len(shape), 1)
        block = node.attributes.get_int("block_size", 0) or 0
        if block and shape[axis] % block:
            continue
        nodes = _widening(graph, node, scale.const_value.numpy(), shape, axis, block, names)
        graph.insert_before(node, nodes)
        widened = nodes[-1].outputs[0]
        result.replace_all_uses_with(widened)
        widened.name = names.value(f"{result.name}_widened")
        graph.remove(node, safe=True)
        for constant in (scale, zero):
            if constant is not None:
                drop_initializer(graph, constant)
        count += 1
    return count


def _widening(
    graph: ir.Graph,
    node: ir.Node,
    scale: np.ndarray,
    shape: Sequence[int],
    axis: int,
    block: int,
    names: Names,
) -> list[ir.Node]:
    """Makes the nodes that compute DequantizeLinear of a constant and that a runtime folds."""
    stem, integers = node.name or "", node.inputs[0]
    assert integers is not None
    to = ir.AttrInt64("to", ir.DataType.FLOAT.value)
    made = [ir.Node("", "Cast", [integers], [to], name=names.node(f"{stem}_cast"))]

    def follow(operator: str, name: str, array: np.ndarray) -> None:
        constant = add_initializer(graph, names.value(f"{stem}_{name}"), ir.tensor(array))
        inputs = [made[-1].outputs[0], constant]
        made.append(ir.Node("", operator, inputs, name=names.node(f"{stem}_{operator.lower()}")))

    inner = tuple(shape)
    if block:
        inner = (*shape[:axis], shape[axis] // block, block, *shape[axis + 1 :])
        follow("Reshape", "blocks", np.asarray(inner, np.int64))
        scale = np.expand_dims(scale, axis + 1)
    elif scale.ndim == 1:
        scale = scale.reshape([-1 if index == axis else 1 for index in range(len(shape))])
    follow("Mul", "factors", scale)
    if block:
        follow("Reshape", "shape", np.asarray(shape, np.int64))
    for item, sizes in zip(made, (shape, inner, inner, shape) if block else (shape, shape), strict=True):
        value = item.outputs[0]
        value.name = names.value(f"{item.name}_output")
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(sizes)
    return made


def _in_float(node: ir.Node) -> bool:
    if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        value = node.inputs[0]
        producer = None if value is None else value.producer()
        return producer is None or producer.op_type != "DequantizeLinear"
    return node.op_type in RECURRENT


def fold_biases(model: ir.Model) -> Biases:
    """Turns biases of Conv and Gemm with quantized operands into int32 at scale input x weight, in place.

    Each product gets a bias of its own, since its scale depends on the product's input. A bias that does
    not fit stays float.
    """
    graph = model.graph
    names = Names(model)
    result = Biases()
    for node in list(graph):
        if node.op_type not in ("Conv", "Gemm") or len(node.inputs) < 3:
            continue
        bias = node.inputs[2]
        scales = [_scale(value) for value in node.inputs[:2]]
        if bias is None or not bias.is_initializer() or bias.const_value is None:
            continue
        if scales[0] is None or scales[1] is None or scales[0].size != 1:
            continue
        array = bias.const_value.numpy()
        if array.ndim != 1:
            continue
        scale = (scales[0].reshape(()) * scales[1]).astype(np.float32)
        if scale.ndim and scale.shape != array.shape:
            continue
        if np.any(np.abs(array.astype(np.float64)) > scale.astype(np.float64) * (2**31 - 1)):
            result.notes.append(f"the bias of {node.name} does not fit int32 and stays float")
            continue
        own = add_initializer(graph, names.value(f"{bias.name}_int32"), bias.const_value)
        params = QuantParams(ir.DataType.INT32, scale, None, 0 if scale.ndim else None)
        node.replace_input_with(2, fold(model, own, params, names))
        drop_initializer(graph, own)
        drop_initializer(graph, bias)
        result.count += 1
    return result


def _scale(value: ir.Value | None) -> np.ndarray | None:
    """Returns the constant scale of a dequantized value whose zero point may be anything."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or "block_size" in node.attributes:
        return None
    scale = node.inputs[1]
    return None if scale is None or scale.const_value is None else scale.const_value.numpy()
