"""A look inside a model: its operators, what each layer costs, and what a platform makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import onnx_ir as ir

from edgeopt.errors import UserError
from edgeopt.evidence import Evidence
from edgeopt.graph.cost import NodeCost, cost, model_size
from edgeopt.graph.memory import PeakMemory, peak_activation
from edgeopt.graph.names import original_names
from edgeopt.graph.sizes import Shapes
from edgeopt.platform import Platform
from edgeopt.predict import peak_memory, predict
from edgeopt.session import signature
from edgeopt.targets.base import Problem


@dataclass(frozen=True, slots=True)
class Layer:
    """One node and what it costs.

    Attributes:
        cost: Its cost.
        original: The names in the user's model that it stands for.
        seconds: Its predicted time, all its repeats together; ``None`` without a device.
    """

    cost: NodeCost
    original: tuple[str, ...]
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a look inside a model shows.

    Attributes:
        parameters: Elements of all weights.
        macs: Multiply-accumulates of one call.
        operations: Elementary operations of one call.
        bytes: Bytes of the weights as stored.
        peak: The peak memory of the activations.
        layers: Every node that runs.
        operators: How often each operator occurs.
        inputs: Per input its element type and shape.
        outputs: The same for outputs.
        opset: Per domain the version.
        assumed: Symbolic dimensions without a given size, taken as 1.
        unknown: Values whose shape is not known; their cost is not counted.
        unbounded: Loops whose number of rounds depends on the data, counted as one round.
        latency: The predicted latency, with a device.
        memory: The predicted peak memory of the process, with a device.
        problems: What the platform cannot run; ``None`` where nobody could tell.
    """

    parameters: int
    macs: int
    operations: int
    bytes: int
    peak: PeakMemory
    layers: list[Layer]
    operators: dict[str, int]
    inputs: dict[str, str]
    outputs: dict[str, str]
    opset: dict[str, int]
    assumed: dict[str, int] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    unbounded: list[str] = field(default_factory=list)
    latency: Evidence | None = None
    memory: Evidence | None = None
    problems: list[Problem] | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain JSON data."""
        return {
            "parameters": self.parameters,
            "macs": self.macs,
            "operations": self.operations,
            "bytes": self.bytes,
            "peak_activation_bytes": self.peak.bytes,
            "peak_activation": {
                "bytes": self.peak.bytes,
                "given_order_bytes": self.peak.given,
                "proved_optimal": self.peak.optimal,
                "at": self.peak.at,
            },
            "operators": self.operators,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "opset": self.opset,
            "assumed": self.assumed,
            "unknown": self.unknown,
            "unbounded_loops": self.unbounded,
            "latency": None if self.latency is None else self.latency.to_json(),
            "peak_memory": None if self.memory is None else self.memory.to_json(),
            "cannot_run": None if self.problems is None else [asdict(problem) for problem in self.problems],
            "layers": [
                {
                    **asdict(layer.cost),
                    "original_names": list(layer.original),
                    "predicted_seconds": layer.seconds,
                }
                for layer in self.layers
            ],
        }


def inspect(
    model: ir.Model,
    platform: Platform | None = None,
    shapes: Shapes | None = None,
    *,
    threads: int = 1,
    file_bytes: int | None = None,
) -> Inspection:
    """Looks inside a model.

    Args:
        model: The model; it is not changed.
        platform: Where it shall run, for predictions and for what cannot run there.
        shapes: Shapes of inputs; a symbolic dimension not bound by them counts as 1.
        threads: Threads of one operator, for the prediction.
        file_bytes: The size of the model's files, for the predicted memory; that of its weights otherwise.

    Raises:
        ModelError: There is no such input, or a shape contradicts the model.
    """
    counted = cost(model, shapes)
    seconds: list[float | None] = [None] * len(counted.nodes)
    latency = memory = None
    if platform is not None:
        prediction = predict(model, platform, threads, shapes)
        latency, seconds = prediction.latency, list(prediction.seconds)
        memory = peak_memory(file_bytes or model_size(model), model, platform, shapes)
    originals = _originals(model)
    return Inspection(
        parameters=counted.parameters,
        macs=counted.macs,
        operations=counted.operations,
        bytes=counted.parameter_bytes,
        peak=peak_activation(model, shapes),
        layers=[
            Layer(node, originals.get(node.name, (node.name,)), taken)
            for node, taken in zip(counted.nodes, seconds, strict=True)
        ],
        operators=dict(Counter(node.op_type for node in model.graph.all_nodes()).most_common()),
        inputs={spec.name: _text(spec.dtype, spec.shape) for spec in signature(model.graph.inputs)},
        outputs={spec.name: _text(spec.dtype, spec.shape) for spec in signature(model.graph.outputs)},
        opset=dict(model.opset_imports),
        assumed=counted.assumed,
        unknown=counted.unknown,
        unbounded=counted.unbounded,
        latency=latency,
        memory=memory,
        problems=None if platform is None else _problems(model, platform),
    )


def _originals(model: ir.Model) -> Mapping[str, tuple[str, ...]]:
    return {node.name: original_names(node) for node in model.graph.all_nodes() if node.name}


def _text(dtype: str, shape: tuple[int | str, ...]) -> str:
    return f"{dtype}[{', '.join(map(str, shape))}]"


def _problems(model: ir.Model, platform: Platform) -> list[Problem] | None:
    """What the platform cannot run, by its target; ``None`` where the target is not there."""
    from edgeopt import targets

    try:
        target = targets.make(platform.runtime.target)
    except UserError:
        return None
    return target.check(model, platform)
