"""Store weights in float16; they are widened to float32 where they are read.

Half the size at no cost in speed: a runtime widens constants once, at load. Rows of an embedding are
widened after they are gathered. Weights that float16 cannot hold (beyond 65504) stay as they are, and a note
names them.

Where the runtime builds its engine in float16 by itself (the rule ``float16: build-flag``), the file keeps
float32 and the model only carries the wish. Such an engine computes in float16, so with calibration data
every activation is looked at, and those that overflow are named.

``bfloat16`` keeps the range of float32 with 8 bits of significand instead of 11: rounding is eight times as
coarse, and nothing overflows but what rounds beyond its largest number, 3.39e38, as masks of -3.4e38 do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from edgeopt.errors import PassError
from edgeopt.graph.change import Change, Rewrite, Skipped
from edgeopt.graph.names import name_nodes, original_names
from edgeopt.graph.observers import observe
from edgeopt.graph.precision import WISH
from edgeopt.graph.quantization import Names, add_initializer
from edgeopt.passes._calibration import Calls, Watched
from edgeopt.passes._rules import kept, settled
from edgeopt.passes.base import Context, Facet, Keeps, Pass, Stage

SMALLEST = 64
"""Constants of fewer elements are not worth a node."""

SEEN = 32
"""Calibration samples that show what overflows."""

LARGEST = {"float16": 65504.0, "bfloat16": 3.3895e38}
"""The largest number of each type."""


@dataclass(frozen=True)
class Float16(Pass):
    """Store weights in float16.

    Attributes:
        keep_float: Shell patterns of original node names whose weights stay in float32.
        type: ``float16`` or ``bfloat16``.
    """

    name: ClassVar[str] = "float16"
    stage: ClassVar[Stage] = "quantize"
    keeps: ClassVar[Keeps] = "approximate"

    keep_float: tuple[str, ...] = ()
    type: Literal["float16", "bfloat16"] = "float16"

    @property
    def reads(self) -> frozenset[Facet]:
        """The rules, and the calibration samples that show what overflows."""
        return frozenset({"rules", "calibration"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Replaces the constants of the main graph.

        Raises:
            UserError: A pattern of ``keep_float`` matches no node.
            PassError: Nodes are to stay in float, and the engine's precision is chosen for all at once.
        """
        name_nodes(model)
        keep = set(kept(model, self.keep_float))
        if context.rules is not None and context.rules.float16 == "build-flag":
            return self._wish(model, bool(keep), context)
        dtype = ir.DataType[self.type.upper()]
        change = Change(details={"scheme": self.name})
        done = settled(model)  # their biases become integers
        names = Names(model)
        for value in list(model.graph.initializers.values()):
            tensor = value.const_value
            if tensor is None or value.dtype != ir.DataType.FLOAT or tensor.size < SMALLEST:
                continue
            if value.is_graph_input() or value.is_graph_output():
                continue
            readers = tuple(dict.fromkeys(use.node.name or "" for use in value.uses()))
            if not readers or (keep | done) & set(readers) or _quantized(value):
                continue
            if not np.abs(tensor.numpy()).max(initial=0.0) <= LARGEST[self.type]:
                reason = f"its weights exceed {LARGEST[self.type]:g}"
                change.skipped.append(Skipped(self.name, readers[0], reason))
                continue
            if not context.allow(self.name, readers[0]):
                continue
            _narrow(model, value, tensor, names, dtype)
            change.rewrites.append(Rewrite(self.name, readers[0], readers))
        change.summary = f"{len(change.rewrites)} constants to {self.type}"
        if beyond := [item.site for item in change.skipped]:
            shown = ", ".join(beyond[:3]) + (f" and {len(beyond) - 3} more" if len(beyond) > 3 else "")
            change.notes.append(
                f"what exceeds the largest {self.type} ({LARGEST[self.type]:g}) stays in float32: {shown}"
            )
        return change

    def _wish(self, model: ir.Model, keep: bool, context: Context) -> Change:
        if self.type != "float16":
            raise PassError("the runtime builds engines in float16, not in bfloat16")
        if keep:
            raise PassError(
                "the engine is built in float16 as a whole, so no single node can stay in float",
                hint="leave keep_float out",
            )
        model.metadata_props[WISH] = "float16"
        return Change(
            summary="the engine computes in float16, the file keeps float32",
            details={"scheme": self.name},
            notes=_overflows(model, context),
        )


def _quantized(value: ir.Value) -> bool:
    """Whether an earlier pass has quantized a constant, or it is a scale."""
    return any(use.node.op_type in ("QuantizeLinear", "DequantizeLinear") for use in value.uses())


def _overflows(model: ir.Model, context: Context) -> list[str]:
    """Names activations beyond what float16 holds, over some calibration samples."""
    data = context.calibration
    if data is None or len(data) == 0:
        return []
    producers = {
        output.name or "": node
        for node in model.graph
        for output in node.outputs
        if output.dtype == ir.DataType.FLOAT and output.name
    }
    calls = Watched(Calls.fitting(model, data, SEEN), context.progress, "overflow check")
    beyond = [
        (max(-item.low, item.high), name)
        for name, item in observe(model, list(producers), calls, histogram=False).items()
        if item.entries and (item.marks or max(-item.low, item.high) > LARGEST["float16"])
    ]
    if not beyond:
        return []
    largest, name = max(beyond)
    node = producers[name]
    return [
        f"{len(beyond)} results exceed what float16 holds (65504) or hold a mask that does, first among them "
        f"{(original_names(node) or (node.name or name,))[-1]} with {largest:.3g}: the engine overflows there"
    ]


def _narrow(
    model: ir.Model, value: ir.Value, tensor: ir.TensorProtocol, names: Names, dtype: ir.DataType
) -> None:
    graph, name = model.graph, value.name or ""
    graph.initializers.pop(name)
    lazy = ir.LazyTensor(
        lambda: ir.Tensor(tensor.numpy().astype(dtype.numpy()), dtype=dtype, name=name),
        dtype=dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=name,
    )
    value.name = names.value(f"{name}_float32")
    narrow = add_initializer(graph, name, lazy)
    whole: list[tuple[ir.Node, int]] = []
    for use in tuple(value.uses()):
        if use.node.op_type == "Gather" and use.idx == 0 and use.node.graph is graph:
            use.node.replace_input_with(0, narrow)
            rows = use.node.outputs[0]
            widened = _widen(rows, names)
            graph.insert_after(use.node, widened)
            rows.dtype = dtype
            _hand_over(graph, rows, widened, names)
        else:
            whole.append((use.node, use.idx))
    if whole:
        widened = _widen(narrow, names)
        graph.insert_before(graph[0], widened)
        for node, index in whole:
            node.replace_input_with(index, widened.outputs[0])


def _widen(value: ir.Value, names: Names) -> ir.Node:
    stem = value.name or ""
    node = ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value}, name=names.node(f"{stem}_widen"))
    output = node.outputs[0]
    output.name, output.shape = names.value(f"{stem}_widened"), value.shape
    output.type = ir.TensorType(ir.DataType.FLOAT)
    return node


def _hand_over(graph: ir.Graph, value: ir.Value, widened: ir.Node, names: Names) -> None:
    """Lets every other reader of a value, the graph's outputs included, read its widened form."""
    for use in tuple(value.uses()):
        if use.node is not widened:
            use.node.replace_input_with(use.idx, widened.outputs[0])
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = widened.outputs[0]
            widened.outputs[0].name, value.name = value.name, names.value(f"{value.name}_float16")
