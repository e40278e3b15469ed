"""Wrong rules, each of a kind that a person writes by mistake: proofs must stop every one of them.

    python -m benchmarks.planted_rules SEEDS

Each rule is planted into ``simplify``, and the graphs of the fuzzer go through all exact passes: without
proofs, to see which graphs the rule changes, and with them. Prints per rule how many graphs it changed and
on how many of those it was stopped.
"""

from __future__ import annotations

import argparse

import numpy as np
import onnx_ir as ir

from benchmarks import fuzz
from edgeopt.graph.names import ORIGINAL_NAMES
from edgeopt.graph.rewriting import Result, Rule, constant, initializer, node, rule
from edgeopt.graph.shapes import static_dims
from edgeopt.passes.simplify import shape_rules


@rule("Neg", name="wrong: the sign is lost", shared=True)
def lose_the_sign(item: ir.Node) -> Result:
    """-x is not abs(x)."""
    return node("Abs", [item.inputs[0]])


@rule("Relu", name="wrong: a Relu is dropped", shared=True)
def drop_relu(item: ir.Node) -> Result:
    """Relu(x) is not x."""
    return item.inputs[0]


@rule("Sub", name="wrong: a difference commutes", shared=True)
def swap_operands(item: ir.Node) -> Result:
    """x - y is not y - x."""
    one, two = item.inputs
    if (
        _is_new(item)
        or one is None
        or two is None
        or one is two
        or (one.const_value is None and two.const_value is None)
    ):
        return None
    return node("Neg", [node("Sub", [one, two]).outputs[0]])


@rule("Transpose -> Transpose", name="wrong: permutations composed the other way round", shared=True)
def compose_backwards(first: ir.Node, second: ir.Node) -> Result:
    """The order of two permutations counts."""
    one, two = first.attributes.get_ints("perm", ()), second.attributes.get_ints("perm", ())
    both = [two[axis] for axis in one]
    if not both or both == [one[axis] for axis in two]:
        return None
    return node("Transpose", [first.inputs[0]], {"perm": both})


@rule("Softmax", name="wrong: the axis counted from the other end", shared=True)
def other_axis(item: ir.Node) -> Result:
    """Softmax over another axis."""
    axis, shape = item.attributes.get_int("axis", -1), static_dims(item.inputs[0])
    if _is_new(item) or shape is None or axis % len(shape) == len(shape) - 1 - axis % len(shape):
        return None
    return node("Softmax", [item.inputs[0]], {"axis": len(shape) - 1 - axis % len(shape)})


@rule("Slice", name="wrong: a cut begins one later", shared=True)
def late_start(item: ir.Node) -> Result:
    """One element further on."""
    start = constant(item.inputs[1])
    shape, cut = static_dims(item.inputs[0]), static_dims(item.outputs[0])
    if (
        _is_new(item)
        or start is None
        or shape is None
        or cut is None
        or start.size != 1
        or int(start[0]) != 0
        or shape == cut
    ):
        return None
    moved = [
        value if place else initializer("start", start + 1) for place, value in enumerate(item.inputs[1:])
    ]
    end = constant(item.inputs[2])
    if end is None or int(end[0]) >= max(shape):
        return None
    moved[1] = initializer("end", end + 1)
    return node("Slice", [item.inputs[0], *moved])


@rule("Mul", name="wrong: a factor of almost one is dropped", shared=True)
def almost_one(item: ir.Node) -> Result:
    """x · c is not x."""
    numbers = constant(item.inputs[1])
    if (
        numbers is None
        or numbers.dtype != np.float32
        or not numbers.size
        or not np.all(numbers == numbers.flat[0])
    ):
        return None
    return None if numbers.flat[0] in (0, 1) else item.inputs[0]


@rule("ReduceMean", name="wrong: a mean is a sum", shared=True)
def mean_is_sum(item: ir.Node) -> Result:
    """The count is left out."""
    if len(item.inputs) > 1 or (item.graph is not None and item.graph.opset_imports.get("", 0) >= 13):
        return None
    return ir.Node("", "ReduceSum", list(item.inputs), list(item.attributes.values()))


@rule("Clip", name="wrong: the upper limit is forgotten", shared=True)
def forget_the_limit(item: ir.Node) -> Result:
    """Only the lower limit is left."""
    if len(item.inputs) < 3 or item.inputs[2] is None:
        return None
    return node("Clip", item.inputs[:2])


@rule("Add -> Relu", name="wrong: a bias behind the activation", shared=True)
def late_bias(add: ir.Node, relu: ir.Node) -> Result:
    """Relu(x + b) is not Relu(x) + b."""
    activated = node("Relu", [add.inputs[0]])
    return node("Add", [activated.outputs[0], add.inputs[1]])


@rule("Where", name="wrong: the branches are exchanged", shared=True)
def exchange_branches(item: ir.Node) -> Result:
    """What is taken where the condition is false."""
    condition, one, two = item.inputs
    return None if one is two or _is_new(item) else node("Where", [condition, two, one])


def _is_new(item: ir.Node) -> bool:
    """Whether a rule made the node: a wrong rule fired twice may be right again."""
    return ORIGINAL_NAMES in item.metadata_props


WRONG: tuple[Rule, ...] = (
    lose_the_sign,
    drop_relu,
    swap_operands,
    compose_backwards,
    other_axis,
    late_start,
    almost_one,
    mean_is_sum,
    forget_the_limit,
    late_bias,
    exchange_branches,
)


def planted(wrong: Rule, seeds: range) -> tuple[int, int]:
    """On how many graphs a wrong rule shows without proofs, and on how many of these proofs stop it."""
    right = shape_rules.RULES
    good = ("equal", "not valid")
    shape_rules.RULES = (wrong, *right)
    try:
        seen = [seed for seed in seeds if fuzz.outcome(seed, "off") not in good]
        stopped = [seed for seed in seen if fuzz.outcome(seed, "fast") == "equal"]
    finally:
        shape_rules.RULES = right
    for seed in seen:
        if seed not in stopped:
            print(f"  {wrong.name}: not stopped on the graph of seed {seed}", flush=True)
    return len(seen), len(stopped)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("seeds", type=int)
    count = parser.parse_args().seeds
    totals = [0, 0]
    for wrong in WRONG:
        shown, stopped = planted(wrong, range(count))
        totals = [totals[0] + shown, totals[1] + stopped]
        print(f"{wrong.name:52} changed {shown:4}, stopped on {stopped:4}", flush=True)
    print(f"{len(WRONG)} wrong rules, {totals[0]} graphs changed, stopped on {totals[1]}")
    if totals[0] != totals[1]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
