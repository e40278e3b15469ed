"""Raising a model to a later opset of ai.onnx.

The conversion itself is ONNX's version converter, on the graph without its large weights; it is proved
by running both models on the same seeded inputs.
"""

from __future__ import annotations

import json

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from edgeopt.errors import RuntimeFailure
from edgeopt.graph import names, proof, shapes

TARGET = 21
"""The opset that passes are written for: the first whose QuantizeLinear knows int4, int16 and blocks."""

IR_VERSION = 10
"""The IR version that belongs to opset 21."""


def raise_opset(model: ir.Model, version: int = TARGET, seed: int = 0) -> tuple[ir.Model, str | None]:
    """Raises a model to an opset of ai.onnx, and proves that it computes the same.

    Args:
        model: The model; it is not changed. A model at or above the version is returned as it is.
        version: The opset wanted.
        seed: The seed of the inputs that the proof runs on.

    Returns:
        The raised model, and ``None`` or a sentence where it could not be proved; or the model given itself,
        and why it stays.
    """
    current = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    if current >= version:
        return model, None
    stays = f"the model stays at opset {current}"
    if model.functions:
        inlined = model.clone()
        InlinePass()(inlined)
        model_in = inlined
    else:
        model_in = model.clone()
    names.name_nodes(model_in)
    try:
        converted = onnx.version_converter.convert_version(_prepared(model_in), version)
    except Exception as failure:  # the converter raises RuntimeError, ValueError and its own classes
        return model, f"{stays}: ONNX's converter fails: {_reason(failure)}"
    raised = _restore(ir.from_proto(converted), model_in)
    shapes.infer_shapes(raised)
    if proof.model_bytes(model) > proof.WHOLE_MODEL:
        return (
            raised,
            f"the model was raised to opset {version} unproved: above 1 GiB it is not run",
        )
    try:
        difference = proof.compare_models(model, raised, seed)
    except RuntimeFailure as failure:
        return model, f"{stays}: the raised model could not be proved equal: {failure.message}"
    if difference.reason:
        return model, f"{stays}: the raised model computes something else ({difference.reason})"
    return raised, None


def _prepared(model: ir.Model) -> onnx.ModelProto:
    """The model as the converter wants it: IR version 3 at least, every initializer named as it is."""
    proto = shapes.without_weights(model)
    proto.ir_version = max(proto.ir_version, 4)
    return proto


def _restore(raised: ir.Model, original: ir.Model) -> ir.Model:
    """Puts back what the conversion lost: weights, signature, metadata, original names."""
    graph = raised.graph
    given = {value.name for value in original.graph.inputs}
    for name, value in original.graph.initializers.items():
        twin = next((item for item in graph.inputs if item.name == name), None)
        if twin is None or value.const_value is None:
            continue
        if name not in given:
            graph.inputs.remove(twin)
        twin.const_value = value.const_value
        graph.register_initializer(twin)
    known = {node.name: node for node in names.all_nodes(original)}
    makers = {output.name: node for node in names.all_nodes(original) for output in node.outputs}
    for node in names.all_nodes(raised):
        source = makers.get(next((output.name for output in node.outputs if output.name), None))
        source = source or known.get(node.name)
        if source is not None:
            node.metadata_props.update(source.metadata_props)
            if node.name != source.name:
                node.name = source.name if not node.name else node.name
            names.carry_names([source], node)
    for node in names.all_nodes(raised):
        if names.ORIGINAL_NAMES not in node.metadata_props:
            near = _origin(node)
            node.metadata_props[names.ORIGINAL_NAMES] = json.dumps(list(near))
    names.name_nodes(raised)
    raised.ir_version = max(raised.ir_version, IR_VERSION)
    raised.producer_name, raised.producer_version = original.producer_name, original.producer_version
    raised.metadata_props.update(original.metadata_props)
    return raised


def _origin(node: ir.Node) -> tuple[str, ...]:
    """The original names that a node inserted by the converter belongs to: those of the next one known."""
    seen = {node}
    todo = list(node.outputs)
    while todo:
        for reader in todo.pop(0).consumers():
            if names.ORIGINAL_NAMES in reader.metadata_props:
                return names.original_names(reader)
            if reader not in seen:
                seen.add(reader)
                todo.extend(reader.outputs)
    return ()


def _reason(failure: BaseException) -> str:
    lines = str(failure).strip().splitlines()
    return lines[-1] if lines else type(failure).__name__
