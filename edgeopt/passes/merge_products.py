"""Merge products of one value with several constant matrices, as the three of attention are, into one.

    x·A + a,  x·B + b,  x·C + c   =   Split(x·[A B C] + [a b c])

One product of a wider matrix is read once and keeps more of a core busy than several narrow ones. It is
done where it leaves fewer nodes. Quantizing sees one value where there were several, with one range, so
the pass belongs to ``edgeopt optimize`` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.graph.change import NoMatch
from edgeopt.graph.rewriting import (
    Replacement,
    Result,
    another_reader,
    constant,
    initializer,
    node,
    opset,
    rule,
    sole_reader,
)
from edgeopt.graph.shapes import dims
from edgeopt.passes._fusion import Fusion


@dataclass(frozen=True)
class _Product:
    """One of the products: its nodes, weight, bias, and the value that leaves it."""

    nodes: list[ir.Node]
    weight: np.ndarray
    bias: np.ndarray | None
    output: ir.Value


@rule("MatMul|Gemm", name="products of one value")
def merge(anchor: ir.Node) -> Result:
    """Takes all MatMul, or all Gemm, that read what the first of them in the graph reads."""
    x = anchor.inputs[0]
    if x is None or anchor.graph is None or constant(anchor.inputs[1]) is None:
        return None
    attributes = _attributes(anchor)
    alike = [
        use.node
        for use in x.uses()
        if use.idx == 0 and use.node.op_type == anchor.op_type and use.node.graph is anchor.graph
        if _attributes(use.node) == attributes
    ]
    if len(alike) < 2:
        return None
    found = [product for product in map(_product, alike) if product is not None]
    biased = [product for product in found if product.bias is not None]
    products = biased if anchor.op_type == "MatMul" and len(biased) >= 2 else found
    before = sum(len(product.nodes) for product in products)
    if not any(anchor in product.nodes for product in products):
        return None
    shifted = any(product.bias is not None for product in products)
    after = 2 + (shifted and anchor.op_type == "MatMul")
    if before <= after or len({product.weight.dtype for product in products}) > 1:
        return None
    firsts = {product.nodes[0] for product in products}
    if next(item for item in anchor.graph if item in firsts) is not anchor:
        return None
    if any(product.output.is_graph_output() for product in products):
        return NoMatch("one of the products is an output")
    return _merged(anchor, x, products, shifted)


def _product(first: ir.Node) -> _Product | None:
    weight = constant(first.inputs[1])
    if weight is None or weight.ndim != 2 or weight.dtype.kind != "f":
        return None
    if another_reader(first.inputs[1], than=first) is not None:
        return None
    if first.attributes.get_int("transB", 0):
        weight = weight.T
    columns = weight.shape[1]
    if first.op_type == "Gemm":
        if len(first.inputs) < 3 or first.inputs[2] is None:
            return _Product([first], weight, None, first.outputs[0])
        bias = constant(first.inputs[2])
        fits = bias is not None and bias.size in (1, columns) and (bias.ndim < 2 or bias.shape[-1] == columns)
        row = np.broadcast_to(bias.reshape(-1), columns) if bias is not None and fits else None
        return None if row is None else _Product([first], weight, row, first.outputs[0])
    add = sole_reader(first.outputs[0])
    if add is not None and add.op_type == "Add":
        other = add.inputs[1] if add.inputs[0] is first.outputs[0] else add.inputs[0]
        bias = constant(other)
        if bias is not None and bias.shape == (columns,):
            return _Product([first, add], weight, bias, add.outputs[0])
    return _Product([first], weight, None, first.outputs[0])


def _merged(anchor: ir.Node, x: ir.Value, products: list[_Product], shifted: bool) -> Result:
    rank = len(dims(anchor.outputs[0]) or ())
    if not rank or opset(anchor) < 7:
        return NoMatch("the rank of the product is not known")
    weights = [product.weight for product in products]
    sizes = [weight.shape[1] for weight in weights]
    together = np.concatenate(weights, axis=1)
    if anchor.attributes.get_int("transB", 0):
        together = together.T
    wide = initializer(f"{anchor.name}.weight", np.ascontiguousarray(together))
    rows = [
        np.zeros(size, together.dtype) if product.bias is None else product.bias
        for product, size in zip(products, sizes, strict=True)
    ]
    shift = initializer(f"{anchor.name}.bias", np.concatenate(rows)) if shifted else None
    if anchor.op_type == "Gemm":
        inputs = [x, wide] if shift is None else [x, wide, shift]
        last = ir.Node("", "Gemm", inputs, list(anchor.attributes.values()))
    else:
        last = node("MatMul", [x, wide])
        last = last if shift is None else node("Add", [last.outputs[0], shift])
    attributes: dict[str, object] = {"axis": rank - 1}
    parts: list[ir.Value | None] = [last.outputs[0]]
    if opset(anchor) < 13:
        attributes["split"] = sizes
    else:
        parts.append(initializer(f"{anchor.name}.sizes", np.array(sizes, np.int64)))
    split = ir.node("Split", parts, attributes, num_outputs=len(products))
    values = {product.output: split.outputs[place] for place, product in enumerate(products)}
    return Replacement(values, [item for product in products for item in product.nodes])


def _attributes(item: ir.Node) -> tuple[float, ...]:
    names = ("transA", "transB")
    numbers = [item.attributes.get_int(name, 0) for name in names]
    return (*numbers, *(item.attributes.get_float(name, 1.0) for name in ("alpha", "beta")))


@dataclass(frozen=True)
class MergeProducts(Fusion):
    """Merge products of one value with several constant matrices into one, and split its result."""

    name: ClassVar[str] = "merge-products"
    patterns = (merge,)
