"""Searching the layers to compute in float."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, combinations, pairwise

import numpy as np
import pytest

from edgeopt.passes._knapsack import GRID, Group, Knapsack


@dataclass
class Toy:
    """Layers with noise and seconds of their own; neighbours in float save a conversion and its noise.

    ``surprise`` is noise between layers that do not stand next to each other, of which no table tells.
    """

    noise: list[float]
    cost: list[float]
    saved: list[float]
    shared: list[float]
    limit: float
    surprise: float = 0.0

    @property
    def layers(self) -> list[str]:
        return [f"layer{index}" for index in range(len(self.noise))]

    def left(self, chosen: Iterable[str]) -> float:
        inside = [layer not in set(chosen) for layer in self.layers]
        total = sum(value for value, stays in zip(self.noise, inside, strict=True) if stays)
        pairs = zip(self.shared, pairwise(inside), strict=True)
        total += sum(value for value, (one, other) in pairs if one or other)
        return total + self.surprise * sum(a and b for a, b in zip(inside, inside[2:], strict=False))

    def seconds(self, chosen: Iterable[str]) -> float:
        inside = [layer in set(chosen) for layer in self.layers]
        total = 10 + sum(value for value, taken in zip(self.cost, inside, strict=True) if taken)
        pairs = zip(self.saved, pairwise(inside), strict=True)
        return total - sum(value for value, (one, other) in pairs if one and other)

    def knapsack(self) -> Knapsack:
        singles: list[Group] = [(layer,) for layer in self.layers]
        groups: list[Group] = [*singles, *pairwise(self.layers)]
        whole, base = self.left(()), self.seconds(())
        gains = {group: whole - self.left(group) for group in groups}
        extra = {group: self.seconds(group) - base for group in groups}
        return Knapsack(
            self.layers, gains, extra, lambda chosen: self.left(chosen) - self.limit, self.seconds
        )

    def found(self) -> frozenset[str]:
        return self.knapsack().search(self.left(()) - self.limit)

    def best(self) -> float:
        """The least seconds of all choices that suffice."""
        every = chain.from_iterable(combinations(self.layers, size) for size in range(len(self.layers) + 1))
        return min(self.seconds(chosen) for chosen in every if self.left(chosen) <= self.limit)

    def greedy(self) -> float:
        """The better of the two greedy orders."""
        found = []
        for order in self.knapsack().orders:
            count = next(n for n in range(len(order) + 1) if self.left(order[:n]) <= self.limit)
            found.append(self.seconds(order[:count]))
        return min(found)


def test_loudest_first_is_wrong_and_the_optimum_is_found() -> None:
    # the loudest layer is dear and nearly suffices; the one that is cheapest for its noise is not needed
    toy = Toy([50.0, 30.0, 30.0, 5.0, 3.0], [100.0, 10.0, 10.0, 9.0, 0.5], [0.0] * 4, [0.0] * 4, 60.0)
    assert toy.greedy() > toy.best()
    assert toy.found() == {"layer1", "layer2"}
    assert toy.seconds(toy.found()) == toy.best()


def test_neighbours_that_keep_noise_between_them_go_back_together() -> None:
    toy = Toy([1.0, 1.0, 9.0, 1.0], [4.0, 4.0, 12.0, 4.0], [3.0, 0.0, 0.0], [10.0, 0.0, 0.0], 13.0)
    assert toy.found() == {"layer0", "layer1"}
    assert toy.seconds(toy.found()) == toy.best() < toy.greedy()


@pytest.mark.parametrize("seed", range(12))
def test_what_adds_up_is_solved_exactly(seed: int) -> None:
    random = np.random.default_rng(seed)
    noise, cost = random.exponential(1, 9), random.exponential(1, 9)
    saved = random.uniform(0, 0.5, 8) * np.minimum(cost[1:], cost[:-1])
    shared = random.exponential(0.2, 8)
    toy = Toy(list(noise), list(cost), list(saved), list(shared), 0.0)
    toy.limit = toy.left(()) * 0.4
    chosen = toy.found()
    assert toy.left(chosen) <= toy.limit
    assert toy.seconds(chosen) <= toy.best() + sum(cost) / GRID * 9
    assert toy.seconds(chosen) <= toy.greedy()


@pytest.mark.parametrize("seed", range(12))
def test_where_noise_does_not_add_up_the_result_suffices_and_is_no_worse_than_greedy(seed: int) -> None:
    random = np.random.default_rng(seed)
    toy = Toy(
        list(random.exponential(1, 9)),
        list(random.exponential(1, 9)),
        [0.0] * 8,
        list(random.exponential(0.2, 8)),
        0.0,
        surprise=0.4,
    )
    toy.limit = toy.left(()) * 0.3
    chosen = toy.found()
    assert toy.left(chosen) <= toy.limit
    assert toy.best() <= toy.seconds(chosen) <= toy.greedy()
    assert toy.seconds(chosen) <= 10 + 1.15 * (toy.best() - 10)


def test_where_nothing_suffices_all_layers_go_back() -> None:
    toy = Toy([1.0, 2.0], [1.0, 1.0], [0.0], [0.0], -1.0)
    assert toy.found() == set(toy.layers)


def test_few_choices_are_measured() -> None:
    random = np.random.default_rng(3)
    count = 60
    toy = Toy(
        list(random.exponential(1, count)), list(random.exponential(1, count)), [0.1] * 59, [0.1] * 59, 0
    )
    toy.limit = toy.left(()) / 2
    knapsack = toy.knapsack()
    knapsack.search(toy.left(()) - toy.limit)
    assert len(knapsack.measured) <= 40
