"""The calls of the model that training goes through."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.errors import RuntimeFailure
from edgeopt.graph.autograd import Segment
from edgeopt.graph.autograd.operators import require_torch
from edgeopt.graph.cost import cost
from edgeopt.graph.execute import Executor
from edgeopt.passes.base import Divisible, Samples

MULTIPLIES_PER_SECOND = 3e10
BYTES_PER_SECOND = 5e9
SECONDS_PER_NODE = 4e-5
"""What torch does on one core of the machines that edgeopt runs on; estimates of time rest on these."""

PASSES = 3
"""A step of training costs about three times running forward."""


@contextlib.contextmanager
def one_thread(torch: Any) -> Iterator[None]:
    """Computes with one thread, whose sums do not depend on the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def draw_order(generator: np.random.Generator, count: int, calls: int) -> np.ndarray:
    """Draws the call of every iteration: all in random order, again and again."""
    rounds = -(-count // calls)
    return np.concatenate([generator.permutation(calls) for _ in range(max(rounds, 1))])


def run_each(
    executor: Executor, feeds: Mapping[str, np.ndarray], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Runs a call, one sample at a time where the original takes only one."""
    try:
        return executor.run(feeds, names)
    except RuntimeFailure:
        count = max(array.shape[0] for array in feeds.values())
        rows = [
            executor.run({name: array[index : index + 1] for name, array in feeds.items()}, names)
            for index in range(count)
        ]
        return {name: np.concatenate([row[name] for row in rows]) for name in names}


def input_shapes(feeds: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every input."""
    return {name: tuple(array.shape) for name, array in feeds.items()}


def read_calls(model: ir.Model, data: Samples, count: int, batch: int) -> list[dict[str, np.ndarray]]:
    """Reads up to ``count`` samples as calls of ``batch``, or of what the model takes."""
    calls = list(islice(data.feeds(batch), -(-count // batch)))
    size = max((array.shape[0] for array in calls[0].values() if array.ndim), default=1)
    if size > 1 or batch == 1:
        return calls
    singles = list(islice(data.feeds(1), count))
    if len(singles) < 2 or not side_by_side(model, singles[:2]):
        return singles
    return [joined(singles[start : start + batch]) for start in range(0, len(singles), batch)]


def read_evenly(
    model: ir.Model, data: Samples, count: int, held: int, together: int
) -> tuple[list[dict[str, np.ndarray]], int]:
    """Reads calls of one sample, or as they were recorded, evenly spread over the data.

    Args:
        model: The model.
        data: The samples.
        count: At most so many calls.
        held: At most so many bytes of inputs and outputs, estimated by the first call.
        together: At most so many bytes of activations of calls that are joined.

    Returns:
        The calls, and how many of them may be joined to one; 0 where the model cannot compute several.
    """
    first = next(data.feeds(1))
    counted = cost(model, input_shapes(first)).nodes
    outputs = {value.producer() for value in model.graph.outputs}
    names = {node.name for node in outputs if node is not None}
    size = sum(array.nbytes for array in first.values())
    size += sum(node.written_bytes for node in counted if node.name in names)
    count = int(np.clip(held // max(size, 1), 1, min(count, len(data))))
    if isinstance(data, Divisible):
        data = data.limited(count)
    calls = list(islice(data.feeds(1), count))
    alike = all(input_shapes(call) == input_shapes(first) for call in calls)
    if len(calls) < 2 or not alike or not side_by_side(model, calls[:2]):
        return calls, 0
    activations = max(sum(node.written_bytes for node in counted), 1)
    return calls, max(1, together // activations)


def seconds_of(
    model: ir.Model, nodes: Sequence[ir.Node], shapes: Mapping[str, Sequence[int]], samples: float
) -> float:
    """Estimates the CPU seconds of a step of training, by arithmetic, memory traffic and nodes."""
    counted = {node.name: node for node in cost(model, dict(shapes)).nodes}
    found = [counted[node.name or ""] for node in nodes if node.name in counted]
    arithmetic = sum(node.macs for node in found) / MULTIPLIES_PER_SECOND
    traffic = sum(node.read_bytes + node.written_bytes for node in found) / BYTES_PER_SECOND
    return PASSES * (samples * (arithmetic + traffic) + SECONDS_PER_NODE * len(nodes))


def joined(calls: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Joins calls along their first axis."""
    return {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}


def side_by_side(model: ir.Model, calls: Sequence[Mapping[str, np.ndarray]]) -> bool:
    """Whether the graph, though made for one sample, computes several side by side; found by trying."""
    torch = require_torch()
    if any(call[name].shape != array.shape for call in calls for name, array in calls[0].items()):
        return False
    segment = Segment(model, quantized=False)
    try:
        with torch.no_grad():
            together = segment(joined(calls))
            alone = [segment(call) for call in calls]
    except (RuntimeError, ValueError, IndexError):  # what torch raises where shapes do not fit
        return False
    for name, tensor in together.items():
        rows = torch.cat([outputs[name] for outputs in alone]) if tensor.dim() else tensor
        if rows.shape != tensor.shape or not torch.allclose(rows.double(), tensor.double(), 1e-3, 1e-3):
            return False
    return True
