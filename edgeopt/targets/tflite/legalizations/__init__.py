"""Rewriting what TFLite has no operator for into what it has, by kind of operator.

Importing this module registers them; of several for one operator those are tried first that say so, then
those of the modules in their order here.
"""

from edgeopt.targets.tflite.legalizations import (
    activations,
    elementwise,
    gates,
    images,
    matrices,
    merges,
    normalization,
    pooling,
    reductions,
    training,
    windows,
)

__all__ = [
    "activations",
    "elementwise",
    "gates",
    "images",
    "matrices",
    "merges",
    "normalization",
    "pooling",
    "reductions",
    "training",
    "windows",
]
