"""How near one model's outputs are to another's: the signal-to-noise ratio in dB.

Fidelity is 10 · log10(sum of expected² / sum of (expected - actual)²), over all outputs and samples,
with the same per output beside it. Floating-point outputs count; where a model has none, integers do.
A value that is not finite in both, in the same way, is left out; one that is not finite in the actual
output alone is unlimited noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeopt import intervals

LIMIT = 200.0
"""The figure, in dB, that stands for outputs that are equal; its negative for noise without signal."""

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]]
"""One call of a model: ``Executor.run``, ``Session.run``."""


def decibels(signal: float, noise: float) -> float:
    """The ratio of two energies in dB, within ±``LIMIT``."""
    if noise == 0:
        return LIMIT
    if signal == 0 or not math.isfinite(noise):
        return -LIMIT
    return float(np.clip(10 * (math.log10(signal) - math.log10(noise)), -LIMIT, LIMIT))


def energies(expected: np.ndarray, actual: np.ndarray) -> tuple[float, float]:
    """The energy of an expected array and that of the error, in float64."""
    expected, actual = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
    if expected.shape != actual.shape:
        return float(np.nansum(np.square(expected))), math.inf
    finite = np.isfinite(expected)
    if not finite.all():
        same = finite | (np.isnan(expected) & np.isnan(actual)) | (expected == actual)
        if not same.all():
            return float(np.sum(np.square(expected[finite]))), math.inf
        expected, actual = expected[finite], actual[finite]
    if not np.isfinite(actual).all():
        return float(np.sum(np.square(expected))), math.inf
    return float(np.sum(np.square(expected))), float(np.sum(np.square(expected - actual)))


@dataclass(slots=True)
class Fidelity:
    """Adds up the energies of outputs and their errors, sample by sample.

    Memory grows by two numbers per output and sample.
    """

    _energies: dict[str, list[tuple[int, float, float]]] = field(default_factory=dict)
    _integers: set[str] = field(default_factory=set)
    samples: int = 0

    def add(self, expected: Mapping[str, Any], actual: Mapping[str, Any], sample: int | None = None) -> None:
        """Adds the outputs of one call.

        Args:
            expected: The original's outputs.
            actual: The other's, by the same names.
            sample: The sample that the call belongs to, for several calls of one sample; by default
                each call is a sample of its own.
        """
        index = self.samples if sample is None else sample
        self.samples = max(self.samples, index + 1)
        for name, value in expected.items():
            array = np.asarray(value)
            if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
                continue  # text and objects have no energy
            if array.dtype.kind in "iub":
                self._integers.add(name)
            signal, noise = energies(array, np.asarray(actual[name]))
            self._energies.setdefault(name, []).append((index, signal, noise))

    @property
    def counted(self) -> list[str]:
        """The outputs that count: floats, or all where there are no floats."""
        floats = [name for name in self._energies if name not in self._integers]
        return floats or list(self._energies)

    @property
    def value(self) -> float | None:
        """The fidelity over all outputs in dB; ``None`` where there is nothing to compare."""
        signal, noise = self._per_sample()
        return decibels(float(signal.sum()), float(noise.sum())) if self.counted else None

    @property
    def figure(self) -> float:
        """The fidelity over all outputs in dB; ``LIMIT`` where there is nothing to compare."""
        return LIMIT if self.value is None else self.value

    @property
    def balanced(self) -> float:
        """The fidelity in dB with every output brought to the same energy; ``LIMIT`` without any.

        So audio counts beside the state of a recurrent model, and scores beside boxes, though a hundred
        times smaller. Outputs without energy are left out where others have some.
        """
        found = [self._total(name) for name in self.counted]
        shares = [noise / signal for signal, noise in found if signal > 0]
        if not shares:
            return self.figure
        return decibels(1.0, sum(shares) / len(shares))

    @property
    def weakest(self) -> float:
        """The fidelity of the least faithful output that has energy, in dB; ``LIMIT`` without any."""
        found = [self._total(name) for name in self.counted]
        return min((decibels(*pair) for pair in found if pair[0] > 0), default=self.figure)

    @property
    def noise(self) -> dict[str, float]:
        """The energy of the error over that of the signal, for each output that counts and has energy."""
        found = {name: self._total(name) for name in self.counted}
        return {name: noise / signal for name, (signal, noise) in found.items() if signal > 0}

    @property
    def per_output(self) -> dict[str, float]:
        """The fidelity of each output in dB."""
        return {name: decibels(*self._total(name)) for name in self._energies}

    def interval(self, seed: int = 0) -> tuple[float, float] | None:
        """The 95 % interval of the value, by bootstrap over samples."""
        signal, noise = self._per_sample()
        if not self.counted:
            return None

        def ratio(index: np.ndarray) -> float:
            return decibels(float(signal[index].sum()), float(noise[index].sum()))

        return intervals.bootstrap(ratio, self.samples, seed=seed)

    def _total(self, name: str) -> tuple[float, float]:
        rows = self._energies[name]
        return sum(row[1] for row in rows), sum(row[2] for row in rows)

    def _per_sample(self) -> tuple[np.ndarray, np.ndarray]:
        signal, noise = np.zeros(self.samples), np.zeros(self.samples)
        for name in self.counted:
            for index, energy, error in self._energies[name]:
                signal[index] += energy
                noise[index] += error
        return signal, noise


def compare(expected: Run, actual: Run, calls: Iterable[Mapping[str, np.ndarray]]) -> Fidelity:
    """Runs two models on the same calls, streamed, and returns how near they are.

    For example ``compare(float_executor.run, quantized_executor.run, context.validation.feeds())``.
    """
    result = Fidelity()
    for feeds in calls:
        result.add(expected(feeds), actual(feeds))
    return result
