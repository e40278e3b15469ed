"""A model in a runtime's own format, for no device in particular: no data, no proof of accuracy.

edgeopt.convert("model.onnx", "model.tflite")
edgeopt.convert(module, "model.tflite", example=(tensor,))
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from edgeopt.errors import UserError
from edgeopt.load import Shapes, load
from edgeopt.optimization import EXACT, optimized
from edgeopt.passes.base import Verify
from edgeopt.targets.base import Emitted, ModelFile
from edgeopt.targets.tflite import Tflite


def convert(
    model: Any,
    output: str | Path,
    *,
    shapes: Shapes | None = None,
    example: Any = None,
    io: Literal["float", "int8"] = "float",
    verify: Verify = "off",
    seed: int = 0,
) -> Emitted:
    """Writes a model as a ``.tflite`` file after the exact passes.

    Args:
        model: Anything that ``edgeopt.load.load`` takes; an IR model is not changed.
        output: The file to write; it is replaced if it exists.
        shapes: Fixed shapes of inputs, by name; an open first dimension becomes 1.
        example: Example inputs of a ``torch.nn.Module``.
        io: ``int8`` for quantized inputs and outputs where the model quantizes them.
        verify: How rewrites are proved; see ``edgeopt.optimize``. ``edgeopt.compile`` always proves them; a
            mere conversion does not unless asked.
        seed: The seed of the inputs that proofs run on.

    Returns:
        What was written. Its adapters say how the file's inputs and outputs map onto the model's: images
        are channels last in the file.

    Raises:
        UserError: The file's name does not end in ``.tflite``.
        ModelError: The model cannot be loaded, or a node cannot be said in TFLite.
        MissingExtra: ``ai-edge-litert`` is not installed.
    """
    path = Path(output)
    if path.suffix != ".tflite":
        raise UserError(f"edgeopt.convert writes .tflite files, not {path.name!r}", hint="edgeopt.compile")
    with _uninterrupted():
        loaded = load(model, shapes=shapes, example=example, mapped=True)
        loaded, _ = optimized(loaded, steps=EXACT, verify=verify, seed=seed)
        content, adapters = Tflite(io=io).convert(loaded)
        path.write_bytes(content)
    return Emitted(path.name, (ModelFile(path.name),), adapters)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Puts garbage collection off: a search through all that numpy and onnx have allocated costs more than
    the short-lived cycles of one conversion are worth."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
