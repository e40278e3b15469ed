"""How exact the exact passes are.

    python -m benchmarks.exactness nodes [--step N]      ONNX's own node tests through every exact pass
    python -m benchmarks.exactness models                ONNX's own model tests, as far as they ship
    python -m benchmarks.exactness zoo FOLDER            every model of a folder through every exact pass

A test counts where onnxruntime runs it as it is. For the models it prints nodes before and after,
CPU seconds with all proofs, and the largest deviation of any output relative to its largest magnitude.
"""

from __future__ import annotations

import argparse
import collections
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from edgeopt import passes
from edgeopt.errors import RuntimeFailure
from edgeopt.graph import proof, seeds
from edgeopt.graph.execute import Executor
from edgeopt.optimization import STANDARD
from edgeopt.passes import Context, Pass

PASSES = (*dict.fromkeys(STANDARD), "fuse-group-norm", "fuse-silu", "memory-order")
"""Every exact pass, once."""

SIZES = {"batch": 2, "h": 64, "w": 48, "T": 7, "sequence": 11}
"""Sizes of symbolic dimensions when a whole model is compared."""


def node_cases(step: int = 1) -> Iterator[tuple[str, onnx.ModelProto, Mapping[str, Any]]]:
    """Yields every ``step``-th of ONNX's node tests: its name, its model and the inputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = sorted(collect_testcases(None), key=lambda case: case.name)
    for case in cases[::step]:
        for inputs, _ in (case.data_sets or [])[:1]:
            names = [value.name for value in case.model.graph.input]
            yield case.name, case.model, dict(zip(names, inputs, strict=False))


def model_cases() -> Iterator[tuple[str, onnx.ModelProto, Mapping[str, Any]]]:
    """Yields the model tests that ship with ONNX: small ones, torch's, and light forms of real networks."""
    from onnx.backend.test.loader import load_model_tests

    for kind in ("simple", "pytorch-converted", "pytorch-operator"):
        for case in load_model_tests(kind=kind):
            folder = Path(case.model_dir)
            model = onnx.load(folder / "model.onnx")
            stored = sorted(folder.glob("test_data_set_0/input_*.pb"), key=lambda path: int(path.stem[6:]))
            feeds = {}
            for given, path in zip(model.graph.input, stored, strict=False):
                if not given.type.HasField("tensor_type"):
                    break
                feeds[given.name] = numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))
            yield case.name, model, feeds
    for path in sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx")):
        model = onnx.load(path)
        given = [value for value in ir.from_proto(model).graph.inputs if not value.is_initializer()]
        drawn = {value.name or "": seeds.array(value, {}, 0) for value in given}
        yield path.stem, model, {name: numbers for name, numbers in drawn.items() if numbers is not None}


def differences(
    model: onnx.ModelProto, feeds: Mapping[str, Any], names: Sequence[str]
) -> dict[str, str] | None:
    """Runs a model before and after each pass and after all of them.

    Returns:
        Per pass (``all`` for all) why its result differs; ``None`` where onnxruntime cannot run the model
        as it is, or it gives another result each time.
    """
    before = ir.from_proto(model)
    try:
        expected = run(before, feeds)
        if not same(expected, run(before, feeds)):
            return None
    except RuntimeFailure:
        return None
    wrong = {}
    for label, steps in [*((name, [name]) for name in names), ("all", list(names))]:
        after = ir.from_proto(model)
        try:
            rewritten = apply(after, steps)
            if rewritten and not same(expected, run(after, feeds)):
                wrong[label] = "the outputs differ"
        except Exception as failure:  # whatever a pass raises is a finding
            wrong[label] = f"{type(failure).__name__}: {failure}"
    return wrong


def apply(model: ir.Model, names: Sequence[str]) -> int:
    """Applies passes in place, and returns how many rewrites they made."""
    count = 0
    for name in names:
        step = passes.make(name)
        assert isinstance(step, Pass)
        step.apply(model, Context())
        count += 1
    return count


def run(model: ir.Model, feeds: Mapping[str, Any]) -> list[Any]:
    """Runs one call in reference mode."""
    with Executor(model) as executor:
        return list(executor.run(feeds).values())


def same(expected: Sequence[Any], got: Sequence[Any]) -> bool:
    """Whether outputs are equal as a proof demands it."""
    if len(expected) != len(got):
        return False
    for one, two in zip(expected, got, strict=True):
        if isinstance(one, (list, tuple)):
            if not isinstance(two, (list, tuple)) or not same(one, two):
                return False
        elif one is None or two is None:
            if one is not two:
                return False
        elif proof.compare(np.asarray(one), np.asarray(two)).reason:
            return False
    return True


def check(cases: Iterable[tuple[str, onnx.ModelProto, Mapping[str, Any]]]) -> int:
    """Runs tests and prints what differs; returns how many do."""
    counts: collections.Counter[str] = collections.Counter()
    for name, model, feeds in cases:
        found = differences(model, feeds, PASSES)
        if found is None:
            counts["not run by onnxruntime, or random"] += 1
        elif found:
            counts["different"] += 1
            print(name, found)
        else:
            counts["equal"] += 1
    print(dict(counts))
    return counts["different"]


def zoo(folder: Path) -> None:
    """Prints a line per model."""
    print(f"{'model':44} {'nodes':>11} {'CPU s':>6} {'deviation':>9}  not exact, left out")
    for path in sorted(folder.rglob("*.onnx")):
        original = ir.load(path)
        worst, notes = 0.0, []
        for names in [*([name] for name in STANDARD), list(STANDARD)]:
            model = original.clone()
            start = time.process_time()
            for name in names:
                step = passes.make(name)
                assert isinstance(step, Pass)
                change = step.apply(model, Context())
                notes += [note for note in change.notes if "left out" in note]
            seconds = time.process_time() - start
            worst = max(worst, deviation(original, model))
        count = f"{len(original.graph)} -> {len(model.graph)}"
        print(f"{path.stem:44} {count:>11} {seconds:6.2f} {worst:9.1e}  {len(set(notes))}")
        for note in sorted(set(notes)):
            print("   ", note)


def deviation(before: ir.Model, after: ir.Model, seed: int = 1) -> float:
    """The largest deviation of any output relative to its largest magnitude, on inputs of real sizes."""
    given = [value for value in before.graph.inputs if not value.is_initializer()]
    binding = {name: SIZES.get(name, 3) for name in seeds.symbols(given)}
    feeds = {value.name or "": seeds.array(value, binding, seed) for value in given}
    known = {name: numbers for name, numbers in feeds.items() if numbers is not None}
    difference = proof.compare_all(run(before, known), run(after, known))
    return difference.error


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["nodes", "models", "zoo"])
    parser.add_argument("folder", nargs="?", default=os.environ.get("EDGEOPT_ZOO", "../shared/zoo"))
    parser.add_argument("--step", type=int, default=1, help="only every N-th node test")
    arguments = parser.parse_args()
    if arguments.what == "zoo":
        zoo(Path(arguments.folder))
    elif check(node_cases(arguments.step) if arguments.what == "nodes" else model_cases()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
