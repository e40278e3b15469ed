"""What the quantizing passes share: the rules to quantize by, and the nodes that the user keeps in float."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import onnx_ir as ir

from edgeopt.errors import PassError, UserError, nearest
from edgeopt.graph.names import original_names
from edgeopt.platform import QuantizationRules, RuntimeVersion, load_runtime


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
