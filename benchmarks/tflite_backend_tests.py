"""ONNX's own node tests on the target ``tflite``: per operator, what passes, is refused, or fails.

``python -m benchmarks.tflite_backend_tests [OPERATOR]...`` prints the table. Expanded forms of functions
are left out. Inputs that are shapes, axes and the like are frozen to the case's values. Cases in element
types that TFLite's kernels lack, and resizing by modes that are not claimed, are not counted.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from edgeopt.errors import EdgeoptError, ModelError
from edgeopt.platform import Platform, load_platform
from edgeopt.session import signature
from edgeopt.targets.tflite import Tflite
from edgeopt.targets.tflite.flatbuffer import schema
from edgeopt.targets.tflite.session import runtime

_REDUCTIONS = ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum")
PARAMETERS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Reshape", "Expand", "Tile", "Squeeze", "Unsqueeze", "Split", "CumSum"), (1,)),
    **dict.fromkeys(("Gather", "GatherND", "PRelu"), (1,)),
    **dict.fromkeys((f"Reduce{name}" for name in _REDUCTIONS), (1,)),
    **dict.fromkeys(("Clip", "Dropout", "Conv", "ConvTranspose", "QuantizeLinear"), (1, 2)),
    **dict.fromkeys(("Pad", "Resize"), (1, 2, 3)),
    **dict.fromkeys(("Slice", "BatchNormalization"), (1, 2, 3, 4)),
    "ConstantOfShape": (0,),
    "DequantizeLinear": (0, 1, 2),
}
"""Inputs that are constants in any network that this target is for, frozen to the case's values."""

TYPES = {"float32", "int32", "int64", "bool"}
"""Those that TFLite computes in; its int8 is a quantized number, never a plain one."""
UNCLAIMED_RESIZE = (
    "cubic",
    "antialias",
    "crop_and_resize",
    "half_pixel_symmetric",
    "not_larger",
    "not_smaller",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one case: ``passed``, ``refused``, ``uncounted``, ``differs`` or ``crashed``."""

    case: str
    op_type: str
    kind: str
    reason: str = ""


Arrays = dict[str, Any]


@cache
def node_tests() -> list[Any]:
    """ONNX's node tests; some of their cases overflow on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(load_model_tests(kind="node"))


def cases(operators: set[str] | None = None) -> Iterator[tuple[str, str, onnx.ModelProto, Arrays, Arrays]]:
    """Yields name, operator, model, inputs and outputs of every node test that is no expansion."""
    for case in node_tests():
        proto = case.model
        if case.name.endswith("_expanded") or "_expanded_" in case.name or len(proto.graph.node) != 1:
            continue
        op_type = proto.graph.node[0].op_type
        if operators is None or op_type in operators:
            inputs, outputs = case.data_sets[0]
            yield (
                case.name,
                op_type,
                proto,
                dict(zip((value.name for value in proto.graph.input), inputs, strict=False)),
                dict(zip((value.name for value in proto.graph.output), outputs, strict=False)),
            )


def claimed(platform: Platform) -> set[str]:
    """The operators that the runtime's profile claims."""
    return set(platform.rules.operators[""])


def judge(
    name: str, op_type: str, proto: onnx.ModelProto, feeds: Arrays, expected: Arrays, platform: Platform
) -> Outcome:
    """Converts and runs one case."""
    if not all(isinstance(array, np.ndarray | np.generic) for array in (*feeds.values(), *expected.values())):
        return Outcome(name, op_type, "uncounted", "no tensors")
    feeds, expected = ({key: np.asarray(a) for key, a in side.items()} for side in (feeds, expected))
    frozen = _frozen(proto, feeds)
    used = {array.dtype.name for array in (*feeds.values(), *expected.values())}
    if used - TYPES:
        return Outcome(name, op_type, "uncounted", f"types {', '.join(sorted(used - TYPES))}")
    if op_type == "Resize" and any(mode in name for mode in UNCLAIMED_RESIZE):
        return Outcome(name, op_type, "uncounted", "a mode that is not claimed")
    if not expected or any(array.size == 0 for array in (*feeds.values(), *expected.values())):
        return Outcome(name, op_type, "uncounted", "empty arrays")
    target = Tflite()
    try:
        model = ir.from_proto(frozen)
        prepared, _ = target.prepare(model, platform)
        with tempfile.TemporaryDirectory() as scratch:
            emitted = target.emit(prepared, platform, Path(scratch))
            manifest: dict[str, Any] = {
                "model": emitted.main,
                "inputs": [asdict(spec) for spec in signature(model.graph.inputs)],
                "outputs": [asdict(spec) for spec in signature(model.graph.outputs)],
                "adapters": [asdict(adapter) for adapter in emitted.adapters],
            }
            given = {value.name or "": feeds[value.name or ""] for value in model.graph.inputs}
            got = target.open(Path(scratch), manifest).run(given)
    except ModelError as refusal:
        return Outcome(name, op_type, "refused", (refusal.where or str(refusal)).splitlines()[0])
    except EdgeoptError as failure:
        return Outcome(name, op_type, "crashed", str(failure))
    except Exception as failure:  # whatever it is, it is a crash of ours
        return Outcome(name, op_type, "crashed", f"{type(failure).__name__}: {failure}")
    for key, array in expected.items():
        if got[key].shape != array.shape or got[key].dtype != array.dtype:
            return Outcome(name, op_type, "differs", f"{got[key].dtype}{got[key].shape}")
        if not np.allclose(got[key], array, rtol=1e-3, atol=1e-5, equal_nan=True):
            worst = np.abs(got[key].astype(np.float64) - array).max()
            return Outcome(name, op_type, "differs", f"by {worst:.3g}")
    return Outcome(name, op_type, "passed")


def isolated(case: tuple[str, str, onnx.ModelProto, Arrays, Arrays], platform: Platform) -> Outcome:
    """Judges a case in a process of its own, since a kernel that fails a check ends its process."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        sender.send(judge(*case, platform))
        os._exit(0)
    sender.close()
    os.waitpid(child, 0)
    try:
        outcome: Outcome = receiver.recv()
    except EOFError:
        outcome = Outcome(case[0], case[1], "crashed", "the runtime ended its process")
    receiver.close()
    return outcome


def _frozen(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The case with its parameters as initializers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    node = copy.graph.node[0]
    names = {
        node.input[index]
        for index in PARAMETERS.get(node.op_type, ())
        if index < len(node.input) and node.input[index] in feeds
    }
    if node.op_type in ("Gemm", "MatMul") and len(node.input) > 2:
        names |= {name for name in node.input[1:] if name in feeds}
    kept = [value for value in copy.graph.input if value.name not in names]
    del copy.graph.input[:]
    copy.graph.input.extend(kept)
    copy.graph.initializer.extend(numpy_helper.from_array(feeds[name], name) for name in sorted(names))
    return copy


def main(operators: list[str]) -> int:
    """Prints the table, then everything that is not a pass."""
    platform = load_platform("generic-x86-64", "tflite")
    wanted = set(operators) or claimed(platform)
    # Every case is judged in a fork: what all of them import is imported here.
    runtime()
    schema()
    outcomes = [isolated(case, platform) for case in cases(wanted)]
    counts: dict[str, dict[str, int]] = {}
    for outcome in outcomes:
        row = counts.setdefault(outcome.op_type, {})
        row[outcome.kind] = row.get(outcome.kind, 0) + 1
    kinds = ("passed", "refused", "differs", "crashed", "uncounted")
    print(f"| operator | {' | '.join(kinds)} | share |\n|---|{'---|' * (len(kinds) + 1)}")
    for op_type, row in sorted(counts.items()):
        counted = sum(row.values()) - row.get("uncounted", 0)
        share = f"{row.get('passed', 0) / counted:.0%}" if counted else "-"
        print(f"| {op_type} | {' | '.join(str(row.get(kind, 0)) for kind in kinds)} | {share} |")
    for outcome in outcomes:
        if outcome.kind in ("refused", "differs", "crashed"):
            print(f"{outcome.kind}: {outcome.case}: {outcome.reason[:200]}")
    return int(any(outcome.kind in ("differs", "crashed") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
