"""Small models in ONNX, and running them both ways: what the tests of this target share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from edgeopt.graph.execute import Executor
from edgeopt.passes import Context, Facets, make
from edgeopt.platform import Platform, load_platform
from edgeopt.session import Session, signature
from edgeopt.targets.base import Emitted
from edgeopt.targets.tflite import Tflite

OPSET = 20


def platform() -> Platform:
    return load_platform("raspberry-pi-4", "tflite")


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    constants: Mapping[str, np.ndarray] | None = None,
    types: Mapping[str, int] | None = None,
) -> ir.Model:
    """A model of some nodes; values are float32 unless ``types`` says otherwise."""
    kinds = types or {}
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), None) for n in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def node(op_type: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(
        op_type, inputs.split(","), outputs.split(","), name=f"/{op_type}:{outputs}", **attributes
    )


def manifest(original: ir.Model, emitted: Emitted) -> dict[str, Any]:
    return {
        "model": emitted.main,
        "inputs": [asdict(spec) for spec in signature(original.graph.inputs)],
        "outputs": [asdict(spec) for spec in signature(original.graph.outputs)],
        "adapters": [asdict(adapter) for adapter in emitted.adapters],
    }


def convert(original: ir.Model, folder: Path, **options: Any) -> tuple[Session, ir.Model]:
    """Prepares, emits and opens a model; returns the session and the prepared model."""
    target, where = Tflite(**options), platform()
    prepared, _ = target.prepare(original, where)
    emitted = target.emit(prepared, where, folder)
    return target.open(folder, manifest(original, emitted)), prepared


def feeds_of(original: ir.Model, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        value.name or "": random.standard_normal([int(dim) for dim in value.shape or ()]).astype(np.float32)
        for value in original.graph.inputs
    }


def error(
    original: ir.Model, folder: Path, feeds: Mapping[str, np.ndarray] | None = None, **options: Any
) -> float:
    """The largest deviation from onnxruntime over the largest output."""
    session, prepared = convert(original, folder, **options)
    given = feeds_of(prepared) if feeds is None else feeds
    expected, got = Executor(original).run(given), session.run(given)
    worst = 0.0
    for name, array in expected.items():
        assert got[name].shape == array.shape
        assert got[name].dtype == array.dtype
        scale = max(float(np.abs(array).max()), 1e-30)
        worst = max(worst, float(np.abs(got[name].astype(np.float64) - array).max()) / scale)
    return worst


class Calls:
    """Calibration samples that a test makes up."""

    def __init__(self, samples: Sequence[Mapping[str, np.ndarray]]) -> None:
        self._samples = [dict(sample) for sample in samples]
        self.digest = "made up"
        self.labels = None

    def __len__(self) -> int:
        return len(self._samples)

    def feeds(self, batch: int = 1) -> Iterator[dict[str, np.ndarray]]:
        yield from self._samples


def quantize(original: ir.Model, samples: int = 4) -> ir.Model:
    """The model with static int8 quantization by this runtime's rules, calibrated on seeded data."""
    where = platform()
    prepared, _ = Tflite().prepare(original, where)
    calls = Calls([feeds_of(prepared, seed) for seed in range(samples)])
    context = Context(Facets(rules=where.rules, calibration=calls))
    make("static-int8", {"observer": "min-max"}).apply(prepared, context)  # type: ignore[union-attr]
    return prepared
