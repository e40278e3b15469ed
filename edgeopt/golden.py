"""Golden vectors and input histograms: what a board checks an artifact against."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.artifact import write_arrays
from edgeopt.errors import ModelError, RuntimeFailure
from edgeopt.graph import seeds
from edgeopt.graph.execute import Executor
from edgeopt.platform import RuntimeVersion
from edgeopt.session import Session

COUNT = 4
"""Golden vectors of an artifact."""

BINS = 64


def write_golden(
    prepared: ir.Model,
    calls: Iterable[Mapping[str, np.ndarray]],
    rules: RuntimeVersion,
    precision: str,
    folder: Path,
    root: Path,
) -> dict[str, Any]:
    """Writes inputs and the outputs of the prepared model in reference mode.

    Args:
        prepared: The model whose numbers the artifact carries.
        calls: Model calls, of which the first ``COUNT`` are taken.
        rules: They hold the tolerance.
        precision: The artifact's precision, such as ``static-int8``.
        folder: Where the files go.
        root: The artifact's folder, which the manifest's paths are relative to.

    Returns:
        The manifest's entry: files, count, tolerance and where it comes from.
    """
    folder.mkdir(parents=True)
    inputs: dict[str, np.ndarray] = {}
    outputs: dict[str, np.ndarray] = {}
    count = 0
    with Executor(prepared) as executor:
        for index, feeds in enumerate(islice(calls, COUNT)):
            inputs.update({f"{index}.{name}": array for name, array in feeds.items()})
            outputs.update({f"{index}.{name}": array for name, array in executor.run(feeds).items()})
            count += 1
    write_arrays(folder / "inputs.npz", inputs)
    write_arrays(folder / "outputs.npz", outputs)
    entry: dict[str, Any] = {
        "inputs": (folder / "inputs.npz").relative_to(root).as_posix(),
        "outputs": (folder / "outputs.npz").relative_to(root).as_posix(),
        "count": count,
        "precision": precision,
    }
    if (tolerance := rules.tolerance.get(precision)) is not None:
        entry["tolerance"] = tolerance.model_dump()
    return entry


def check(folder: Path, part: Mapping[str, Any], session: Session) -> dict[str, Any] | None:
    """Runs a part's golden vectors; ``None`` where it has none.

    Args:
        folder: The artifact's folder.
        part: The part's manifest.
        session: The part, running anywhere.

    Returns:
        ``deviation``: the largest difference over the largest expected magnitude, of any output and
        vector; infinite where shapes or the places of NaN differ. ``tolerance``, where the runtime's
        profile gives one, and whether they ``passed``: ``None`` without a tolerance.

    Raises:
        RuntimeFailure: The runtime fails on a vector.
    """
    entry = part.get("golden")
    if not entry:
        return None
    with np.load(folder / entry["inputs"]) as inputs, np.load(folder / entry["outputs"]) as outputs:
        worst = 0.0
        for index in range(entry["count"]):
            prefix = f"{index}."
            call = {name.removeprefix(prefix): inputs[name] for name in inputs if name.startswith(prefix)}
            found = session.run(call)
            for name in outputs:
                if name.startswith(prefix):
                    worst = max(worst, _deviation(outputs[name], found[name.removeprefix(prefix)]))
    tolerance = entry.get("tolerance", {}).get("relative")
    passed = None if tolerance is None else worst <= tolerance
    return {"deviation": worst, "tolerance": tolerance, "passed": passed, "count": entry["count"]}


def _deviation(expected: np.ndarray, found: np.ndarray) -> float:
    if expected.shape != found.shape:
        return math.inf
    if not expected.size:
        return 0.0
    first, second = np.asarray(expected, np.float64), np.asarray(found, np.float64)
    finite = np.isfinite(first)
    if (
        not np.array_equal(first[~finite], second[~finite], equal_nan=True)
        or not np.isfinite(second[finite]).all()
    ):
        return math.inf
    difference = float(np.abs(first - second)[finite].max(initial=0.0))
    return difference / max(float(np.abs(first[finite]).max(initial=0.0)), 1e-30) if difference else 0.0


def histograms(
    calls: Iterable[Mapping[str, np.ndarray]], ranges: Mapping[str, tuple[float, float]]
) -> dict[str, Any]:
    """Counts the values of every input in 64 bins between its smallest and largest.

    Args:
        calls: Model calls, streamed.
        ranges: Per input its smallest and largest value, from ``input_ranges``.
    """
    counts = {name: np.zeros(BINS, np.int64) for name in ranges}
    for feeds in calls:
        for name, (low, high) in ranges.items():
            found, _ = np.histogram(
                np.asarray(feeds[name], np.float64), BINS, (low, high if high > low else low + 1)
            )
            counts[name] += found
    return {
        name: {"low": low, "high": high, "counts": counts[name].tolist()}
        for name, (low, high) in ranges.items()
    }


def input_ranges(calls: Iterable[Mapping[str, np.ndarray]]) -> dict[str, tuple[float, float]]:
    """Finds the smallest and largest value of every numeric input, streamed."""
    found: dict[str, tuple[float, float]] = {}
    for feeds in calls:
        for name, array in feeds.items():
            if array.dtype.kind not in "fiub" or not array.size:
                continue
            low, high = float(array.min()), float(array.max())
            known = found.get(name, (low, high))
            found[name] = (min(low, known[0]), max(high, known[1]))
    return dict(sorted(found.items()))


def seeded_calls(model: ir.Model, seed: int, count: int = COUNT) -> list[dict[str, np.ndarray]]:
    """Draws inputs for a model without data; symbolic dimensions are 1, or the smallest that it runs with.

    Raises:
        ModelError: No inputs can be drawn that the model runs with.
    """
    given = [value for value in model.graph.inputs if not value.is_initializer()]
    names = seeds.symbols(given)
    tried = [dict.fromkeys(names, 1), *(seeds.distinct(names, sizes) for sizes in seeds.SIZES)]
    failure = "its inputs cannot be drawn"
    with Executor(model) as executor:
        for binding in tried:
            calls = []
            for index in range(count):
                drawn = {value.name or "": seeds.array(value, binding, seed + index) for value in given}
                calls.append({name: array for name, array in drawn.items() if array is not None})
            try:
                executor.run(calls[0])
            except RuntimeFailure as error:
                failure = error.message
                continue
            return calls
    raise ModelError(
        f"the model does not run on seeded inputs: {failure}", hint="give --data, or --shape NAME=1,3,224,224"
    )
