"""The target ``tflite``: writes a TFLite flatbuffer from the IR, without TensorFlow.

``prepare`` fixes the shapes, folds what is constant, rewrites what TFLite lacks and folds weights and
biases to integers; ``emit`` chooses layouts (NHWC by propagation, see ``graph/layout.py``) and writes;
``open`` runs the file on LiteRT. Operators stand in ``operators/``, one function each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import onnx_ir as ir

from edgeopt import units
from edgeopt.errors import ModelError, UserError
from edgeopt.graph.change import Change
from edgeopt.graph.names import name_nodes
from edgeopt.platform import Platform
from edgeopt.session import Session, TensorSpec
from edgeopt.targets.base import Adapter, Emitted, ModelFile, Problem, Target, refuse
from edgeopt.targets.tflite import legalizations  # noqa: F401  (it registers them)
from edgeopt.targets.tflite.constants import make_static, parse_shapes, refresh
from edgeopt.targets.tflite.flatbuffer import packed
from edgeopt.targets.tflite.integers import lower_integers
from edgeopt.targets.tflite.legalize import legalize
from edgeopt.targets.tflite.lower import lower
from edgeopt.targets.tflite.scores import keep_scores
from edgeopt.targets.tflite.session import TfliteSession
from edgeopt.targets.tflite.shuffles import order_channels
from edgeopt.targets.tflite.slopes import fit_slopes

FILE = "model.tflite"


@dataclass(frozen=True)
class Tflite(Target):
    """Lowers a model to one ``.tflite`` file.

    Attributes:
        io: ``int8`` for quantized inputs and outputs where the model quantizes them.
        shape: Shapes of inputs with open dimensions, as ``NAME=1,3,224,224``.
    """

    name: ClassVar[str] = "tflite"
    io: Literal["float", "int8"] = "float"
    shape: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.format not in ("", "tflite"):
            raise UserError(f"the target tflite has no format {self.format!r}", hint="--format tflite")
        if self.io not in ("float", "int8"):
            raise UserError(f"--io is float or int8, not {self.io!r}")

    def fitted(self, shapes: Mapping[str, Sequence[int]]) -> Tflite:
        """Takes over shapes of calibration data for open dimensions, where none are given."""
        if self.shape or not shapes:
            return self
        texts = (f"{name}={','.join(map(str, sizes))}" for name, sizes in shapes.items())
        return replace(self, shape=tuple(texts))

    def check(self, model: ir.Model, platform: Platform) -> list[Problem]:
        """Lists the nodes that cannot be said in TFLite, even after ``prepare``."""
        return lower(self._prepared(model)[0], self.io).problems

    def prepare(self, model: ir.Model, platform: Platform) -> tuple[ir.Model, Change]:
        """Returns a static model of operators that TFLite has; see ``Target.prepare``."""
        prepared, change = self._prepared(model)
        refuse(lower(prepared, self.io).problems, platform)
        return prepared, change

    def emit(self, model: ir.Model, platform: Platform, folder: Path) -> Emitted:
        """Writes ``model.tflite``."""
        lowered = lower(model, self.io)
        refuse(lowered.problems, platform)
        (folder / FILE).write_bytes(packed(lowered.program))
        return Emitted(FILE, (ModelFile(FILE),), lowered.adapters)

    def open(self, folder: Path, manifest: Mapping[str, Any], *, threads: int = 1) -> Session:
        """Opens the file on LiteRT, or on tflite-runtime where only that is installed."""
        inputs, outputs = (
            [TensorSpec(item["name"], item["dtype"], tuple(item["shape"])) for item in manifest[key]]
            for key in ("inputs", "outputs")
        )
        adapters = [
            Adapter(**{**item, "permutation": tuple(item.get("permutation", ()))})
            for item in manifest.get("adapters", ())
        ]
        return TfliteSession(folder / str(manifest["model"]), inputs, outputs, adapters, threads=threads)

    def snippets(self, emitted: Emitted, inputs: Sequence[TensorSpec]) -> dict[str, str]:
        """A short program that runs the file with NumPy and LiteRT."""
        return {"run.py": _SNIPPET}

    def convert(self, model: ir.Model) -> tuple[memoryview, tuple[Adapter, ...]]:
        """Prepares and writes a model at one go, for no device in particular.

        Args:
            model: The model; it is changed.

        Returns:
            The file, and how its inputs and outputs map onto the model's.

        Raises:
            ModelError: A node cannot be said in TFLite.
            MissingExtra: ``ai-edge-litert`` is not installed.
        """
        self._edit(model)
        lowered = lower(model, self.io)
        refuse(lowered.problems, "TFLite")
        return packed(lowered.program), lowered.adapters

    def _prepared(self, model: ir.Model) -> tuple[ir.Model, Change]:
        prepared = model.clone()
        return prepared, self._edit(prepared)

    def _edit(self, model: ir.Model) -> Change:
        if any(value.name is None for value in (*model.graph.inputs, *model.graph.outputs)):
            raise ModelError("an input or output of the model has no name")
        name_nodes(model)
        make_static(model, parse_shapes(self.shape))
        change = legalize(model)
        change += order_channels(model)
        if change.rewrites:
            refresh(model)
        integers = keep_scores(model) if self.io == "float" else Change()
        integers += fit_slopes(model)
        integers += lower_integers(model)
        if integers.rewrites:
            refresh(model)
        change += integers
        change.summary = f"{units.number(len(change.rewrites), 'node')} rewritten for TFLite"
        return change


_SNIPPET = '''"""Runs model.tflite once on zeros: pip install ai-edge-litert"""
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

model = Interpreter(str(Path(__file__).with_name("model.tflite")), num_threads=4)
model.allocate_tensors()
for entry in model.get_input_details():  # channels last where the original has them second
    model.set_tensor(entry["index"], np.zeros(entry["shape"], entry["dtype"]))
model.invoke()
for entry in model.get_output_details():
    print(entry["name"], model.get_tensor(entry["index"]).shape)
'''
