"""Which rewrite broke a model: the exact passes are run up to the n-th rewrite, for ever closer n.

Every rewrite asks the same counter first, in a fixed order (as LLVM's opt-bisect-limit does), so the first
n of them can be had alone. Proofs are off meanwhile: what is looked for is what they would have stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgeopt.graph import proof
from edgeopt.graph.change import Change, Rewrite
from edgeopt.optimization import STANDARD, exact_passes
from edgeopt.passes.base import Context


@dataclass(frozen=True, slots=True)
class Culprit:
    """What bisecting found.

    Attributes:
        total: How many rewrites the passes ask for.
        number: The first that makes the model differ, from 1; 0 where the whole does not differ.
        step: Its pass.
        rewrite: The rewrite; ``None`` where a pass did it without a rewrite of its own.
        error: How far the outputs differ with it, relative to their largest magnitude.
        reason: The same in words.
    """

    total: int
    number: int = 0
    step: str = ""
    rewrite: Rewrite | None = None
    error: float = 0.0
    reason: str = ""


def bisect(
    model: ir.Model, steps: Sequence[str] = STANDARD, tolerance: float = 1e-4, seed: int = 0
) -> Culprit:
    """Finds the first rewrite with which the outputs on seeded inputs differ.

    Args:
        model: The model; it is not changed.
        steps: Names of exact passes, in order.
        tolerance: The difference that counts, relative to the largest magnitude of an output.
        seed: The seed of the inputs.

    Raises:
        UserError: A pass is unknown or not exact.
        RuntimeFailure: The model does not run on seeded inputs.
    """
    rewritten, _, total = _up_to(model, steps, None, seed)
    difference = proof.compare_models(model, rewritten, seed)
    if difference.error <= tolerance:
        return Culprit(total, error=difference.error)
    good, bad = 0, total
    while bad - good > 1:
        middle = (good + bad) // 2
        rewritten, _, _ = _up_to(model, steps, middle, seed)
        found = proof.compare_models(model, rewritten, seed)
        if found.error <= tolerance:
            good = middle
        else:
            bad, difference = middle, found
    _, without, _ = _up_to(model, steps, good, seed)
    _, changes, _ = _up_to(model, steps, bad, seed)
    for (name, change), (_, before) in zip(changes, without, strict=True):
        more = [item for item in change.rewrites if item not in before.rewrites]
        if more:
            return Culprit(total, bad, name, more[0], difference.error, difference.reason)
    return Culprit(total, bad, "", None, difference.error, difference.reason)


def _up_to(
    model: ir.Model, steps: Sequence[str], limit: int | None, seed: int
) -> tuple[ir.Model, list[tuple[str, Change]], int]:
    """Runs the passes with the first ``limit`` rewrites; the model, the changes, how many were asked for."""
    result, changes, asked = model.clone(), [], 0
    for item in exact_passes(steps):
        left = None if limit is None else max(0, limit - asked)
        context = Context(reads=item.reads, seed=seed, verify="off", limit=left)
        changes.append((item.name, item.apply(result, context)))
        asked += context.allowed if left is None else min(context.allowed, left)
    return result, changes, asked
