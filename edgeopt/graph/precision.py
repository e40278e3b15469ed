"""What an engine that is built from a model computes in, where that is chosen when it is built."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

WISH = "edgeopt.engine"
"""The key of a model's metadata that says in which precision its engine is to be built."""

Precision = Literal["float32", "float16", "int8"]


def engine_precision(model: ir.Model) -> Precision:
    """Returns ``int8`` for a quantized model, ``float16`` where that is wished for, else ``float32``."""
    if any(node.op_type == "DequantizeLinear" for node in model.graph.all_nodes()):
        return "int8"
    return "float16" if model.metadata_props.get(WISH) == "float16" else "float32"
