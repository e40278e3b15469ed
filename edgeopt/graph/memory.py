"""Peak memory of a model's activations, from the lifetimes of its values.

A value lives from the node that makes it until the last node that reads it; inputs of the model live
from the start, its outputs until the end. While a node runs, its inputs and outputs exist side by side:
nothing is computed in place and no view shares memory, so the figure is what a runtime needs that does
neither, and an upper bound for one that does. Weights are not counted. In a quantized graph a value
between two integer kernels counts at its integer width.

The peak depends on the order in which the nodes run. ``peak_activation`` searches for the order with the
lowest peak: nodes that free at least what they make run at once, and among the remaining choices a
best-first search over the sets of nodes already run (as Liberis and Lane, "Neural networks on
microcontrollers: saving memory at inference via operator reordering", 2019, do by dynamic programming)
finds the optimum. On graphs where that takes too many states a beam search finds a good order, which is
marked as not proved.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgeopt.graph.integers import integers, is_constant
from edgeopt.graph.sizes import Shapes, Tensor, Unrolled, unroll

STATES = 4000
"""How many sets of finished nodes the search may look at."""

BEAM = 16
"""How many orders begun the search on larger graphs keeps side by side."""

_Trail = tuple[tuple[int, ...], "_Trail | None"]
"""The nodes run last, and what ran before them."""


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """The peak memory of activations.

    Attributes:
        bytes: The peak of the best order found.
        order: The names of the nodes in that order.
        optimal: No order has a lower peak.
        given: The peak of the order in which the model lists its nodes.
        at: The name of the node at which the best order reaches its peak.
    """

    bytes: int
    order: tuple[str, ...]
    optimal: bool
    given: int
    at: str


def peak_activation(model: ir.Model, shapes: Shapes | None = None) -> PeakMemory:
    """Finds the peak memory of a model's activations and an order of its nodes that attains it.

    Args:
        model: The model; it is not changed.
        shapes: Shapes of inputs; a symbolic dimension not bound by them counts as 1.

    Raises:
        ModelError: There is no such input, or a shape contradicts the model.
    """
    return peak_of(unroll(model, shapes))


def peak_of(walked: Unrolled) -> PeakMemory:
    """Finds the peak memory of a model that is already unrolled."""
    problem = _Problem.of(walked)
    given, _ = problem.peak(range(len(problem.names)))
    order, optimal = problem.search(given)
    peak, at = problem.peak(order)
    return PeakMemory(
        bytes=peak,
        order=tuple(problem.names[index] for index in order),
        optimal=optimal,
        given=given,
        at=problem.names[at] if at is not None else "",
    )


@dataclass(slots=True)
class _Problem:
    """Nodes and buffers by number; sets of nodes are bit masks.

    Attributes:
        names: Per node its name.
        before: Per node the nodes that must have run.
        reads: Per node the buffers that it reads.
        makes: Per node the bytes of the buffers that it makes and keeps.
        inside: Per node the bytes that it needs besides its inputs and outputs (a loop's body) and
            those of outputs that nobody reads.
        sizes: Per buffer its bytes.
        readers: Per buffer the nodes that read it; 0 where it lives to the end.
        start: The bytes that exist before the first node.
    """

    names: list[str]
    before: list[int]
    reads: list[list[int]]
    makes: list[int]
    inside: list[int]
    sizes: list[int]
    readers: list[int]
    start: int

    @classmethod
    def of(cls, walked: Unrolled) -> _Problem:
        quantized = integers(step.node for step in walked.steps)
        kept = [
            step
            for step in walked.steps
            if step.node not in quantized.absorbed and not _constant(step.outputs)
        ]
        problem = cls([], [], [], [], [], [], [], 0)
        buffers: dict[ir.Value, int] = {}
        makers: dict[int, int] = {}
        ends = {quantized.held.get(value, value) for value in walked.outputs}
        # What a branch or loop body reads from outside is counted there.
        own = set(walked.inputs) | {output for step in walked.steps for output in step.node.outputs}

        def buffer(value: ir.Value) -> int:
            if value not in buffers:
                buffers[value] = len(problem.sizes)
                problem.sizes.append(walked.tensors.get(value, Tensor()).bytes)
                problem.readers.append(0)
            return buffers[value]

        for value in walked.inputs:
            if not value.is_initializer():
                problem.start += problem.sizes[buffer(value)]
        for index, step in enumerate(kept):
            node = step.node
            needed = {quantized.as_read(node, value) for value in node.inputs if value is not None}
            for body in step.bodies:
                needed |= _captured(body)
            reads = sorted({buffer(value) for value in needed & own if _activation(value, walked)})
            before = 0
            for number in reads:
                problem.readers[number] |= 1 << index
                if number in makers:
                    before |= 1 << makers[number]
            makes = inside = 0
            for output in node.outputs:
                if not output.name:
                    continue
                stored = quantized.held.get(output, output)
                size = walked.tensors.get(stored, Tensor()).bytes
                if stored in ends or any(True for _ in stored.uses()):
                    makers[buffer(stored)] = index
                    makes += size
                else:
                    inside += size
            inside += max((peak_of(body).bytes for body in step.bodies), default=0)
            problem.names.append(node.name or node.op_type)
            problem.before.append(before)
            problem.reads.append(reads)
            problem.makes.append(makes)
            problem.inside.append(inside)
        for value in ends:
            if value in buffers:
                problem.readers[buffers[value]] = 0
        return problem

    def run(self, node: int, done: int, live: int) -> tuple[int, int]:
        """Runs one node: returns the bytes that exist meanwhile and those that remain."""
        meanwhile = live + self.makes[node] + self.inside[node]
        after = live + self.makes[node]
        finished = done | 1 << node
        for number in self.reads[node]:
            if self.readers[number] and not self.readers[number] & ~finished:
                after -= self.sizes[number]
        return meanwhile, after

    def peak(self, order: Sequence[int]) -> tuple[int, int | None]:
        """Returns the peak of one order, and the node where it is first reached."""
        done, live, peak, at = 0, self.start, self.start, None
        for node in order:
            meanwhile, live = self.run(node, done, live)
            done |= 1 << node
            if meanwhile > peak or at is None:
                peak, at = max(peak, meanwhile), node
        return peak, at

    def bound(self) -> int:
        """A peak that no order can be below: that of the greediest single node."""
        needs = [
            sum(self.sizes[number] for number in reads) + makes + inside
            for reads, makes, inside in zip(self.reads, self.makes, self.inside, strict=True)
        ]
        return max([self.start, *needs])

    def search(self, given: int) -> tuple[list[int], bool]:
        """Finds the order with the lowest peak, best first; returns whether it is proved to be."""
        count = len(self.names)
        floor = self.bound()
        if given == floor:
            return list(range(count)), True
        followers: list[list[int]] = [[] for _ in range(count)]
        for node in range(count):
            for other in _bits(self.before[node]):
                followers[other].append(node)
        first = tuple(node for node in range(count) if not self.before[node])
        done, live, ready, begun = self.rush(0, self.start, first, floor, followers)
        # Ties go to the state that is furthest on, so that an order within the bound is found at once.
        queue = [(floor, -len(begun), done, live, ready, tuple(begun))]
        best = {done: floor}
        while queue and len(best) < STATES:
            peak, _, done, live, ready, path = heapq.heappop(queue)
            if not ready:
                return list(path), True
            for node in ready:
                meanwhile, after = self.run(node, done, live)
                height = max(peak, meanwhile)
                if height >= given:
                    continue  # no better than the order as it stands
                rest = self.ready(node, done, ready, followers)
                reached, left, rest, more = self.rush(done | 1 << node, after, rest, height, followers)
                if height < best.get(reached, given):
                    best[reached] = height
                    entry = (height, -len(path) - 1 - len(more), reached, left, rest)
                    heapq.heappush(queue, (*entry, (*path, node, *more)))
        if not queue:
            return list(range(count)), True
        return self.beam(floor, given, followers) or list(range(count)), False

    def ready(
        self, node: int, done: int, ready: tuple[int, ...], followers: list[list[int]]
    ) -> tuple[int, ...]:
        """Returns the nodes that can run after ``node`` has."""
        finished = done | 1 << node
        opened = tuple(other for other in followers[node] if not self.before[other] & ~finished)
        return tuple(other for other in ready if other != node) + opened

    def rush(
        self, done: int, live: int, ready: tuple[int, ...], peak: int, followers: list[list[int]]
    ) -> tuple[int, int, tuple[int, ...], list[int]]:
        """Runs every node that neither raises the peak nor leaves more memory in use.

        Running such a node at once is never worse than running it later.
        """
        path: list[int] = []
        progress = True
        while progress:
            progress = False
            for node in ready:
                meanwhile, after = self.run(node, done, live)
                if meanwhile <= peak and after <= live:
                    ready = self.ready(node, done, ready, followers)
                    done, live = done | 1 << node, after
                    path.append(node)
                    progress = True
                    break
        return done, live, ready, path

    def beam(self, floor: int, given: int, followers: list[list[int]]) -> list[int]:
        """Finds a good order by a beam search: of the orders begun, those with the lowest peak go on.

        Among equal peaks those go on that leave the least memory in use. It is empty where no order found
        stays below the peak given.
        """
        first = tuple(node for node in range(len(self.names)) if not self.before[node])
        done, live, ready, begun = self.rush(0, self.start, first, floor, followers)
        beam: list[tuple[int, int, int, tuple[int, ...], _Trail]] = [
            (floor, live, done, ready, (tuple(begun), None))
        ]
        limit = given
        best: _Trail | None = None
        while beam:
            found: dict[int, tuple[int, int, int, tuple[int, ...], _Trail]] = {}
            for peak, live, done, ready, path in beam:
                if not ready and peak < limit:
                    limit, best = peak, path
                for node in ready:
                    meanwhile, after = self.run(node, done, live)
                    height = max(peak, meanwhile)
                    if height >= limit:
                        continue
                    rest = self.ready(node, done, ready, followers)
                    reached, left, rest, more = self.rush(done | 1 << node, after, rest, height, followers)
                    if reached not in found or (height, left) < found[reached][:2]:
                        found[reached] = (height, left, reached, rest, ((node, *more), path))
            beam = sorted(found.values(), key=lambda state: state[:2])[:BEAM]
        parts: list[tuple[int, ...]] = []
        trail: _Trail | None = best
        while trail is not None:
            parts.append(trail[0])
            trail = trail[1]
        return [node for part in reversed(parts) for node in part]


def _bits(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def _constant(outputs: Sequence[Tensor]) -> bool:
    """Whether a node only computes values that are the same in every call."""
    return bool(outputs) and all(tensor.value is not None for tensor in outputs)


def _activation(value: ir.Value, walked: Unrolled) -> bool:
    """Whether a value takes memory that comes and goes."""
    tensor = walked.tensors.get(value)
    return tensor is not None and not is_constant(value) and tensor.value is None


def _captured(body: Unrolled) -> set[ir.Value]:
    """The values from outside that a branch or loop body reads."""
    own = set(body.inputs) | {output for step in body.steps for output in step.node.outputs}
    found = {value for step in body.steps for value in step.node.inputs if value is not None} - own
    for step in body.steps:
        for inner in step.bodies:
            found |= _captured(inner) - own
    return found
