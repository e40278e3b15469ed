"""Quantization parameters, and where they stand in a model.

A quantized value is followed by QuantizeLinear and DequantizeLinear, and nowhere else is it
recorded that a value is quantized. ``read`` collects the parameters of all such pairs, ``write``
inserts pairs for given parameters; ``strip`` removes every pair. ``read(write(strip(m), p)) == p``,
and ``write(strip(m), read(m))`` equals ``m`` up to the names of inserted nodes.

Three forms are known. A *pair* is QuantizeLinear and DequantizeLinear with the same constant
parameters; pairs that follow each other directly are a chain. A *dynamic* value (``scale=None``) is
followed by DynamicQuantizeLinear, which computes uint8 parameters at every call, and DequantizeLinear.
A *folded* constant is DequantizeLinear on an integer initializer, which ``prepare`` of a target leaves;
``read`` takes it like a pair on a float constant of the same name, which ``strip`` restores. int32 has
no QuantizeLinear, so ``write`` folds it.

The pairs stand in the main graph. A value that a subgraph (If, Loop, Scan) captures can be quantized
for it, but values computed inside subgraphs or functions are never read or written.
"""

from edgeopt.graph.quantization.naming import Names, add_initializer, drop_initializer
from edgeopt.graph.quantization.parameters import (
    Parameters,
    QuantParams,
    Site,
    dequantize_array,
    integer_range,
    quantize_array,
    spread,
)
from edgeopt.graph.quantization.reading import read, strip
from edgeopt.graph.quantization.rounding import with_rounded_constants
from edgeopt.graph.quantization.writing import FIRST_OPSET, fold, write

__all__ = [
    "FIRST_OPSET",
    "Names",
    "Parameters",
    "QuantParams",
    "Site",
    "add_initializer",
    "dequantize_array",
    "drop_initializer",
    "fold",
    "integer_range",
    "quantize_array",
    "read",
    "spread",
    "strip",
    "with_rounded_constants",
    "write",
]
