"""A quantized model that runs fast in float: its constants are rounded once instead of at every call."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.graph.quantization.parameters import dequantize_array, quantize_array
from edgeopt.graph.quantization.reading import read, strip
from edgeopt.graph.quantization.writing import write


def with_rounded_constants(model: ir.Model) -> ir.Model:
    """Returns a copy whose quantized constants are floats on their grids; activations stay quantized.

    It computes what the model does. Where onnxruntime runs the graph as it stands, without optimizations,
    a constant in front of QuantizeLinear and DequantizeLinear is rounded anew at each call, which takes
    many times as long as the products that read it.
    """
    copy = model.clone()
    params = read(copy)
    constants = copy.graph.initializers
    folded = {
        where.value: chain[0]
        for where, chain in params.items()
        if where.value in constants
        and where.readers is None
        and len(chain) == 1
        and chain[0].scale is not None
        and chain[0].dtype.bitwidth <= 8
    }
    if not folded:
        return copy
    strip(copy)
    for name, chosen in folded.items():
        tensor = copy.graph.initializers[name].const_value
        assert tensor is not None
        array = dequantize_array(quantize_array(tensor.numpy(), chosen), chosen)
        copy.graph.initializers[name].const_value = ir.tensor(np.ascontiguousarray(array), name=name)
    write(copy, {where: chain for where, chain in params.items() if where.value not in folded})
    return copy
