"""Raise the model to a later opset of ai.onnx."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgeopt.errors import UserError
from edgeopt.graph.change import Change, Rewrite
from edgeopt.graph.opset import TARGET, raise_opset
from edgeopt.passes.base import Context, Pass


@dataclass(frozen=True)
class ConvertOpset(Pass):
    """Raise the model to a later opset, proved by running both.

    Attributes:
        opset: The opset of ai.onnx wanted.
    """

    name: ClassVar[str] = "convert-opset"
    opset: int = TARGET

    def __post_init__(self) -> None:
        if self.opset < 7:
            raise UserError(f"the opset {self.opset} is not one that a model can be raised to")

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Edits the model in place; one that cannot be raised stays, and a note says why."""
        before = model.opset_imports.get("", 0)
        if before >= self.opset:
            return Change(summary=f"opset {before}")
        if not context.allow(self.name, "the whole model"):
            return Change(summary=f"opset {before}")
        raised, note = raise_opset(model, self.opset, context.seed)
        notes = [] if note is None else [note]
        if raised is model:
            return Change(summary=f"opset {before}", notes=notes)
        model.graph = raised.graph
        model.ir_version = raised.ir_version
        for identifier in list(model.functions):
            del model.functions[identifier]
        return Change(
            summary=f"opset {before} -> {self.opset}",
            rewrites=[Rewrite(self.name, "the whole model")],
            notes=notes,
        )
