"""Which layers to compute in float: the least extra seconds for which noise enough is gone.

Noise powers of different layers nearly add up, and so do seconds, but for neighbours: where two of them are
both in float, a conversion between them falls away, and perhaps noise that stood between. So the least cost
for every amount of noise removed is found by dynamic programming over the layers in their order, which counts
what neighbours save and takes groups (residual branches) whole. As the sum is only nearly true, what it
chooses is measured on the whole model: where noise is left the demand is raised, where more is gone than was
asked for it is lowered. Then the loudest layers first and the loudest per second first are compared, as far
as they could be cheaper, and layers are taken back, or exchanged for cheaper ones, where the rest suffices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np

GRID = 1000
"""In so many parts the noise to be removed is counted."""

LOOKS = 8
"""How often a choice is measured while the demand is adjusted."""

TRIES = 16
"""How often taking a layer back, or exchanging it, is measured."""

NEAR = 32
"""So many choices near to the best one are looked at, the cheapest first."""

Group = tuple[str, ...]
"""Layers next to each other in the graph's order."""


@dataclass
class Knapsack:
    """A choice of layers.

    Attributes:
        layers: All layers, in the graph's order.
        gains: Noise that is gone with a layer or group in float; groups that are missing add up.
        extra: Seconds that a layer or group takes longer in float; groups that are missing add up.
        missing: Measures, in the unit of the gains, what noise too much is left with some layers in float;
            negative where less is left than allowed.
        seconds: The predicted seconds with some layers in float.
    """

    layers: Sequence[str]
    gains: Mapping[Group, float]
    extra: Mapping[Group, float]
    missing: Callable[[frozenset[str]], float]
    seconds: Callable[[frozenset[str]], float]
    measured: dict[frozenset[str], float] = field(default_factory=dict)
    predicted: dict[frozenset[str], float] = field(default_factory=dict)

    def search(self, demand: float) -> frozenset[str]:
        """Returns the layers to compute in float; all of them where less does not suffice.

        Args:
            demand: The noise that has to go, as far as gains add up.
        """
        best = self._adjusted(demand)
        for order in self.orders:
            best = self._prefix(order, best)
        return self._improved(best)

    def solve(self, demand: float) -> frozenset[str]:
        """Chooses the least extra seconds with which so much noise is gone, as far as gains add up."""
        count, least = len(self.layers), 1e-9
        unit = max(demand, least) / GRID
        cost = np.full((count + 1, 2, GRID + 1), np.inf)
        cost[0, 0, 0] = 0.0
        origin = np.zeros((count + 1, 2, GRID + 1), np.int32)
        through = np.full((count + 1, 2, GRID + 1), -1, np.int32)
        steps: list[tuple[int, int, int]] = []  # (from, to, layer before in float)
        for start in range(count):
            for before in (0, 1):
                row = cost[start, before]
                if not np.isfinite(row).any():
                    continue
                self._relax(cost, origin, through, steps, (start, start + 1, before), 0, 0.0, False)
                for end in self._ends[start]:
                    gain, extra = self._worth(start, end, bool(before))
                    moved = min(round(max(gain, 0.0) / unit), GRID)
                    self._relax(cost, origin, through, steps, (start, end, before), moved, extra, True)
        flag = int(np.argmin(cost[count, :, GRID]))
        if not np.isfinite(cost[count, flag, GRID]):
            return frozenset(self.layers)
        place, amount = count, GRID
        chosen: set[str] = set()
        while place:
            start, end, before = steps[through[place, flag, amount]]
            if flag:
                chosen.update(self.layers[start:end])
            amount, place, flag = int(origin[place, flag, amount]), start, before
        return frozenset(chosen)

    def _relax(
        self,
        cost: np.ndarray,
        origin: np.ndarray,
        through: np.ndarray,
        steps: list[tuple[int, int, int]],
        step: tuple[int, int, int],
        moved: int,
        extra: float,
        taken: bool,
    ) -> None:
        """Offers a step to all amounts of noise; what lies between its ends is in float or not."""
        start, end, before = step
        row = cost[start, before]
        offered, sources = np.full(GRID + 1, np.inf), np.zeros(GRID + 1, np.int32)
        offered[moved:] = row[: GRID + 1 - moved] + extra
        sources[moved:] = np.arange(GRID + 1 - moved)
        last = GRID - moved + int(np.argmin(row[GRID - moved :]))  # more than all is all
        offered[GRID], sources[GRID] = row[last] + extra, last
        better = offered < cost[end, int(taken)]
        cost[end, int(taken), better] = offered[better]
        origin[end, int(taken), better] = sources[better]
        through[end, int(taken), better] = len(steps)
        steps.append(step)

    @cached_property
    def _ends(self) -> list[list[int]]:
        """Per layer where a group that begins with it may end."""
        place = {layer: index for index, layer in enumerate(self.layers)}
        ends: list[set[int]] = [{index + 1} for index in range(len(self.layers))]
        for group in {*self.gains, *self.extra}:
            start = place[group[0]]
            if tuple(self.layers[start : start + len(group)]) == group:
                ends[start].add(start + len(group))
        return [sorted(item) for item in ends]

    def _worth(self, start: int, end: int, before: bool) -> tuple[float, float]:
        """What a group brings and costs, with the layer before it in float or not."""
        group = tuple(self.layers[start:end])
        values = []
        for table in (self.gains, self.extra):
            value = table[group] if group in table else self._sum(table, group)
            if before:
                pair = (self.layers[start - 1], self.layers[start])
                if pair in table:
                    value += table[pair] - table[pair[:1]] - table[pair[1:]]
            values.append(value)
        return values[0], values[1]

    def _sum(self, table: Mapping[Group, float], group: Group) -> float:
        total = sum(table[layer,] for layer in group)
        pairs = pairwise(group)
        return total + sum(table[a, b] - table[a,] - table[b,] for a, b in pairs if (a, b) in table)

    def _adjusted(self, demand: float) -> frozenset[str]:
        """Solves for demands until what suffices as measured is no longer found for less."""
        low, best = 0.0, frozenset(self.layers)
        high: float | None = None
        for _ in range(LOOKS):
            chosen = self.solve(demand)
            short = self._missing(chosen)
            if short <= 0:
                best, high = self._cheaper(best, chosen), demand
                demand = max((low + demand) / 2, demand + short)
            else:
                low = demand
                if len(chosen) == len(self.layers):
                    break
                demand = demand + short if high is None else (low + high) / 2
            if high is not None and high - low < 0.03 * high:
                break
        return best

    @cached_property
    def orders(self) -> list[list[str]]:
        """The greedy orders: the loudest first, and the loudest per second first."""
        total = sum(self.extra[layer,] for layer in self.layers)
        least = max(1e-3 * total / len(self.layers), 1e-12)

        def rate(layer: str) -> float:
            return self.gains[layer,] / max(self.extra[layer,], least)

        return [
            sorted(self.layers, key=lambda layer: -self.gains[layer,]),
            sorted(self.layers, key=lambda layer: -rate(layer)),
        ]

    def _prefix(self, order: Sequence[str], best: frozenset[str]) -> frozenset[str]:
        """The shortest beginning of an order that suffices, if it is cheaper than the best so far."""
        low, high = 0, len(order)
        while high - low > 1:  # the longest that is cheaper
            middle = (low + high) // 2
            low, high = (middle, high) if self._rank(order[:middle]) < self._rank(best) else (low, middle)
        if not low or self._missing(frozenset(order[:low])) > 0:
            return best
        short, enough = 0, low
        while enough - short > 1:
            middle = (short + enough) // 2
            fits = self._missing(frozenset(order[:middle])) <= 0
            short, enough = (short, middle) if fits else (middle, enough)
        return self._cheaper(best, frozenset(order[:enough]))

    def _improved(self, best: frozenset[str]) -> frozenset[str]:
        """Takes back what is not needed, and exchanges layers for cheaper ones."""
        tries = TRIES
        while True:
            found = None
            for other in self._others(best, -self._missing(best)):
                if other not in self.measured:
                    if not tries:
                        return best
                    tries -= 1
                if self._missing(other) <= 0:
                    found = other
                    break
            if found is None:
                return best
            best = found

    def _others(self, best: frozenset[str], slack: float) -> Iterator[frozenset[str]]:
        """Choices near to one that are cheaper and might suffice, the cheapest first."""
        found: list[tuple[float, list[str]]] = []
        for group in sorted(group for group in {*self.gains, *self.extra} if best.issuperset(group)):
            left, lost = best.difference(group), self._sum(self.gains, group)
            if lost <= 2 * slack:
                found.append(self._estimated(left))
            found += [
                self._estimated(left | {layer})
                for layer in self.layers
                if layer not in best and lost - self.gains[layer,] <= slack
            ]
        now = self._estimated(best)[0]
        cheaper = sorted(item for item in found if item[0] < now)
        for _, other in cheaper[:NEAR]:
            if self._rank(other) < self._rank(best):
                yield frozenset(other)

    def _estimated(self, chosen: Set[str]) -> tuple[float, list[str]]:
        """What a choice costs as far as seconds add up, and its layers in order."""
        order = [layer for layer in self.layers if layer in chosen]
        total = sum(self.extra[layer,] for layer in order)
        for a, b in pairwise(self.layers):
            if a in chosen and b in chosen and (a, b) in self.extra:
                total += self.extra[a, b] - self.extra[a,] - self.extra[b,]
        return total, order

    def _missing(self, chosen: frozenset[str]) -> float:
        if chosen not in self.measured:
            self.measured[chosen] = self.missing(chosen)
        return self.measured[chosen]

    def _rank(self, chosen: Iterable[str]) -> tuple[float, int]:
        """Cheaper is less: by seconds, then by number."""
        chosen = frozenset(chosen)
        if chosen not in self.predicted:
            self.predicted[chosen] = self.seconds(chosen)
        return self.predicted[chosen], len(chosen)

    def _cheaper(self, one: frozenset[str], other: frozenset[str]) -> frozenset[str]:
        return other if self._rank(other) < self._rank(one) else one
