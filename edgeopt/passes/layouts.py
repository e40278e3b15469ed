"""Move transposes to where they cost least, and let those that meet cancel.

Models of frameworks that keep channels last, and networks that change the order of axes for one operator,
are full of transposes around operators that do not care. The engine is ``graph/layout.py``, which also
chooses the layouts of the TFLite target: each value is left in some order of its axes, a Transpose of the
model only renames them, and a move is paid for wherever a value is read in another order than it was left
in. Which orders an operator can compute in is said in ``_layout_offers``.

The cost is elements moved, with a charge for each operator. The graph changes only where it falls, and the
whole model is then compared on seeded inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt.errors import RuntimeFailure
from edgeopt.graph import proof
from edgeopt.graph.change import Change, Rewrite, Skipped
from edgeopt.graph.layout import OVERHEAD, assign, identity, moves_only_units, shape_of
from edgeopt.graph.names import original_names
from edgeopt.graph.rewriting import constant, prepare
from edgeopt.passes._layout_offers import (
    BROADCAST,
    ELEMENTWISE,
    REDUCE,
    axes_of,
    is_move,
    offer,
    order_of,
    rank_of,
    steps_of,
)
from edgeopt.passes._layout_rebuild import Rebuild
from edgeopt.passes.base import Context, Pass, Stage

RULE = "layouts with the least transposes"

_MEETING = {"Transpose", "Concat", "Split"}
"""Where moving a transpose may pay."""


@dataclass(frozen=True)
class Layouts(Pass):
    """Move transposes to where they cost least, and let those that meet cancel."""

    name: ClassVar[str] = "layouts"
    stage: ClassVar[Stage] = "schedule"

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Edits the model in place."""
        change = Change(summary="none", notes=prepare(model))
        before = _cost(model.graph)
        moving = [node for node in model.graph if is_move(node)]
        if not _may_gain(moving):
            return change
        original = model.clone()
        steps = steps_of(model.graph)
        try:
            found = assign(
                steps,
                lambda number, is_input, index, layout: offer(steps[number], is_input, index, layout),
                inputs=[value for value in model.graph.inputs if constant(value) is None],
                constant=lambda value: constant(value) is not None,
                fixed={value.name or "": identity(rank_of(value)) for value in model.graph.inputs},
            )
        except ValueError as failure:
            change.skipped.append(Skipped(RULE, "", str(failure)))
            return change
        site = (original_names(moving[0]) or (moving[0].name or "",))[0]
        if found.moved >= before:
            change.skipped.append(Skipped(RULE, site, f"no order moves less than {before} elements"))
            return change
        if not context.allow(RULE, site):
            return change
        names = tuple(dict.fromkeys(name for node in moving for name in original_names(node)))
        reduces = [step.node for step in steps if step.node is not None and step.node.op_type in REDUCE]
        rebuild = Rebuild(model, found, steps, {node: axes_of(node) or [] for node in reduces})
        rebuild.run()
        reason, error = "", None
        if context.verify != "off":
            reason, error = _compared(original, model, context.seed)
        if reason:
            model.graph = original.graph
            change.skipped.append(Skipped(RULE, site, reason))
            change.notes.append(f"the transposes stay where they were: {reason}")
            return change
        left = sum(node.op_type == "Transpose" for node in model.graph)
        change.rewrites.append(Rewrite(RULE, site, names, error))
        change.details = {"moved_before": before, "moved": found.moved}
        change.summary = f"{len(moving)} -> {left} transposes, {before} -> {found.moved} elements moved"
        return change


def _cost(graph: ir.Graph) -> int:
    """What the transposes of a graph move, in elements, with the charge for each."""
    total = 0
    for node in graph:
        source = node.inputs[0] if is_move(node) else None
        if source is None or constant(source) is not None:
            continue
        shape, order = shape_of(source), order_of(node)
        total += OVERHEAD
        if not shape or not moves_only_units(shape, identity(len(shape)), order):
            total += int(np.prod(shape, dtype=np.int64))
    return total


def _may_gain(moving: Sequence[ir.Node]) -> bool:
    """Whether a transpose can reach another, or an operator behind which there is less to move."""
    for start in moving:
        seen, todo = {start}, [start]
        while todo:
            node = todo.pop()
            near = [value.producer() for value in node.inputs if value is not None]
            near += [use.node for value in node.outputs for use in value.uses()]
            for other in near:
                if other is None or other in seen or other.graph is not start.graph:
                    continue
                seen.add(other)
                if other.op_type in _MEETING or other.op_type in REDUCE:
                    return True
                if other.op_type in ELEMENTWISE or other.op_type in BROADCAST:
                    todo.append(other)
    return False


def _compared(original: ir.Model, model: ir.Model, seed: int) -> tuple[str, float | None]:
    if proof.model_bytes(original) > proof.WHOLE_MODEL:
        return "unproved: the whole model is above 1 GiB", None
    try:
        difference = proof.compare_models(original, model, seed)
    except RuntimeFailure as failure:
        return f"unproved: {failure.message}", None
    return difference.reason, difference.error
