"""What the quantizing passes share: the rules to quantize by, and the nodes that they leave alone."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import onnx_ir as ir

from edgeopt.errors import PassError, UserError, nearest
from edgeopt.graph.names import original_names
from edgeopt.graph.quantization import read
from edgeopt.platform import QuantizationRules, RuntimeVersion, load_runtime

ALREADY = "the model comes with quantization of its own, which stays as it is"
"""What is said of such a model."""

OURS = "edgeopt.quantized"
"""The key in a model's ``metadata_props`` that says whose its quantization is."""

KEPT_NARROW = ("QuantizeLinear", "DequantizeLinear", "Cast")
"""What stands between a constant in fewer bits and its readers."""


def quantization_rules(rules: RuntimeVersion | None) -> QuantizationRules:
    """Returns the runtime's rules; without a device, those of onnxruntime's newest versions.

    Raises:
        PassError: The runtime has no integer kernels.
    """
    if rules is None:
        rules = load_runtime("onnxruntime").ranges[0]
    if rules.quantization is None:
        raise PassError("the platform's runtime runs no integer kernels", hint="the scheme float16")
    return rules.quantization


def kept(model: ir.Model, patterns: Sequence[str]) -> list[str]:
    """Returns the names of the nodes that stand for original nodes matching one of the shell patterns.

    Raises:
        UserError: A pattern matches no node.
    """
    originals = {
        node.name or "": original_names(node) or (node.name or "",) for node in model.graph.all_nodes()
    }
    found: set[str] = set()
    for pattern in patterns:
        matching = {
            name
            for name, names in originals.items()
            if any(fnmatchcase(original, pattern) for original in names)
        }
        if not matching:
            every = {original for names in originals.values() for original in names}
            raise UserError(
                f'no node matches keep_float "{pattern}"',
                nearest=nearest(pattern.replace("*", ""), sorted(every)),
                hint="edgeopt inspect MODEL lists the nodes",
            )
        found |= matching
    return [name for name in originals if name in found]


def comes_quantized(model: ir.Model) -> bool:
    """Whether the model came with quantization of its own, which passes leave as it is."""
    return OURS not in model.metadata_props and bool(read(model))


def mark(model: ir.Model) -> None:
    """Notes that quantization which the model gets from here on is ours, so that schemes can be mixed."""
    if not comes_quantized(model):
        model.metadata_props[OURS] = "1"


def settled(model: ir.Model) -> set[str]:
    """Returns the names of the nodes whose constants an earlier pass has quantized or narrowed."""
    return {
        node.name or ""
        for node in model.graph
        if node.op_type not in KEPT_NARROW and any(_narrowed(value) for value in node.inputs)
    }


def _narrowed(value: ir.Value | None) -> bool:
    """Whether a value is a constant that is stored in fewer bits and widened again."""
    start = value
    while value is not None and (node := value.producer()) is not None and node.op_type in KEPT_NARROW:
        value = node.inputs[0]
    return value is not None and value is not start and value.is_initializer()
