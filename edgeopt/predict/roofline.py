"""The time of a layer on a device: the longer of its arithmetic and its memory traffic, and an overhead.

The roofline model (Williams, Waterman and Patterson, 2009), with the share of the peak that each kind of
kernel reaches fitted to published runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeopt.cores import Core, known_cores
from edgeopt.errors import ProfileError, nearest
from edgeopt.graph.cost import NodeCost
from edgeopt.platform import Device, Platform
from edgeopt.predict.efficiency import Efficiency, RuntimeEfficiency, load_efficiency

ARITHMETIC = frozenset(
    {
        "conv3x3",
        "conv",
        "conv1x1",
        "conv-first",
        "depthwise",
        "fully-connected",
        "matmul",
        "recurrent",
    }
)


@dataclass(frozen=True, slots=True)
class Machine:
    """The part of a device that runs a model: threads on its fastest cores.

    Attributes:
        core: The fastest core.
        isa: The extensions that all used cores have.
        clock: Its clock, in hertz.
        cores: The used cores, as equivalents of the fastest one.
        threads: How many threads run.
        bandwidth: Bytes that a copy reads plus writes in a second.
    """

    core: Core
    isa: frozenset[str]
    clock: float
    cores: float
    threads: int
    bandwidth: float

    @classmethod
    def of(cls, device: Device, threads: int) -> Machine:
        """Takes the fastest cores of a device, as many as there are threads.

        Raises:
            ProfileError: The profile names a core that is not known.
        """
        known = known_cores()
        speeds: list[float] = []
        isa: set[str] | None = None
        for cluster in device.cpu.clusters:
            if cluster.core not in known:
                raise ProfileError(
                    f"the core {cluster.core!r} of {device.name!r} is not known",
                    nearest=nearest(cluster.core, known),
                )
            if len(speeds) >= threads:
                break
            speeds += [cluster.clock * known[cluster.core].macs["float32"]] * cluster.cores
            isa = set(cluster.isa) if isa is None else isa & set(cluster.isa)
        first = device.cpu.clusters[0]
        used = speeds[:threads]
        return cls(
            core=known[first.core],
            isa=frozenset(isa or set()),
            clock=first.clock,
            cores=sum(used) / speeds[0],
            threads=len(used),
            bandwidth=device.memory.bandwidth,
        )

    def peak(self, dtype: str) -> float:
        """Multiply-accumulates of one core in a second, in an element type."""
        macs = self.core.macs
        if dtype == "float16" and "fp16" in self.isa:
            rate = macs.get("float16", macs["float32"])
        elif dtype.startswith(("int8", "uint8", "int4")):
            wide = self.isa & {"dotprod", "i8mm", "vnni"}
            rate = macs.get("int8", macs["float32"]) if wide else 2 * macs["float32"]
        elif dtype in ("float64", "int64"):
            rate = macs["float32"] / 2
        else:
            rate = macs["float32"]
        return rate * self.clock


def factor(table: Efficiency, runtime: RuntimeEfficiency, machine: Machine, dtype: str) -> float:
    """The factor on the share of the peak that core and precision make."""
    wide = bool(machine.isa & {"dotprod", "i8mm", "vnni"})
    result = 1.0
    if machine.core.in_order:
        result *= table.in_order_dotprod if wide else table.in_order
    if dtype == "float16" and "fp16" in machine.isa:
        result *= table.float16
    if dtype.startswith(("int8", "uint8", "int4")):
        result *= (runtime.int8_dotprod or table.int8_dotprod) if wide else table.int8
    return result


def layer_seconds(node: NodeCost, machine: Machine, platform: Platform | str) -> float:
    """Predicts the seconds of one run of a node.

    Args:
        node: What it costs; a node that runs inside another one takes no time.
        machine: What it runs on.
        platform: The platform, or the name of its runtime.
    """
    if node.fused or node.kernel in ("free", "control"):
        return 0.0
    name = platform if isinstance(platform, str) else platform.runtime.name
    table = load_efficiency()
    runtime = table.runtimes.get(name, RuntimeEfficiency())
    speed_up = machine.cores * float(float(machine.threads) ** (table.threads - 1))
    rate = machine.peak(node.dtype) * speed_up * factor(table, runtime, machine, node.dtype)
    moved = node.read_bytes + node.written_bytes + node.parameter_bytes
    if node.kernel in ARITHMETIC:
        compute = node.macs / (rate * table.share(node.kernel, name))
        memory = moved / machine.bandwidth
    else:
        compute = node.operations / (rate * table.share("elementwise", name))
        memory = moved / (machine.bandwidth * table.bandwidth)
    return runtime.slowdown * max(compute, memory) + table.overhead / machine.clock
