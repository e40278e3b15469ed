"""Data in three parts that never mix: calibrate, validate, evaluate.

Passes and search see ``calibrate`` and ``validate``, as ``Samples``. ``evaluate`` is an ``Evaluation``,
sealed: only the judge opens it, once its artifact's files are final.

``open_data`` reads a ``DataSpec``, checks all parts up front (names, shapes, types, NaN, labels, overlap)
and hands on handles that stream.
"""

from __future__ import annotations

from edgeopt.data.evaluation import Evaluation
from edgeopt.data.opening import Data, open_data
from edgeopt.data.samples import Call, DataSamples
from edgeopt.data.seeded import SeededSamples
from edgeopt.data.spec import DataSpec, SourceSpec

__all__ = [
    "Call",
    "Data",
    "DataSamples",
    "DataSpec",
    "Evaluation",
    "SeededSamples",
    "SourceSpec",
    "open_data",
]
