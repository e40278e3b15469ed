"""One figure, and how it came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

How = Literal["measured", "emulated", "predicted"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """A figure with its interval, unit, sample count and conditions.

    Measured, emulated and predicted figures are never mixed: whoever combines two pieces of
    evidence must find the same ``how`` in both.

    Attributes:
        quantity: What was determined: ``size``, ``latency``, ``peak_memory``, ``fidelity``,
            ``accuracy_drop``, the name of a metric, ...
        value: The point estimate, in ``unit``.
        unit: ``B``, ``s``, ``dB``, ``pp``, ``%``, or "" for plain numbers.
        interval: The 95 % confidence interval (lower, upper); ``None`` for an exact figure.
        n: How many samples or runs stand behind it; 0 where there are none to count.
        how: Measured, emulated or predicted.
        where: The machine or device that it speaks of: ``host``, ``raspberry-pi-4``, ...
        runtime: The runtime and its version, such as ``onnxruntime 1.32.0``.
        conditions: Threads, batch, shapes, the host's instruction set, ...
        artifact: The digest of the artifact's manifest, or of the model.
        detail: Further figures that belong to it: percentiles, per output, per layer.
    """

    quantity: str
    value: float
    unit: str
    how: How
    where: str
    interval: tuple[float, float] | None = None
    n: int = 0
    runtime: str = ""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    artifact: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the evidence as plain JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evidence:
        """Restores evidence from the data that ``to_json`` returned."""
        fields = dict(data)
        interval = fields.get("interval")
        fields["interval"] = None if interval is None else (float(interval[0]), float(interval[1]))
        return cls(**fields)
