"""The operators that can be said in TFLite: one function each, in files by family."""

from edgeopt.targets.tflite.operators import convolution, elementwise, pooling, reduction, shape
from edgeopt.targets.tflite.operators.table import OPERATORS

__all__ = ["OPERATORS", "convolution", "elementwise", "pooling", "reduction", "shape"]
