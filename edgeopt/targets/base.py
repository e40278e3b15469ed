"""The contract of a target: from a model to the files of one runtime, and to a running session.

A target has four parts. The *rules* are data (``runtimes/*.yaml``), reached through the platform.
``prepare`` makes every change of numbers and stays in ONNX, so that its result can be run and
verified. ``emit`` writes files and chooses no number: every scale, zero point and integer tensor
decoded from the files equals the prepared model's. ``open`` gives a session that speaks the original
model's inputs and outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import onnx_ir as ir

from edgeopt.errors import ModelError
from edgeopt.graph.change import Change
from edgeopt.platform import Platform
from edgeopt.session import Session, TensorSpec


@dataclass(frozen=True, slots=True)
class Adapter:
    """How one original input or output maps onto the runtime's own.

    Attributes:
        name: The name in the original model.
        side: Input or output.
        runtime_name: The runtime's name for it.
        permutation: The transpose from the original layout to the runtime's; empty for none.
        dtype: The runtime's element type.
        scale: Where the runtime's tensor is an integer: q = round(x / scale) + zero_point.
        zero_point: As above.
    """

    name: str
    side: Literal["input", "output"]
    runtime_name: str
    permutation: tuple[int, ...] = ()
    dtype: str = "float32"
    scale: float | None = None
    zero_point: int = 0


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file of an artifact. Files of the role ``model`` count for its size."""

    path: str
    role: Literal["model", "source", "snippet"] = "model"


@dataclass(frozen=True, slots=True)
class Emitted:
    """What ``emit`` wrote.

    Attributes:
        main: The main model file's path, relative to the artifact's folder.
        files: All files, the main one included.
        adapters: How inputs and outputs map onto the runtime's; empty where they are the same.
        notes: Sentences for the report: what was not run here, how to build the engine, ...
    """

    main: str
    files: tuple[ModelFile, ...]
    adapters: tuple[Adapter, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """A node that a platform cannot run, the reason, and what would work."""

    node: str
    op_type: str
    reason: str
    hint: str = ""


@dataclass(frozen=True)
class Target(ABC):
    """Lowers a model to the files of one runtime.

    The fields of a target are its options, such as the artifact's format or the type of its inputs.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    format: str = field(default="", kw_only=True)

    def options(self) -> dict[str, Any]:
        """Returns the options as plain data, in the order of the fields."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def fitted(self, shapes: Mapping[str, Sequence[int]]) -> Target:
        """The target for a model whose inputs have these shapes in one call, by name.

        A runtime of static shapes fixes open dimensions by them; others need nothing of the kind.
        """
        return self

    @abstractmethod
    def check(self, model: ir.Model, platform: Platform) -> list[Problem]:
        """Lists the nodes that the platform cannot run, even after ``prepare``."""

    @abstractmethod
    def prepare(self, model: ir.Model, platform: Platform) -> tuple[ir.Model, Change]:
        """Returns a new model with every change of numbers made that the runtime needs.

        That is: operators the runtime lacks decomposed, the opset lowered, weights and biases folded
        to integers behind DequantizeLinear. The model given is not changed.

        Raises:
            ModelError: The platform cannot run the model; names the nodes.
        """

    @abstractmethod
    def emit(self, model: ir.Model, platform: Platform, folder: Path) -> Emitted:
        """Writes the files of a prepared model into an existing folder."""

    @abstractmethod
    def open(self, folder: Path, manifest: Mapping[str, Any], *, threads: int = 1) -> Session:
        """Opens an emitted artifact on this host.

        Args:
            folder: The artifact's folder.
            manifest: Its manifest, as plain data; ``model``, ``inputs``, ``outputs`` and
                ``adapters`` are what a session needs.
            threads: Threads of one operator.

        Raises:
            RuntimeFailure: The runtime cannot load the files.
            MissingExtra: The runtime is not installed.
        """

    def snippets(self, emitted: Emitted, inputs: Sequence[TensorSpec]) -> dict[str, str]:
        """Returns short programs that load and run the artifact, by file name."""
        return {}


def refuse(problems: Sequence[Problem], platform: Platform | str) -> None:
    """Raises one error that lists the nodes that the platform, or the runtime, cannot run, if there are any.

    Raises:
        ModelError: There are some.
    """
    if not problems:
        return
    listed = [f"{problem.node} ({problem.op_type}): {problem.reason}" for problem in problems[:5]]
    if len(problems) > len(listed):
        listed.append(f"and {len(problems) - len(listed)} more")
    hint = next((problem.hint for problem in problems if problem.hint), None)
    runtime = platform if isinstance(platform, str) else f"{platform.runtime.name} {platform.runtime_version}"
    raise ModelError(
        f"{runtime} cannot run {len(problems)} node{'s' if len(problems) > 1 else ''} of the model",
        where="\n  ".join(listed),
        hint=hint,
    )
