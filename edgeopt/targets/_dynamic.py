"""Products with ranges computed at run time, in the form that onnxruntime runs in one kernel.

    DynamicQuantizeLinear -> DequantizeLinear -> MatMul or Gemm <- DequantizeLinear <- int8 weight

becomes DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul by both scales -> Add of the bias, since
onnxruntime computes the first form in float as soon as there is a bias. The weight is shifted to uint8
with zero point 128: products of two unsigned bytes do not saturate on any host.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.names import carry_names
from edgeopt.graph.quantization import Names, add_initializer, drop_initializer


def expand_dynamic(model: ir.Model) -> int:
    """Rewrites all dynamic products with constant weights, in place; returns how many."""
    names = Names(model)
    count = 0
    for node in list(model.graph):
        if node.op_type in ("MatMul", "Gemm") and (found := _operands(node)) is not None:
            _expand(model.graph, node, *found, names)
            count += 1
    return count


def _operands(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """Returns the DynamicQuantizeLinear before a product, and the DequantizeLinear of its weight."""
    widened = node.inputs[0].producer() if node.inputs[0] is not None else None
    weight = node.inputs[1].producer() if node.inputs[1] is not None else None
    if widened is None or widened.op_type != "DequantizeLinear":
        return None
    if weight is None or weight.op_type != "DequantizeLinear":
        return None
    source = widened.inputs[0].producer() if widened.inputs[0] is not None else None
    if source is None or source.op_type != "DynamicQuantizeLinear":
        return None
    integers, zero = weight.inputs[0], weight.inputs[2] if len(weight.inputs) > 2 else None
    scale = weight.inputs[1]
    if integers is None or integers.const_value is None or integers.dtype != ir.DataType.INT8:
        return None
    if len(integers.const_value.shape) != 2 or len(integers.uses()) > 1 or "block_size" in weight.attributes:
        return None
    if scale is None or scale.const_value is None:
        return None
    if zero is not None and (zero.const_value is None or np.any(zero.const_value.numpy())):
        return None
    if scale.const_value.size > 1:
        axis = weight.attributes["axis"].as_int() if "axis" in weight.attributes else 1
        if axis % 2 != (0 if _transposed(node) else 1):
            return None
    return source, weight


def _transposed(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and "transB" in node.attributes and bool(node.attributes["transB"].as_int())


def _expand(graph: ir.Graph, node: ir.Node, source: ir.Node, weight: ir.Node, names: Names) -> None:
    integers, scale = weight.inputs[0], weight.inputs[1]
    assert integers is not None and integers.const_value is not None
    assert scale is not None and scale.const_value is not None
    tensor, transposed, stem = integers.const_value, _transposed(node), node.name or node.op_type
    rows, columns = tensor.shape.numpy()

    def shifted() -> ir.TensorProtocol:
        array = (tensor.numpy().astype(np.int16) + 128).astype(np.uint8)
        return ir.tensor(np.ascontiguousarray(array.T if transposed else array))

    shape = ir.Shape([columns, rows] if transposed else [rows, columns])
    lazy = ir.LazyTensor(shifted, dtype=ir.DataType.UINT8, shape=shape)
    constants = [
        add_initializer(graph, names.value(f"{stem}_weight"), lazy),
        add_initializer(graph, names.value(f"{stem}_weight_zero_point"), ir.tensor(np.uint8(128))),
        add_initializer(graph, names.value(f"{stem}_weight_scale"), ir.tensor(scale.const_value.numpy())),
    ]
    product = ir.node(
        "MatMulInteger", [source.outputs[0], constants[0], source.outputs[2], constants[1]], name=stem
    )
    cast = ir.node("Cast", product.outputs, {"to": ir.DataType.FLOAT.value})
    scales = ir.node("Mul", [source.outputs[1], constants[2]])
    scaled = ir.node("Mul", [cast.outputs[0], scales.outputs[0]])
    nodes = [product, cast, scales, scaled]
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        nodes.append(ir.node("Add", [scaled.outputs[0], node.inputs[2]]))
    for new in nodes:
        new.name = names.node(f"{stem}_{new.op_type.lower()}")
        new.outputs[0].name = names.value(f"{stem}_{new.op_type.lower()}_output")
        carry_names([node], new)
    last, output = nodes[-1].outputs[0], node.outputs[0]
    last.type, last.shape = output.type, output.shape
    graph.insert_before(node, nodes)
    for index, value in enumerate(graph.outputs):
        if value is output:
            graph.outputs[index] = last
            last.name, output.name = output.name, names.value(f"{stem}_replaced")
    output.replace_all_uses_with(last)
    widened = node.inputs[0].producer() if node.inputs[0] is not None else None
    graph.remove(node, safe=True)
    for left in (weight, widened):
        if left is None or left.outputs[0].uses() or left.outputs[0].is_graph_output():
            continue
        inputs = [value for value in left.inputs if value is not None]
        graph.remove(left, safe=True)
        for value in inputs:
            drop_initializer(graph, value)
