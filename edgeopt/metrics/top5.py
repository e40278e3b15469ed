"""Top-5 accuracy: the share of samples whose label is among the five largest scores."""

from __future__ import annotations

from edgeopt.metrics.top1 import TopK

METRIC = TopK(5)
