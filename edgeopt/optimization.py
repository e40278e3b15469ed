"""Exact passes only: the same numbers from a smaller graph, for any runtime.

model = edgeopt.optimize("model.onnx")            # an onnx.ModelProto
model = edgeopt.optimize(proto, verify="full")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from edgeopt import passes
from edgeopt.errors import ModelError, UserError
from edgeopt.graph import serialize
from edgeopt.graph.change import Change
from edgeopt.load import load
from edgeopt.passes.base import Context, Pass, Verify

EXACT = (
    "simplify",
    "fold-batch-norm",
    "fuse-scale",
    "fuse-pad",
    "fuse-clip",
    "fuse-gemm",
    "merge-linear",
    "fuse-gelu",
    "fuse-hard-swish",
    "fuse-layer-norm",
    "fuse-instance-norm",
    "fuse-arithmetic",
)
"""The exact passes that any further pass may follow, in order."""

KERNELS = ("fuse-rms-norm", "fuse-attention", "fuse-rotary")
"""Fusions into large operators, in order: they come after quantization, which has no use for these."""

SCHEDULE = (*KERNELS, "sum-before-norm", "layouts", "memory-order")
"""The exact passes that come last, in order."""

STANDARD = (*EXACT, *KERNELS, "layouts", "merge-products", "merge-moves", "reduce-pools", "simplify")
"""The passes that ``optimize`` runs by default, in order."""

LARGEST_PROTO = 2**31 - 1
"""A protobuf message cannot be larger."""


def optimize(
    model: str | Path | onnx.ModelProto | ir.Model,
    *,
    steps: Sequence[str] = STANDARD,
    opset: int | None = None,
    verify: Verify = "fast",
    seed: int = 0,
) -> onnx.ModelProto:
    """Simplifies and fuses a model without changing what it computes.

    Args:
        model: A path, a proto or an IR model; a model given in memory is not changed.
        steps: Names of exact passes, in order.
        opset: Raise the model to this opset of ai.onnx first; by default it keeps its own.
        verify: ``fast`` proves every rewrite by itself, ``full`` compares whole models too, ``off``
            proves nothing.
        seed: The seed of the inputs that proofs run on.

    Returns:
        The optimized model with its weights. Above 2 GiB use ``optimized`` and ``onnx_ir.save``.

    Raises:
        ModelError: The model cannot be loaded, or is too large for one proto.
        UserError: A pass is unknown or not exact.
    """
    result, _ = optimized(load(model, mapped=True), steps=steps, opset=opset, verify=verify, seed=seed)
    size = sum(tensor.nbytes for tensor in serialize.tensors(result))
    if size > LARGEST_PROTO:
        raise ModelError(
            "the optimized model is larger than one ONNX file can hold",
            hint="edgeopt optimize MODEL -o OUT.onnx, which writes the weights beside it",
        )
    serialize.embed(result)
    return serialize.to_proto(result)


def exact_passes(names: Sequence[str], opset: int | None = None) -> list[Pass]:
    """Makes the passes, ``convert-opset`` first where an opset is wanted.

    Raises:
        UserError: A pass is unknown or not exact.
    """
    made = [passes.make("convert-opset", {"opset": opset})] if opset is not None else []
    made += [passes.make(name) for name in names]
    exact = []
    for item in made:
        if not isinstance(item, Pass) or item.keeps != "exact":
            raise UserError(
                f"the pass {item.name} is not exact", hint="edgeopt compile, which judges what it costs"
            )
        exact.append(item)
    return exact


def optimized(
    model: ir.Model,
    *,
    steps: Sequence[str] = STANDARD,
    opset: int | None = None,
    verify: Verify = "fast",
    seed: int = 0,
    told: Callable[[Pass, Change], None] | None = None,
) -> tuple[ir.Model, list[tuple[Pass, Change]]]:
    """Runs exact passes on a model, in place, and drops what its exporter noted on nodes and values.

    Args:
        model: The model; what is returned may be the same object.
        steps: As for ``optimize``.
        opset: As for ``optimize``.
        verify: As for ``optimize``.
        seed: As for ``optimize``.
        told: Called after each pass.

    Returns:
        The model, and per pass what it did.
    """
    changes = []
    made = exact_passes(steps, opset)
    serialize.strip(model)
    for item in made:
        context = Context(reads=item.reads, seed=seed, verify=verify)
        change = item.apply(model, context)
        changes.append((item, change))
        if told is not None:
            told(item, change)
    return model, changes
