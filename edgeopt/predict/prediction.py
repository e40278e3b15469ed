"""The latency and peak memory of a model on a platform, each with the interval that it deserves."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import onnx_ir as ir

from edgeopt.evidence import Evidence
from edgeopt.graph.cost import Cost, cost
from edgeopt.graph.memory import peak_activation
from edgeopt.graph.precision import engine_precision
from edgeopt.graph.sizes import Shapes
from edgeopt.platform import Platform
from edgeopt.predict.accelerator import SPREAD, accelerator_seconds
from edgeopt.predict.efficiency import RuntimeEfficiency, Spread, load_efficiency
from edgeopt.predict.roofline import ARITHMETIC, Machine, layer_seconds

UNKNOWN_SPREAD = Spread(lower=0.3, upper=4.0)
"""Of precisions for which nothing is published."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A predicted latency.

    Attributes:
        latency: The median latency of one call, in seconds.
        seconds: Per node of ``cost`` its share, all its repeats together, in seconds.
        cost: What the model costs.
    """

    latency: Evidence
    seconds: tuple[float, ...]
    cost: Cost


def predict(
    model: ir.Model, platform: Platform, threads: int = 1, shapes: Shapes | None = None
) -> Prediction:
    """Predicts the median latency of one call.

    Args:
        model: The model; it is not changed.
        platform: The device and its runtime.
        threads: Threads of one operator.
        shapes: Shapes of inputs; a symbolic dimension not bound by them counts as 1.

    Raises:
        ModelError: There is no such input, or a shape contradicts the model.
        ProfileError: The device's profile names a core that is not known.
    """
    counted = cost(model, shapes)
    machine = Machine.of(platform.device, threads)
    accelerator = platform.accelerator
    if accelerator is None:
        seconds = tuple(layer_seconds(node, machine, platform) * node.repeats for node in counted.nodes)
        spread = _spread(counted, seconds, platform)
    else:
        engine = engine_precision(model)
        seconds = tuple(
            accelerator_seconds(node, accelerator, engine) * node.repeats for node in counted.nodes
        )
        spread = SPREAD
    total = sum(seconds)
    evidence = Evidence(
        quantity="latency",
        value=total,
        unit="s",
        how="predicted",
        where=platform.device.name,
        interval=(total * spread.lower, total * spread.upper),
        runtime=f"{platform.runtime.name} {platform.runtime_version}",
        conditions={
            "threads": machine.threads,
            **({"accelerator": accelerator.name} if accelerator is not None else {}),
            **({"core": platform.device.cpu.clusters[0].core} if coverage(platform) is not None else {}),
            "statistic": "median",
            "shapes": {name: list(shape) for name, shape in (shapes or {}).items()},
            **({"assumed": dict(counted.assumed)} if counted.assumed else {}),
        },
    )
    return Prediction(evidence, seconds, counted)


def peak_memory(
    model_bytes: int, model: ir.Model, platform: Platform, shapes: Shapes | None = None
) -> Evidence:
    """Predicts the peak memory of a process that runs a model.

    It is the size of the model's files, the peak of its activations, and what the runtime takes empty.
    The interval is that of measured over predicted on the host (benchmarks/memory.py): below, since a
    runtime computes some activations in place and fuses others away; above, since it keeps weights a
    second time in an order that its kernels like.

    Args:
        model_bytes: Bytes of the model's files.
        model: The model.
        platform: The device and its runtime.
        shapes: Shapes of inputs; a symbolic dimension not bound by them counts as 1.
    """
    peak = peak_activation(model, shapes)
    empty = platform.rules.memory
    total = empty + model_bytes + peak.bytes
    return Evidence(
        quantity="peak_memory",
        value=float(total),
        unit="B",
        how="predicted",
        where=platform.device.name,
        interval=(empty + 0.5 * (model_bytes + peak.bytes), 1.15 * empty + 3.0 * (model_bytes + peak.bytes)),
        runtime=f"{platform.runtime.name} {platform.runtime_version}",
        conditions={"threads": 1},
        detail={
            "model": model_bytes,
            "activations": peak.bytes,
            "runtime": empty,
            "optimal_order": peak.optimal,
        },
    )


@dataclass(frozen=True, slots=True)
class RooflinePredictor:
    """The latency model of one platform, as passes see it."""

    platform: Platform
    threads: int = 1
    shapes: Shapes = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of everything the prediction depends on."""
        table = load_efficiency().model_dump_json()
        shapes = {name: list(shape) for name, shape in sorted(self.shapes.items())}
        text = f"{self.platform.digest} {table} {self.threads} {shapes}"
        return hashlib.sha256(text.encode()).hexdigest()

    def latency(self, model: ir.Model) -> float:
        """Predicts the median latency of one call, in seconds."""
        return predict(model, self.platform, self.threads, self.shapes).latency.value


def coverage(platform: Platform) -> str | None:
    """A sentence where the device's fastest core is none that the prediction was fitted to.

    Its arithmetic is known (``edgeopt.cores``), the share of it that kernels reach is that of all fitted
    cores together, and the interval is wider by ``Efficiency.unfitted``.
    """
    table, core = load_efficiency(), platform.device.cpu.clusters[0].core
    if platform.accelerator is not None or core in table.cores:
        return None
    return (
        f"no published run on a {core} was fitted: its latency is predicted as if it used its units as the "
        "fitted cores do, with a wider interval"
    )


def _spread(counted: Cost, seconds: tuple[float, ...], platform: Platform) -> Spread:
    """The interval of the precision in which the model spends most of its arithmetic's time."""
    table = load_efficiency()
    time: dict[str, float] = {}
    for node, taken in zip(counted.nodes, seconds, strict=True):
        if node.kernel in ARITHMETIC:
            time[node.dtype] = time.get(node.dtype, 0.0) + taken
    precision = max(time, key=lambda name: time[name]) if time else "float32"
    spread = table.spread.get(precision, UNKNOWN_SPREAD)
    spread = spread.widened(table.runtimes.get(platform.runtime.name, RuntimeEfficiency()).uncertainty)
    return spread if coverage(platform) is None else spread.widened(table.unfitted)
