"""Our statement, in numpy, of what TFLite's int8 operators compute.

After the TensorFlow Lite 8-bit quantization specification
(https://ai.google.dev/edge/litert/models/quantization_spec) and its reference kernels. The operators stand
in ``statements``: each function takes an operation with the arrays of its inputs and returns the array of
its first output. The tests hold these against LiteRT's reference kernels bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgeopt.targets.tflite import floats
from edgeopt.targets.tflite.program import Program
from edgeopt.targets.tflite.statements import KERNELS, Kernel, bounds, channel_factors

__all__ = ["KERNELS", "Kernel", "bounds", "channel_factors", "execute"]


def execute(
    program: Program, feeds: Mapping[str, np.ndarray], kernels: Mapping[str, Kernel] = KERNELS
) -> dict[str, np.ndarray]:
    """Runs a whole program.

    Args:
        program: The program; all its operators must be stated in ``kernels``, or be in ``floats``.
        feeds: The inputs, by the names of their tensors.
        kernels: The statements: these, those of ``exact`` or those of ``xnnpack``.

    Returns:
        Every computed tensor by its name.

    Raises:
        KeyError: An operator is not stated, or an input is missing.
    """
    values: dict[str, np.ndarray] = {tensor.name: feeds[tensor.name] for tensor in program.inputs}
    for operation in program.operations:
        arrays = [
            np.zeros(0) if t is None else t.data if t.data is not None else values[t.name]
            for t in operation.inputs
        ]
        if operation.code == "SPLIT":
            axis = int(np.asarray(arrays[0]).reshape(-1)[0])
            parts = np.split(arrays[1], len(operation.outputs), axis=axis)
            values.update((tensor.name, part) for tensor, part in zip(operation.outputs, parts, strict=True))
            continue
        is_float = operation.outputs[0].dtype == "float32" and operation.code in floats.FUNCTIONS
        made = floats.compute(operation, arrays) if is_float else kernels[operation.code](operation, arrays)
        values[operation.outputs[0].name] = made
    return values
