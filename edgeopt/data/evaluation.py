"""Evaluation data, sealed: nothing but the judge opens them."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from edgeopt.data.samples import DataSamples


class Evaluation:
    """The part of the data that decides whether an artifact ships.

    It shows how many samples there are and their digest, and gives none of them away: it does not even
    hold them. ``unseal`` is for ``edgeopt.evaluate`` alone.
    """

    __slots__ = ("__weakref__", "_digest", "_length", "_opened")

    def __init__(self, samples: DataSamples) -> None:
        self._digest = samples.digest
        self._length = len(samples)
        self._opened = 0
        _SEALED[self] = samples

    @property
    def digest(self) -> str:
        """SHA-256 of the samples, in order."""
        return self._digest

    @property
    def opened(self) -> int:
        """How often it was opened."""
        return self._opened

    def __len__(self) -> int:
        return self._length


_SEALED: WeakKeyDictionary[Evaluation, DataSamples] = WeakKeyDictionary()


def unseal(evaluation: Evaluation) -> DataSamples:
    """Opens evaluation data; only the judge may."""
    evaluation._opened += 1
    return _SEALED[evaluation]
