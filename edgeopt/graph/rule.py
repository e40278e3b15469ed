"""A rule: a pattern of operators, and a small function that says what takes the place of what it matches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgeopt.graph.change import NoMatch

_COMMUTATIVE = {"Add", "Mul", "Max", "Min", "And", "Or", "Equal", "Sum"}
_ANY_INPUT = _COMMUTATIVE | {"Concat", "Where"}
"""Operators that a pattern may reach through any of their inputs."""

_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Replacement:
    """What a rule puts in place, where it is more than one output of the last matched node.

    Attributes:
        values: Every value replaced, with the new or existing one that takes its place.
        nodes: The nodes that are replaced, where they are not just those of the pattern.
    """

    values: Mapping[ir.Value, ir.Value]
    nodes: Sequence[ir.Node] = ()


Result = ir.Node | ir.Value | Replacement | NoMatch | None


@dataclass(frozen=True)
class Rule:
    """A named pattern with the function that rewrites what it matches.

    Attributes:
        name: The pattern, as reports show it.
        operators: Per position the operator types that match.
        build: The function.
        shared: Values inside the pattern may have further readers; the nodes that make them then stay.
    """

    name: str
    operators: tuple[frozenset[str], ...]
    build: Callable[..., Result]
    shared: bool = False

    def __call__(self, *nodes: ir.Node) -> Result:
        """Tries the rule on matched nodes."""
        return self.build(*nodes)

    def matches(self, anchor: ir.Node) -> Iterator[list[ir.Node]]:
        """Every chain of nodes that ends at the anchor and fits the pattern, first to last."""
        if anchor.domain in _STANDARD and anchor.op_type in self.operators[-1]:
            yield from _upwards(self.operators[:-1], [anchor])


def rule(pattern: str, *, name: str = "", shared: bool = False) -> Callable[[Callable[..., Result]], Rule]:
    """Makes a rule of a function.

    Args:
        pattern: Operator types along the data, ``Conv|ConvTranspose -> BatchNormalization``.
        name: The name in reports; the pattern by default.
        shared: Values inside the pattern may have further readers.
    """
    operators = tuple(frozenset(part.strip().split("|")) for part in pattern.split("->"))

    def decorate(build: Callable[..., Result]) -> Rule:
        return Rule(name or pattern, operators, build, shared)

    return decorate


def by_operator(rules: Sequence[Rule]) -> dict[str, list[Rule]]:
    """The rules that may be anchored at a node of each operator type, in the order given."""
    found: dict[str, list[Rule]] = {}
    for item in rules:
        for operator in item.operators[-1]:
            found.setdefault(operator, []).append(item)
    return found


def replacement(result: ir.Node | ir.Value | Replacement, nodes: Sequence[ir.Node]) -> Replacement:
    """What a rule returned, in its long form."""
    if isinstance(result, Replacement):
        return result
    value = result.outputs[0] if isinstance(result, ir.Node) else result
    return Replacement({nodes[-1].outputs[0]: value})


def _upwards(operators: Sequence[frozenset[str]], chain: list[ir.Node]) -> Iterator[list[ir.Node]]:
    if not operators:
        yield chain
        return
    head = chain[0]
    inputs = head.inputs if head.op_type in _ANY_INPUT else head.inputs[:1]
    for value in dict.fromkeys(inputs):
        producer = None if value is None else value.producer()
        if producer is None or producer.graph is not head.graph or producer.op_type not in operators[-1]:
            continue
        if producer.domain in _STANDARD and value is producer.outputs[0]:
            yield from _upwards(operators[:-1], [producer, *chain])
