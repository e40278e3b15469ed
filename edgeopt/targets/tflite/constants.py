"""Making a model static: shapes fixed, everything that can be known now computed now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from edgeopt.errors import UserError, nearest
from edgeopt.graph.execute import Executor
from edgeopt.graph.shapes import infer_shapes

RANDOM = {
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
}
LARGEST = 1 << 24
"""Constants of more elements are left to be computed at run time, unless they shrink their input."""


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Reads shapes given as ``NAME=1,3,224,224``.

    Raises:
        UserError: One of them cannot be read.
    """
    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, sizes = text.partition("=")
        try:
            found[name] = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            raise UserError(f"{text!r} is no shape", hint="--shape NAME=1,3,224,224") from None
    return found


def fix_shapes(model: ir.Model, shapes: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, int]:
    """Makes the graph inputs static in place: given shapes first, then one sample a call.

    An open first dimension becomes 1, and so does every other that bears its name. Further open
    dimensions stay open; the nodes that meet them are then refused.

    Returns:
        The sizes of the named dimensions that were fixed.

    Raises:
        UserError: A shape is given for no input, or does not fit it.
    """
    graph = model.graph
    names = [value.name or "" for value in graph.inputs]
    for name in shapes or {}:
        if name not in names:
            raise UserError(f"the model has no input {name!r}", nearest=nearest(name, names))
    known: dict[str, int] = {}
    for value in graph.inputs:
        dims = list(value.shape or ())
        given = (shapes or {}).get(value.name or "")
        if given is not None and len(given) != len(dims):
            raise UserError(f"{value.name!r} has {len(dims)} dimensions, the shape given {len(given)}")
        for axis, dim in enumerate(dims):
            if isinstance(dim, int):
                continue
            if given is not None:
                dims[axis] = given[axis]
            elif axis == 0:
                dims[axis] = known.get(str(dim.value), 1)
            if isinstance(dims[axis], int) and dim.value:
                known.setdefault(str(dim.value), dims[axis])  # type: ignore[arg-type]
        value.shape = ir.Shape(dims)
    for value in graph.inputs:
        dims = [dim if isinstance(dim, int) else known.get(str(dim.value), dim) for dim in value.shape or ()]
        value.shape = ir.Shape(dims)
    return known


def make_static(model: ir.Model, shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
    """Fixes shapes, inlines functions and computes what is constant, in place."""
    InlinePass()(model)
    fix_shapes(model, shapes)
    for value in (*model.graph.outputs, *(output for node in model.graph for output in node.outputs)):
        value.shape = None
    lift(model)
    for _ in range(32):
        infer_shapes(model)
        if not fold(model):
            break
    RemoveUnusedNodesPass()(model)


def lift(model: ir.Model) -> None:
    """Makes Constant nodes initializers, in place."""
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def refresh(model: ir.Model) -> None:
    """Infers the shapes of new values and computes new constants, in place."""
    lift(model)
    for _ in range(8):
        settle(model)
        if not fold(model):
            break
    RemoveUnusedNodesPass()(model)


def settle(model: ir.Model) -> None:
    """Infers types and shapes in place, where some value of the main graph lacks its own."""
    for node in model.graph:
        for value in node.outputs:
            if value.name and (value.type is None or value.shape is None or not value.shape.is_static()):
                infer_shapes(model)
                return


def fold(model: ir.Model) -> bool:
    """Computes the nodes that depend on constants and static shapes alone; returns whether any did.

    A DequantizeLinear stays, as does a Cast from float16: they are how a stored constant is written.
    """
    graph = model.graph
    changed = _fold_shapes(graph)
    known = {value for value in graph.initializers.values() if value.const_value is not None}
    chosen: list[ir.Node] = []
    for node in graph:
        if not _foldable(node, known):
            continue
        chosen.append(node)
        known.update(node.outputs)
    if not chosen:
        return changed
    inside = set(chosen)
    wanted = [
        output
        for node in chosen
        for output in node.outputs
        if output.name
        and (output.is_graph_output() or any(usage.node not in inside for usage in output.uses()))
    ]
    if not wanted:
        return changed
    arrays = _compute(model, chosen, wanted)
    for value in wanted:
        array = arrays[value.name or ""]
        _replace(graph, value, array)
    graph.remove(chosen, safe=True)
    return True


def _fold_shapes(graph: ir.Graph) -> bool:
    changed = False
    for node in list(graph):
        if node.op_type not in ("Shape", "Size") or node.inputs[0] is None:
            continue
        shape = node.inputs[0].shape
        if shape is None or not all(isinstance(dim, int) for dim in shape):
            continue
        sizes = np.array([int(dim) for dim in shape], np.int64)  # type: ignore[arg-type]
        if node.op_type == "Size":
            sizes = np.array(np.prod(sizes), np.int64)
        else:
            start = node.attributes["start"].as_int() if "start" in node.attributes else 0
            end = node.attributes["end"].as_int() if "end" in node.attributes else len(sizes)
            sizes = sizes[start:end]
        _replace(graph, node.outputs[0], sizes)
        graph.remove(node, safe=True)
        changed = True
    return changed


def _foldable(node: ir.Node, known: set[ir.Value]) -> bool:
    if node.op_type in RANDOM or node.op_type == "DequantizeLinear" or node.domain not in ("", "ai.onnx"):
        return False
    if any(
        attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values()
    ):
        return False
    if not all(value is None or value in known for value in node.inputs):
        return False
    first = node.inputs[0] if node.inputs else None
    return not (node.op_type == "Cast" and first is not None and first.dtype == ir.DataType.FLOAT16)


def _compute(model: ir.Model, nodes: Sequence[ir.Node], wanted: Sequence[ir.Value]) -> dict[str, np.ndarray]:
    """Runs some nodes that need nothing but initializers."""
    values: dict[ir.Value, ir.Value] = {}
    initializers: list[ir.Value] = []
    copies: list[ir.Node] = []
    for node in nodes:
        inputs: list[ir.Value | None] = []
        for value in node.inputs:
            if value is not None and value not in values:
                copy = ir.Value(
                    name=value.name, shape=value.shape, type=value.type, const_value=value.const_value
                )
                values[value] = copy
                initializers.append(copy)
            inputs.append(None if value is None else values[value])
        made = ir.node(
            node.op_type, inputs, num_outputs=len(node.outputs), domain=node.domain, name=node.name
        )
        made.attributes.update(node.attributes)
        for old, new in zip(node.outputs, made.outputs, strict=True):
            new.name, new.type = old.name, old.type
            values[old] = new
        copies.append(made)
    graph = ir.Graph(
        [],
        [values[value] for value in wanted],
        nodes=copies,
        initializers=initializers,
        opset_imports=dict(model.graph.opset_imports),
        name="constants",
    )
    with Executor(ir.Model(graph, ir_version=model.ir_version)) as executor:
        return executor.run({})


def _replace(graph: ir.Graph, value: ir.Value, array: np.ndarray) -> None:
    """Lets an initializer stand for a computed value."""
    name = value.name or "constant"
    value.name = f"{name}/computed"
    made = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(array, name=name),
    )
    value.replace_all_uses_with(made, replace_graph_outputs=True)
    graph.register_initializer(made)
