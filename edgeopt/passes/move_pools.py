"""Move max pooling in front of leaky ReLUs that run in integers.

For f that never falls

    MaxPool(f(x)) = f(MaxPool(x)),

bit by bit, padding included, which is -inf on either side. So f has a quarter of the numbers to compute
behind a window of 2 x 2. And what a convolution makes is rounded to 8 bits before f in a range that need not
hold what no maximum is: few of them are far below zero.

In float onnxruntime runs the leaky ReLU in the convolution's kernel, so this is done only for runtimes whose
integer kernels know it as an operator of its own. An ordinary ReLU is in that kernel in int8 as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgeopt import units
from edgeopt.graph.change import Change, NoMatch
from edgeopt.graph.names import original_names
from edgeopt.graph.rewriting import Result, Rule, constant, node, rewrite, rule
from edgeopt.passes._rules import kept, quantization_rules
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Stage

MONOTONE = ("LeakyRelu", "PRelu")
"""Activations that are moved where their slopes are not negative."""


@rule("LeakyRelu|PRelu -> MaxPool", name="leaky ReLU -> MaxPool")
def pool_first(activation: ir.Node, pool: ir.Node) -> Result:
    """The activation of the pooled value."""
    if len(pool.outputs) > 1 and pool.outputs[1].uses():
        return NoMatch("the positions of the maxima are read")
    if activation.op_type == "PRelu":
        slopes = constant(activation.inputs[1])
        if slopes is None or any(size != 1 for size in slopes.shape[1:]):
            return NoMatch("its slopes are computed, or differ within a channel")
        falls = bool((slopes < 0).any())
    else:
        falls = activation.attributes.get_float("alpha", 0.01) < 0
    if falls:
        return NoMatch("a slope is negative")
    pooled = node(
        "MaxPool", [activation.inputs[0]], {key: item.value for key, item in pool.attributes.items()}
    )
    attributes = {key: item.value for key, item in activation.attributes.items()}
    return node(activation.op_type, [pooled.outputs[0], *activation.inputs[1:]], attributes)


@dataclass(frozen=True)
class MovePools(Pass):
    """Move max pooling in front of leaky ReLUs that run in integers; exact in float.

    Attributes:
        keep_float: Shell patterns of original node names that will stay in float, and are left as they are.
    """

    name: ClassVar[str] = "move-pools"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "exact"

    keep_float: tuple[str, ...] = ()

    @property
    def reads(self) -> frozenset[Facet]:
        """The rules, which say what runs in integers."""
        return frozenset({"rules"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Moves every pool that stands directly behind such an activation.

        Raises:
            UserError: A pattern of ``keep_float`` matches no node.
        """
        rules = quantization_rules(context.rules)
        own = {name for name in MONOTONE if name in rules.operators and name not in rules.fused_activations}
        if "MaxPool" not in rules.operators or not own:
            return Change(summary="none")
        left = set(kept(model, self.keep_float))
        names = {name for item in model.graph if item.name in left for name in original_names(item)}

        def build(activation: ir.Node, pool: ir.Node) -> Result:
            if activation.op_type not in own or names & {*original_names(activation), *original_names(pool)}:
                return None
            return pool_first(activation, pool)

        limited = Rule(pool_first.name, pool_first.operators, build)
        change = rewrite(model, [limited], context)
        count = len(change.rewrites)
        change.summary = f"{units.number(count, 'pool')} moved before its activation" if count else "none"
        return change
