"""Which rewrite broke a model, and where two models part.

``bisect`` runs the exact passes up to the n-th rewrite, for ever closer n. Every rewrite asks the same
counter first, in a fixed order (as LLVM's opt-bisect-limit does), so the first n of them can be had alone.
Proofs are off meanwhile: what is looked for is what they would have stopped.

``part`` takes an original and what became of it, runs both on the same inputs, and names the first layer
whose values differ, the layer that adds most noise of its own, and the passes that rewrote these layers, as
far as the ledger of an artifact tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from edgeopt.diff import TensorDifference, diff
from edgeopt.graph import proof
from edgeopt.graph.change import Change, Rewrite
from edgeopt.graph.execute import Feeds
from edgeopt.graph.names import original_names
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


@dataclass(frozen=True, slots=True)
class Touch:
    """A rewrite of a layer, as a ledger tells it.

    Attributes:
        step: The pass.
        rule: The rule.
        site: Where it was anchored.
    """

    step: str
    rule: str
    site: str


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer at which two models part.

    Attributes:
        tensor: How its value differs.
        added: The noise that it adds over its inputs', as a share of its signal's energy.
        touched: The rewrites that made it what it is, in order.
    """

    tensor: TensorDifference
    added: float
    touched: tuple[Touch, ...] = ()


@dataclass(frozen=True, slots=True)
class Parting:
    """Where two models part.

    Attributes:
        compared: How many values both have.
        first: The first layer whose value differs by more than the tolerance, in the original's order.
        costliest: The layer that adds most noise; ``None`` where none differs.
        losses: Per pass the fidelity that it left, in dB, as far as the ledger measured it, in order.
        outputs: Per output its signal over noise, in dB.
    """

    compared: int
    first: Layer | None
    costliest: Layer | None
    losses: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, float] = field(default_factory=dict)

    @property
    def culprit(self) -> str:
        """The pass after which most noise was there that was not there before; "" where none was measured."""
        noise, worst, name = 0.0, 0.0, ""
        for step, fidelity in self.losses.items():
            now = 10 ** (-fidelity / 10)
            if now - noise > worst:
                worst, name = now - noise, step
            noise = now
        return name


def part(
    one: ir.Model,
    other: ir.Model,
    samples: Sequence[Feeds],
    tolerance: float = 1e-4,
    ledger: Sequence[Mapping[str, Any]] = (),
) -> Parting:
    """Finds where the values of two models part.

    Args:
        one: The original, which counts as right.
        other: What became of it; its nodes carry original names.
        samples: Inputs of calls, by name.
        tolerance: The largest deviation that counts as none, relative to a value's largest magnitude.
        ledger: The steps of the other's ledger.

    Raises:
        ModelError: The models have other inputs.
        RuntimeFailure: A model does not run on these inputs.
    """
    found = diff(one, other, samples)
    noise: dict[str, float] = {}
    readers = {node.name: node for node in one.graph}
    layers: list[tuple[TensorDifference, float]] = []
    for tensor in found.tensors:
        node = readers.get(tensor.node)
        read = [] if node is None else [value.name or "" for value in node.inputs if value is not None]
        noise[tensor.tensor] = 0.0 if tensor.equal else 10 ** (-tensor.snr / 10)
        before = max((noise.get(name, 0.0) for name in read), default=0.0)
        layers.append((tensor, max(0.0, noise[tensor.tensor] - before)))
    differing = [item for item in layers if not item[0].relative <= tolerance]
    first = differing[0] if differing else None
    costliest = max(differing, key=lambda item: item[1], default=None)
    names = [frozenset(original_names(node)) for node in other.graph]
    losses = {
        str(step["pass"]): float(step["figures"]["fidelity"]["value"])
        for step in ledger
        if "fidelity" in step.get("figures", {})
    }
    return Parting(
        compared=len(found.tensors),
        first=None if first is None else Layer(*first, _touched(first[0], names, ledger)),
        costliest=None if costliest is None else Layer(*costliest, _touched(costliest[0], names, ledger)),
        losses=losses,
        outputs=found.outputs,
    )


def _touched(
    tensor: TensorDifference, others: Sequence[frozenset[str]], ledger: Sequence[Mapping[str, Any]]
) -> tuple[Touch, ...]:
    """The rewrites of a layer, and of what was fused with it."""
    own = {*tensor.original, tensor.node}
    names = own.union(*(group for group in others if own & group))
    return tuple(
        Touch(str(step["pass"]), item.rule, item.site)
        for step in ledger
        for item in Change.from_json(step["change"]).rewrites
        if names & {item.site, *item.replaced}
    )
