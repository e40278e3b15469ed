"""How near the autograd room's forward results are to the reference.

    python -m benchmarks.autograd_parity nodes          ONNX's own node tests, per operator
    python -m benchmarks.autograd_parity zoo [NAME]...  every model of the zoo on its own data

Node tests count where they hold one model of tensors with operators that the room claims. A test is equal
where every output has the expected shape and is within 1e-5 of the largest magnitude (1e-3 for float16,
1e-2 for bfloat16), NaN and infinities at the same places; integers are equal.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from edgeopt.errors import ModelError
from edgeopt.graph import autograd
from edgeopt.graph.execute import Executor

RELATIVE = {"float16": 1e-3, "bfloat16": 1e-2}


def claimed_cases(step: int = 1) -> Iterator[tuple[str, onnx.ModelProto, dict[str, Any], list[Any]]]:
    """Yields node tests whose operators are all in the table: name, model, inputs, expected outputs."""
    known = {*autograd.table(), "If"}
    for name, model, inputs, expected in itertools.islice(node_cases_with_outputs(), 0, None, step):
        operators = {node.op_type for node in model.graph.node}
        domains = {node.domain for node in model.graph.node}
        if operators <= known and domains <= {"", "ai.onnx"}:
            yield name, model, inputs, expected


def node_cases_with_outputs() -> Iterator[tuple[str, onnx.ModelProto, dict[str, Any], list[Any]]]:
    """Yields every node test that has data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = sorted(collect_testcases(None), key=lambda case: case.name)
    for case in cases:
        for inputs, outputs in (case.data_sets or [])[:1]:
            names = [value.name for value in case.model.graph.input]
            yield case.name, case.model, dict(zip(names, inputs, strict=False)), list(outputs)


def deviation(expected: np.ndarray, got: np.ndarray) -> float:
    """The largest difference relative to the largest magnitude; infinite where shapes or marks differ."""
    if expected.shape != got.shape:
        return float("inf")
    one, two = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(one)
    if not np.array_equal(one[~finite], two[~finite], equal_nan=True) or not np.isfinite(two[finite]).all():
        return float("inf")
    if not finite.any():
        return 0.0
    return float(np.abs(one[finite] - two[finite]).max() / max(float(np.abs(one[finite]).max()), 1e-12))


def check(model: onnx.ModelProto, inputs: dict[str, Any], expected: list[Any]) -> str:
    """Runs one node test; returns "" where it is equal, ``refused: ...`` or what is wrong."""
    if any(item is None or isinstance(item, (list, tuple, str)) for item in [*inputs.values(), *expected]):
        return "refused: no tensors"
    expected = [_array(item) for item in expected]
    inputs = {name: _array(item) for name, item in inputs.items()}
    converted = ir.from_proto(model)
    try:
        found = autograd.run(converted, inputs)
    except ModelError as refusal:
        return f"refused: {refusal.message}"
    for value, want, got in zip(converted.graph.outputs, expected, found.values(), strict=True):
        kind = "bfloat16" if value.dtype == ir.DataType.BFLOAT16 else str(want.dtype)
        if want.dtype.kind in "SUO":
            return "refused: no tensors"
        limit = RELATIVE.get(kind, 1e-5) if want.dtype.kind == "f" or kind == "bfloat16" else 0.0
        error = deviation(np.asarray(want), autograd.to_numpy(got))
        if error > limit:
            if deviation(_onnxruntime(model, inputs)[value.name or ""], autograd.to_numpy(got)) <= limit:
                return "refused: onnxruntime, the reference, computes what torch does"
            return f"{value.name} differs by {error:.1e}"
    return ""


def _onnxruntime(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with Executor(ir.from_proto(model)) as executor:
        return executor.run(inputs)


def _array(item: Any) -> np.ndarray:
    return onnx.numpy_helper.to_array(item) if isinstance(item, onnx.TensorProto) else np.asarray(item)


def nodes() -> None:
    """Prints counts per operator, and each test that is not equal."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for name, model, inputs, expected in claimed_cases():
        try:
            why = check(model, inputs, expected)
        except Exception as failure:  # whatever is raised is a finding
            why = f"{type(failure).__name__}: {str(failure).splitlines()[0]}"
        verdict = "equal" if not why else "refused" if why.startswith("refused") else "wrong"
        for operator in {node.op_type for node in model.graph.node}:
            counts[operator][verdict] += 1
        counts[""][verdict] += 1
        if why:
            print(f"{name:60} {why}")
    for operator in sorted(counts):
        print(f"{operator or 'all':28} {dict(counts[operator])}")


def zoo(names: list[str]) -> None:
    """Prints the largest relative deviation of each model's outputs from the reference, on its data."""
    from benchmarks.zoo.models import ENTRIES, open_entry
    from edgeopt import passes
    from edgeopt.graph.opset import raise_opset
    from edgeopt.load import load
    from edgeopt.optimization import EXACT
    from edgeopt.passes import Context, Pass

    print("| model | calls | largest relative deviation | seconds, onnxruntime and torch |")
    print("|---|---|---|---|")
    for name, entry in ENTRIES.items():
        if names and name not in names:
            continue
        sessions = entry.sessions()
        data, _, harness = open_entry(entry, sessions)
        for part, path in entry.files().items():
            model, _ = raise_opset(load(str(path)))
            for step in EXACT:
                made = passes.make(step)
                assert isinstance(made, Pass)
                made.apply(model, Context(verify="off"))
            if harness is None:
                assert data.calibrate is not None
                calls = list(itertools.islice(data.calibrate.feeds(), 2))
            else:
                calls = _recorded(sessions, part, data, harness)
            segment = autograd.Segment(model)
            worst, seconds = 0.0, [0.0, 0.0]
            import torch

            with Executor(model) as executor, torch.no_grad():
                for feeds in calls:
                    start = time.perf_counter()
                    expected = executor.run(feeds)
                    middle = time.perf_counter()
                    got = segment(feeds)
                    seconds[0] += middle - start
                    seconds[1] += time.perf_counter() - middle
                    for key, want in expected.items():
                        worst = max(worst, deviation(want, autograd.to_numpy(got[key])))
            label = name if len(entry.parts) == 1 else f"{name} {part}"
            print(
                f"| {label} | {len(calls)} | {worst:.1e} | {seconds[0]:.3f}, {seconds[1]:.3f} |", flush=True
            )


def _recorded(sessions: Any, part: str, data: Any, harness: Any) -> list[dict[str, np.ndarray]]:
    """The first calls that a harness makes to one part."""
    from edgeopt.harness import record_calls

    samples = record_calls(harness, sessions, data.calibrate)[part]
    return list(itertools.islice(samples.feeds(), 2))


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["nodes", "zoo"])
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    nodes() if options.what == "nodes" else zoo(options.names)


if __name__ == "__main__":
    main()
