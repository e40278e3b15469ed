"""Decompositions downwards: an operator that a runtime or an opset lacks, said in older ones.

One function per operator, each in the file of its kind; every one is proved against the operator that
it replaces by running both (``graph/proof.py``). ONNX's own version converter fails on most models
downwards, so the table is ours. What it builds may need a decomposition itself, and gets it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from edgeopt.graph.change import Change
from edgeopt.graph.legalize import activations, arithmetic, attention, normalization, tensors
from edgeopt.graph.legalize.table import Decomposition
from edgeopt.graph.rewriting import rewrite

DECOMPOSITIONS: tuple[Decomposition, ...] = (
    *activations.DECOMPOSITIONS,
    *arithmetic.DECOMPOSITIONS,
    *attention.DECOMPOSITIONS,
    *normalization.DECOMPOSITIONS,
    *tensors.DECOMPOSITIONS,
)


@dataclass
class _Surroundings:
    """What rewriting asks for where there is no pass: everything is allowed."""

    verify: Literal["fast", "full", "off"]
    seed: int = 0

    log: ClassVar[logging.Logger] = logging.getLogger("edgeopt")

    def allow(self, rule: str, site: str) -> bool:
        return True


def legalize(
    model: ir.Model,
    runs: Callable[[str], bool],
    opset: int,
    *,
    verify: Literal["fast", "off"] = "fast",
    seed: int = 0,
) -> Change:
    """Decomposes every operator that is not run, or that the opset lacks, in place.

    The model keeps its opset; operators whose version differs but whose meaning does not are lowered
    afterwards.

    Args:
        model: The model.
        runs: Whether the runtime runs an operator of ai.onnx.
        opset: The opset that the model is to be lowered to.
        verify: ``fast`` proves every decomposition by running it; ``off`` tells only what is possible.
        seed: The seed of the inputs that proofs run on.

    Returns:
        Every decomposition made, and why others were not.
    """
    if model.functions:
        InlinePass()(model)  # what runs in a function is legalized too
    current = model.opset_imports.get("", 0)
    present = {node.op_type for node in model.graph.all_nodes() if node.domain in ("", "ai.onnx")}
    wanted = [item for item in DECOMPOSITIONS if _wanted(item, runs, min(opset, current))]
    if not any(present & item.rule.operators[0] for item in wanted):
        return Change()
    return rewrite(model, [item.rule for item in wanted], _Surroundings(verify, seed))


def _wanted(item: Decomposition, runs: Callable[[str], bool], opset: int) -> bool:
    """Whether a decomposition serves a runtime with this opset."""
    if item.always or opset < item.below:
        return True
    operator = next(iter(item.rule.operators[0]))
    return not runs(operator) or not _exists(operator, opset)


def _exists(operator: str, opset: int) -> bool:
    try:
        onnx.defs.get_schema(operator, opset)
    except onnx.defs.SchemaError:
        return False
    return True
