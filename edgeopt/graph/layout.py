"""Memory layouts of a graph's values, chosen so that few and small transposes are left.

ONNX lays its values out in the order of their axes (NCHW); many runtimes want channels last (NHWC).
A *layout* is the order in which a value's logical axes lie in memory: physical axis k holds logical
axis ``layout[k]``. Every step of a program may be able to run in several layouts; a *choice* is one of
them: the layout it reads each input in, and the one it leaves each output in. A transpose stands
wherever a value is read in another layout than it was left in.

``assign`` picks a choice for every step. A Transpose of the model is no special case: it leaves the
data as they are and renames the axes, so it costs something only where that cannot be absorbed.

The method is coordinate descent over the steps, swept forward and backward in turn. Of equally
expensive choices a forward sweep takes the one that fits the inputs and a backward sweep the one that
fits the readers, so that transposes move along chains of indifferent steps until two meet and cancel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

Layout = tuple[int, ...]

OVERHEAD = 256
"""What one more operator costs, in elements moved: decides between one large and two small moves."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to run a step.

    Attributes:
        inputs: The layout that each input is read in; ``None`` where the step does not care, as for
            scalars and inputs that are read as parameters.
        outputs: The layout that each output is left in.
    """

    inputs: tuple[Layout | None, ...]
    outputs: tuple[Layout, ...]


class Step(Protocol):
    """What the engine needs to know of a step of the program."""

    @property
    def inputs(self) -> Sequence[ir.Value | None]:
        """The values read, ``None`` where an optional one is absent."""
        ...

    @property
    def outputs(self) -> Sequence[ir.Value]:
        """The values made."""
        ...


Offer = Callable[[int, bool, int, Layout], "Choice | None"]
"""(step's number, whether an input is meant, its index, a layout) -> the choice that has it so."""


def identity(rank: int) -> Layout:
    """The layout in the order of the axes."""
    return tuple(range(rank))


def channels_last(rank: int) -> Layout:
    """Batch first, channels last: (0, 2, 3, 1) for four axes."""
    return (0, *range(2, rank), 1) if rank > 2 else identity(rank)


def permutation(have: Layout, want: Layout) -> tuple[int, ...]:
    """The argument of a transpose that brings a value from one layout to another."""
    return tuple(have.index(axis) for axis in want)


def moves_only_units(shape: Sequence[int], have: Layout, want: Layout) -> bool:
    """Whether two layouts of a value differ only in where its axes of size 1 stand."""
    return [axis for axis in have if shape[axis] != 1] == [axis for axis in want if shape[axis] != 1]


def after_reshape(before: Sequence[int], after: Sequence[int], layout: Layout) -> Layout | None:
    """The layout that a reshape leaves without moving data, or ``None`` if there is none.

    The axes fall into the smallest groups of equal product on both sides; the data can stay where they
    are if every group that is split or merged lies together and in order. Axes of size 1 go before the
    next axis that is larger.

    Args:
        before: The shape read.
        after: The shape made, with as many elements.
        layout: The layout of the value read.
    """
    if len(layout) != len(before) or 0 in before:
        return layout if tuple(before) == tuple(after) else None
    groups = _groups(before, after)
    order = [axis for axis in layout if before[axis] != 1]
    result: list[int] = []
    start = 0
    while start < len(order):
        old, new = next((old, new) for old, new in groups if order[start] in old)
        if order[start : start + len(old)] != old:
            return None
        result.extend(new)
        start += len(old)
    placed: list[int] = []
    units = [axis for axis, size in enumerate(after) if size == 1]
    for axis in result:
        placed.extend(unit for unit in units if unit < axis and unit not in placed)
        placed.append(axis)
    placed.extend(unit for unit in units if unit not in placed)
    return tuple(placed)


def _groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Pairs the axes larger than 1 of two shapes in the smallest groups of equal product."""
    old = [axis for axis, size in enumerate(before) if size != 1]
    new = [axis for axis, size in enumerate(after) if size != 1]
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) and j < len(new):
        left, right = [old[i]], [new[j]]
        i, j = i + 1, j + 1
        while (have := math.prod(before[a] for a in left)) != (want := math.prod(after[a] for a in right)):
            if have < want:
                left.append(old[i])
                i += 1
            else:
                right.append(new[j])
                j += 1
        groups.append((left, right))
    return groups


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The static shape of a value; unknown dimensions count as 1."""
    return tuple(dim if isinstance(dim, int) else 1 for dim in (value.shape or ()))


@dataclass(slots=True)
class Assignment:
    """The choice made for every step, and the layout of every value.

    Attributes:
        choices: Per step, in order.
        layouts: The layout that each value is left in, graph inputs included, by the value's name.
        moved: Elements that transposes still move.
    """

    choices: list[Choice]
    layouts: dict[str, Layout]
    moved: int


def assign(
    steps: Sequence[Step],
    offer: Offer,
    *,
    inputs: Iterable[ir.Value],
    constant: Callable[[ir.Value], bool],
    fixed: dict[str, Layout] | None = None,
    sweeps: int = 8,
) -> Assignment:
    """Chooses layouts for a program so that little is transposed.

    Args:
        steps: The program, in topological order.
        offer: What choices a step has; it must offer at least one for the identity layout or for
            channels last of some input or output.
        inputs: The graph's inputs, whose layout is free except where ``fixed`` says otherwise.
        constant: Whether a value is known now, so that transposing it costs nothing.
        fixed: Graph inputs with a given layout, by name.
        sweeps: How many times the program is gone through at most.

    Raises:
        ValueError: A step offers no choice.
    """
    return _Search(steps, offer, list(inputs), constant, fixed or {}).run(sweeps)


class _Search:
    """The state of one search. Costs are per value, in elements moved."""

    def __init__(
        self,
        steps: Sequence[Step],
        offer: Offer,
        inputs: list[ir.Value],
        constant: Callable[[ir.Value], bool],
        fixed: dict[str, Layout],
    ) -> None:
        self.steps = steps
        self.offer = offer
        self.inputs = inputs
        self.fixed = fixed
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.producer: dict[str, tuple[int, int]] = {}
        self.readers: dict[str, list[tuple[int, int]]] = {}
        for number, step in enumerate(steps):
            for index, value in enumerate(step.outputs):
                self.producer[_name(value)] = (number, index)
                self.shapes[_name(value)] = shape_of(value)
            for index, read in enumerate(step.inputs):
                if read is not None and not constant(read):
                    self.readers.setdefault(_name(read), []).append((number, index))
                    self.shapes.setdefault(_name(read), shape_of(read))
        for value in inputs:
            self.shapes.setdefault(_name(value), shape_of(value))
        self.live = [
            [
                (_name(value), index)
                for index, value in enumerate(step.inputs)
                if value is not None and _name(value) in self.readers and not constant(value)
            ]
            for step in steps
        ]
        self.choices: list[Choice | None] = [None] * len(steps)

    def run(self, sweeps: int) -> Assignment:
        best: list[Choice | None] = []
        best_cost = -1
        for start in (self._start_backward, self._start_forward):
            start()
            for sweep in range(sweeps):
                cost = self._total()
                if best_cost < 0 or cost < best_cost:
                    best, best_cost = list(self.choices), cost
                if best_cost == 0 or not self._sweep(forward=sweep % 2 == 0):
                    break
            if best_cost == 0:
                break
        self.choices = best
        choices = [choice for choice in self.choices if choice is not None]
        layouts = {name: self._produced(name) for name in self.shapes}
        return Assignment(choices, layouts, best_cost)

    def _start_forward(self) -> None:
        """First choices, each step as its inputs come; what must be moved is moved to channels last."""
        self.choices = [None] * len(self.steps)
        for number in range(len(self.steps)):
            ins = sorted({name for name, _ in self.live[number]})
            ranked = []
            for rank, choice in enumerate(self._candidates(number)):
                self.choices[number] = choice
                plain = sum(layout != channels_last(len(layout)) for layout in choice.outputs)
                ranked.append((sum(map(self._cost, ins)), plain, rank, choice))
            self.choices[number] = min(ranked, key=lambda item: item[:3])[3]

    def _start_backward(self) -> None:
        """First choices, each step as its readers would have it."""
        for number in reversed(range(len(self.steps))):
            wanted: dict[Layout, int] = {}
            offered = self._candidates(number)
            if not offered:
                raise ValueError(f"step {number} offers no layout")
            for index, value in enumerate(self.steps[number].outputs):
                for layout in self._demanded(_name(value)):
                    wanted[layout] = wanted.get(layout, 0) + math.prod(self.shapes[_name(value)]) + index
            self.choices[number] = max(
                offered, key=lambda choice: sum(wanted.get(layout, 0) for layout in choice.outputs)
            )

    def _sweep(self, forward: bool) -> bool:
        changed = False
        order = range(len(self.steps))
        for number in order if forward else reversed(order):
            ins = sorted({name for name, _ in self.live[number]})
            outs = sorted({_name(value) for value in self.steps[number].outputs} - set(ins))
            now = self.choices[number]
            ranked: list[tuple[int, int, bool, int, Choice]] = []
            for rank, choice in enumerate(self._candidates(number)):
                self.choices[number] = choice
                read, left = sum(map(self._cost, ins)), sum(map(self._cost, outs))
                ranked.append((read + left, read if forward else left, choice != now, rank, choice))
            best = min(ranked, key=lambda item: item[:4])
            self.choices[number] = best[4]
            changed |= best[4] != now
        return changed

    def _candidates(self, number: int) -> list[Choice]:
        step = self.steps[number]
        found: dict[Hashable, Choice] = {}

        def consider(is_input: bool, index: int, layout: Layout) -> None:
            choice = self.offer(number, is_input, index, layout)
            if choice is not None:
                found.setdefault(choice, choice)

        for name, index in self.live[number]:
            rank = len(self.shapes[name])
            if name in self.producer or name in self.fixed:
                consider(True, index, self._produced(name))
            for layout in (*self._demanded(name), channels_last(rank), identity(rank)):
                consider(True, index, layout)
        for index, value in enumerate(step.outputs):
            rank = len(self.shapes[_name(value)])
            for layout in (*self._demanded(_name(value)), channels_last(rank), identity(rank)):
                consider(False, index, layout)
        return list(found.values())

    def _demanded(self, name: str) -> list[Layout]:
        found: dict[Layout, None] = {}
        for number, index in self.readers.get(name, ()):
            choice = self.choices[number]
            layout = choice.inputs[index] if choice is not None else None
            if layout is not None and len(layout) == len(self.shapes[name]):
                found.setdefault(layout)
        return list(found)

    def _produced(self, name: str) -> Layout:
        if name in self.producer:
            number, index = self.producer[name]
            choice = self.choices[number]
            return identity(len(self.shapes[name])) if choice is None else choice.outputs[index]
        if name in self.fixed:
            return self.fixed[name]
        demanded = self._demanded(name)
        return min(demanded, key=lambda layout: self._moves(name, layout, demanded), default=None) or (
            identity(len(self.shapes[name]))
        )

    def _cost(self, name: str) -> int:
        return self._moves(name, self._produced(name), self._demanded(name))

    def _moves(self, name: str, have: Layout, demanded: list[Layout]) -> int:
        shape = self.shapes[name]
        cost = 0
        for want in demanded:
            if want != have:
                cost += OVERHEAD
                if not moves_only_units(shape, have, want):
                    cost += math.prod(shape)
        return cost

    def _total(self) -> int:
        return sum(map(self._cost, self.shapes))


def _name(value: ir.Value) -> str:
    return value.name or ""
