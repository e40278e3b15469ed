"""What TFLite's int8 operators compute, one function each, in files by family; see ``reference``."""

from edgeopt.targets.tflite.statements import elementwise, functions, moves, weighted, windows
from edgeopt.targets.tflite.statements.rescaling import KERNELS, Kernel, bounds, channel_factors

__all__ = [
    "KERNELS",
    "Kernel",
    "bounds",
    "channel_factors",
    "elementwise",
    "functions",
    "moves",
    "weighted",
    "windows",
]
