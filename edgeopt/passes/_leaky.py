"""Ranges on both sides of a leaky ReLU, chosen together.

An integer leaky ReLU is a table from one set of levels to another. What is negative behind it is small, so
levels of its own there are finer, at the price of rounding positive numbers twice; with the levels of its
input they are rounded once, but negative numbers coarsely. Which is better depends on what was seen, so both
are tried, over shrunken ranges before and behind, and the pair taken that leaves the least squared error.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from edgeopt.graph.observers import Observer, parameters
from edgeopt.graph.quantization import QuantParams, integer_range
from edgeopt.graph.rewriting import constant
from edgeopt.graph.slopes import fitted_scale, fitting

HIGHS = (1.0, 0.92, 0.84, 0.76, 0.68, 0.6, 0.5)
LOWS = (1.0, 0.8, 0.6, 0.45, 0.3, 0.2, 0.1, 0.05)
"""Shares of the extremes that the range before the leaky ReLU may reach."""

BEHIND = (1.0, 0.94, 0.88, 0.8, 0.7, 0.6)
"""Shares of that range's ends that the range behind it may reach."""


def around(
    observer: Observer, slope: float, dtype: ir.DataType, factor: int = 0
) -> tuple[QuantParams, QuantParams] | None:
    """Returns the parameters before and behind a leaky ReLU, or ``None`` where nothing was seen to choose by.

    Args:
        observer: What was seen before it.
        slope: Its slope for negative numbers, between 0 and 1.
        dtype: The integer type.
        factor: Where the kernel multiplies in fixed point, one over its smallest factor; 0 elsewhere.
    """
    low, high = min(observer.low, 0.0), max(observer.high, 0.0)
    seen = observer.seen()
    if seen is None or high <= 0 or low >= 0:
        return None
    used = seen.counts > 0
    values, weights = seen.centers[used], seen.counts[used]
    wanted = np.where(values < 0, slope * values, values)
    first, last = integer_range(dtype)
    best, chosen = np.inf, None
    for above in HIGHS:
        for below in LOWS:
            free = parameters(low * below, high * above, dtype)
            for behind in _candidates(free, slope, low * below, high * above, dtype):
                before, told = _fitted(free, behind, slope, factor)
                passed = _rounded(values, before, first, last)
                passed = np.where(passed < 0, told * passed, passed)
                made = _rounded(passed, behind, first, last)
                error = float(np.dot(weights, (made - wanted) ** 2))
                if error < best:
                    best, chosen = error, (before, behind)
    return chosen


def _fitted(before: QuantParams, behind: QuantParams, slope: float, factor: int) -> tuple[QuantParams, float]:
    """The parameters before it that the kernel takes, and the slope that it then has."""
    assert before.scale is not None and behind.scale is not None
    found = fitting(float(before.scale) / float(behind.scale), slope, factor) if factor else None
    if found is None:
        return before, slope
    scale = fitted_scale(float(behind.scale), found[0], factor)
    return replace(before, scale=np.asarray(scale, np.float32)), found[1] / found[0]


def _candidates(
    before: QuantParams, slope: float, low: float, high: float, dtype: ir.DataType
) -> list[QuantParams]:
    return [before, *(parameters(slope * low, high * share, dtype) for share in BEHIND)]


def _rounded(values: np.ndarray, params: QuantParams, first: int, last: int) -> np.ndarray:
    assert params.scale is not None
    zero = 0.0 if params.zero_point is None else float(params.zero_point)
    step = float(params.scale)
    numbers: np.ndarray = (np.clip(np.rint(values / step) + zero, first, last) - zero) * step
    return numbers


def halves(model: ir.Model) -> dict[str, str]:
    """Returns what ``split-leaky-relu`` made: per value of a positive side the sum that it is a summand of.

    Max pools may stand between; the value is the one that the sum reads.
    """
    found = {}
    for node in model.graph:
        if node.op_type != "Add" or any(value is None or len(value.uses()) > 1 for value in node.inputs):
            continue
        cuts = [_before_pools(value) for value in node.inputs]
        for value, one, other in zip(node.inputs, cuts, reversed(cuts), strict=True):
            if value is not None and one is not None and one.op_type == "Relu" and _keeps_negative(other):
                found[value.name or ""] = node.outputs[0].name or ""
    return found


def _before_pools(value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    while node is not None and node.op_type == "MaxPool" and node.inputs[0] is not None:
        if len(node.inputs[0].uses()) > 1:
            return None
        node = node.inputs[0].producer()
    return node


def _keeps_negative(node: ir.Node | None) -> bool:
    """Whether a node is Clip to what is not above zero."""
    if node is None or node.op_type != "Clip" or len(node.inputs) < 3 or node.inputs[1] is not None:
        return False
    bound = constant(node.inputs[2])
    return bound is not None and bound.size == 1 and float(bound.reshape(-1)[0]) == 0
