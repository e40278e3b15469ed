"""The time of a layer on an accelerator: a roofline with estimated shares of the peak.

Unlike the processor's (``roofline.py``) it is fitted to nothing, since no published runs are at hand; hence
its wide interval.
"""

from __future__ import annotations

from edgeopt.graph.cost import NodeCost
from edgeopt.graph.precision import Precision
from edgeopt.platform import Accelerator
from edgeopt.predict.efficiency import Spread
from edgeopt.predict.roofline import ARITHMETIC

SHARE = 0.5
"""Estimated: the share of the peak that large products reach."""

DEPTHWISE = 0.05
"""Estimated: the same of depthwise convolutions, which fill no tile."""

BANDWIDTH = 0.5
"""Estimated: the share of the bus's peak that kernels reach."""

LAUNCH = 20e-6
"""Estimated: seconds from one kernel to the next, on the small processors of such boards."""

SPREAD = Spread(lower=0.25, upper=4.0)
"""Estimated: the 95 % interval of measured over predicted."""


def accelerator_seconds(node: NodeCost, accelerator: Accelerator, engine: Precision) -> float:
    """Predicts the seconds of one run of a node.

    Args:
        node: What it costs; a node that runs inside another one takes no time.
        accelerator: What it runs on; its profile gives a clock and multiply-accumulates a cycle.
        engine: What the engine is built for; one with int8 computes its float layers in float16.
    """
    quantization = node.op_type in ("QuantizeLinear", "DequantizeLinear")  # runs in the kernel before
    if node.fused or quantization or node.kernel in ("free", "control"):
        return 0.0
    assert accelerator.clock is not None and accelerator.bandwidth is not None  # its profile is checked
    narrow = node.dtype == "float32" and engine != "float32"
    dtype = "float16" if narrow else node.dtype
    rates = accelerator.macs_per_cycle
    rate = rates.get(dtype, rates.get("float32", 1.0)) * accelerator.clock
    moved = node.read_bytes + node.written_bytes + node.parameter_bytes
    memory = moved / (2 if narrow else 1) / (accelerator.bandwidth * BANDWIDTH)
    share = DEPTHWISE if node.kernel == "depthwise" else SHARE
    work = node.macs if node.kernel in ARITHMETIC else node.operations / 2
    launch = 0.0 if node.kernel == "elementwise" else LAUNCH  # chains of these join their neighbours
    return max(work / (rate * share), memory) + launch
