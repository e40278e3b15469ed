"""The share of a core's peak that kernels reach, fitted to published latencies."""

from __future__ import annotations

from functools import cache
from math import exp, log
from pathlib import Path
from typing import Literal

from pydantic import Field

from edgeopt import schema
from edgeopt.errors import ProfileError


class Spread(schema.Schema):
    """The 95 % interval of measured over predicted latency on SoCs that the fit had not seen."""

    lower: float
    upper: float

    def widened(self, factor: float) -> Spread:
        """Adds an independent uncertainty, its 95 % interval being 1/factor to factor."""
        lower = exp(-((log(self.lower) ** 2 + log(factor) ** 2) ** 0.5))
        upper = exp((log(self.upper) ** 2 + log(factor) ** 2) ** 0.5)
        return Spread(lower=lower, upper=upper)


class RuntimeEfficiency(schema.Schema):
    """How one runtime differs from the one that the table was fitted to.

    Attributes:
        slowdown: How much longer it takes.
        kernels: Shares of its own.
        int8_dotprod: A factor of its own in int8 on a core with dot products.
        uncertainty: The factor within which the slowdown is known at 95 %.
    """

    slowdown: float = 1.0
    kernels: dict[str, float] = {}
    int8_dotprod: float | None = None
    uncertainty: float = 2.0


class Efficiency(schema.Schema):
    """How the peak of a core and of its memory turns into time.

    Attributes:
        kernels: Per kind of kernel the share of the peak multiply-accumulates (of the vector lanes, for
            elementwise kernels); fast convolution algorithms can exceed 1.
        bandwidth: The share of the copy bandwidth that elementwise and copying kernels reach.
        threads: The exponent t of the speed-up of n threads, n ** t.
        overhead: Cycles that a layer takes besides.
        in_order: The factor on the share of a core that issues in order.
        in_order_dotprod: The same, of such a core that has dot products.
        float16: The factor on the share in float16.
        int8: The factor in int8 on a core without dot products.
        int8_dotprod: The factor in int8 on a core with dot products.
        spread: Per precision the interval of measured over predicted.
        cores: The cores that runs were fitted to.
        unfitted: The factor within which the share of any other core is known at 95 %.
        runtimes: Per runtime what differs.
        sources: The origin of each of these.
    """

    version: Literal[1]
    kernels: dict[str, float] = Field(min_length=1)
    bandwidth: float
    threads: float
    overhead: float
    in_order: float
    in_order_dotprod: float
    float16: float
    int8: float
    int8_dotprod: float
    spread: dict[str, Spread]
    cores: list[str]
    unfitted: float
    runtimes: dict[str, RuntimeEfficiency] = {}
    sources: dict[str, str]

    def share(self, kernel: str, runtime: str) -> float:
        """Returns the share of the peak that a kind of kernel reaches in a runtime."""
        own = self.runtimes.get(runtime, RuntimeEfficiency()).kernels
        return own.get(kernel, self.kernels.get(kernel, self.kernels["elementwise"]))


@cache
def load_efficiency() -> Efficiency:
    """Loads the table that ships with edgeopt."""
    return schema.read(Path(__file__).with_name("efficiency.yaml"), Efficiency, ProfileError)
