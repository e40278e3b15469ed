"""Random valid graphs through every exact pass.

    python -m benchmarks.fuzz COUNT [--first SEED] [--verify off|fast|full] [--keep FOLDER]

Each graph is grown from its seed, node by node, on values whose shapes are known: 1 to 40 steps over
arithmetic, data movement, reductions, products, convolutions, normalizations, attention, shape arithmetic,
casts between all types, quantization, functions, and If, Loop and Scan bodies that capture values from
outside and nest. Weights are shared, constants repeated or held in nodes, nodes doubled, sizes symbolic or
unnamed. All exact passes run, those that ``optimize`` leaves out too. Proofs are off unless asked for, so
that a wrong rule shows; what decides is onnxruntime's reference mode before and after, at the sizes that
the graph was grown with and, where it runs there, at others. Operators that jump (Floor, comparisons,
casts to integers) are put only on values that no rewrite may change in the last bits. Prints how many
graphs were equal, not valid, or different.
"""

from __future__ import annotations

import argparse
import collections
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from benchmarks.random_graphs import grow
from edgeopt import passes
from edgeopt.errors import RuntimeFailure
from edgeopt.graph.execute import Executor
from edgeopt.optimization import STANDARD, optimize

FLOAT = np.dtype(np.float32)
TOLERANCE = {np.dtype(np.float16): 3e-2, FLOAT: 1e-4, np.dtype(np.float64): 1e-4}
"""How far a whole graph may differ, relative to the largest magnitude: many rewrites add up."""


def outcome(seed: int, verify: Any = "off") -> str:
    """``equal``, ``not valid``, or how the graph of a seed differs after all passes."""
    model, calls = grow(seed)
    if not model.graph.output:
        return "not valid"
    expected = []
    for feeds in calls:
        try:
            expected.append(run(model, feeds))
        except RuntimeFailure:
            if not expected:
                return "not valid"
            break
    try:
        result = optimize(model, steps=every_pass(), verify=verify)
        for feeds, before in zip(calls, expected, strict=False):
            after = run(result, feeds)
            if list(before) != list(after):
                return f"outputs {list(before)} became {list(after)}"
            for name, one in before.items():
                if reason := difference(np.asarray(one), np.asarray(after[name])):
                    return f"{name}: {reason}"
    except Exception as failure:  # whatever it raises is a finding
        return f"{type(failure).__name__}: {str(failure)[:300]}"
    return "equal"


@cache
def every_pass() -> tuple[str, ...]:
    """What ``optimize`` runs, and before its end every other exact pass that needs no data."""
    made = {name: passes.make(name) for name in passes.names()}
    others = [
        name
        for name, item in made.items()
        if isinstance(item, passes.Pass) and item.keeps == "exact" and item.reads <= {"rules"}
        if name not in STANDARD and name != "convert-opset"
    ]
    return (*STANDARD[:-1], *others, STANDARD[-1])


def difference(one: np.ndarray, two: np.ndarray) -> str:
    """Why two outputs are not equal; "" where they are."""
    if one.shape != two.shape or one.dtype != two.dtype:
        return f"{one.dtype}{list(one.shape)} became {two.dtype}{list(two.shape)}"
    if one.dtype not in TOLERANCE:
        return "" if np.array_equal(one, two) else "other numbers"
    finite = np.isfinite(one)
    if not np.array_equal(one[~finite], two[~finite], equal_nan=True):
        return "NaN or Inf at other places"
    wide = np.abs(one[finite].astype(np.float64))
    gap = np.abs(two[finite].astype(np.float64) - one[finite]).max(initial=0)
    return "" if gap <= TOLERANCE[one.dtype] * max(wide.max(initial=0), 1e-6) else f"differs by {gap:.2g}"


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    """Runs one call in reference mode, with the inputs that the model still has."""
    parsed = ir.from_proto(model)
    with Executor(parsed) as executor:
        return dict(executor.run({v.name or "": feeds[v.name or ""] for v in parsed.graph.inputs}))


def main() -> None:
    """Runs the fuzzer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--verify", choices=["off", "fast", "full"], default="off")
    parser.add_argument("--keep", type=Path, help="write graphs that differ into this folder")
    arguments = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    start = time.process_time()
    for seed in range(arguments.first, arguments.first + arguments.count):
        found = outcome(seed, arguments.verify)
        counts[found if found in ("equal", "not valid") else "different"] += 1
        if found not in ("equal", "not valid"):
            print(seed, found, flush=True)
            if arguments.keep:
                onnx.save(grow(seed)[0], arguments.keep / f"{seed}.onnx")
    print(dict(counts), f"{time.process_time() - start:.0f} CPU s")
    if counts["different"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
