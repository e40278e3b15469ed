"""The table of operators: what each family registers, and what an operator is told of its node.

An operator is a function ``(call, *inputs)`` of torch tensors that returns one tensor or a tuple. Missing
optional inputs are ``None`` or left out. Inputs named in ``host`` steer the operator (axes, shapes,
sizes): they arrive as plain Python lists and numbers, and no gradient flows through them.

Integers that come of QuantizeLinear are carried in floating-point tensors, so that gradients flow
through them; they are cast to their own type only where they leave the graph.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from edgeopt.errors import MissingExtra, ModelError

Tensor = Any
"""A torch.Tensor; torch is imported only where it is used."""

FAMILIES = (
    "elementwise",
    "linear",
    "pooling",
    "normalization",
    "reductions",
    "movement",
    "indexing",
    "resizing",
    "recurrent",
    "quantizers",
)


@dataclass(frozen=True, slots=True)
class Call:
    """What an operator knows of its node.

    Attributes:
        node: The node.
        opset: The model's opset of ai.onnx.
        dtype: The floating-point type to compute constants in, or ``None`` for the model's own.
    """

    node: ir.Node
    opset: int
    dtype: Any = None

    def integer(self, name: str, default: int = 0) -> int:
        """Reads an integer attribute."""
        found = self.node.attributes.get_int(name, default)
        return default if found is None else int(found)

    def number(self, name: str, default: float) -> float:
        """Reads a float attribute."""
        found = self.node.attributes.get_float(name, default)
        return default if found is None else float(found)

    def text(self, name: str, default: str) -> str:
        """Reads a string attribute."""
        found = self.node.attributes.get_string(name, default)
        return default if found is None else str(found)

    def integers(self, name: str) -> list[int] | None:
        """Reads a list of integers, ``None`` where the attribute is absent."""
        found = self.node.attributes.get_ints(name, None)
        return None if found is None else [int(item) for item in found]

    def numbers(self, name: str) -> list[float] | None:
        """Reads a list of floats, ``None`` where the attribute is absent."""
        found = self.node.attributes.get_floats(name, None)
        return None if found is None else [float(item) for item in found]

    def texts(self, name: str) -> list[str] | None:
        """Reads a list of strings, ``None`` where the attribute is absent."""
        found = self.node.attributes.get_strings(name, None)
        return None if found is None else [str(item) for item in found]

    def wants(self, index: int) -> bool:
        """Whether somebody may read the output of this index."""
        return index < len(self.node.outputs) and bool(self.node.outputs[index].name)

    def refuse(self, reason: str) -> ModelError:
        """Makes the error of a form of the operator that is not supported."""
        return ModelError(
            f"{self.node.op_type} {reason} cannot run under torch", where=self.node.name or None
        )


Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of ai.onnx.

    Attributes:
        function: Computes it.
        host: Indices of inputs that arrive as Python lists.
    """

    function: Function
    host: frozenset[int] = field(default_factory=frozenset)


_TABLE: dict[str, Operator] = {}


def operator(*names: str, host: Sequence[int] = ()) -> Callable[[Function], Function]:
    """Registers a function as the operators of these names."""

    def register(function: Function) -> Function:
        for name in names:
            _TABLE[name] = Operator(function, frozenset(host))
        return function

    return register


def require_torch(purpose: str = "training on the graph") -> Any:
    """Imports torch.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise MissingExtra("torch", "torch", purpose) from error


def table() -> dict[str, Operator]:
    """Returns all operators by name, importing torch and the families the first time.

    Raises:
        MissingExtra: torch is not installed.
    """
    require_torch()
    for family in FAMILIES:
        importlib.import_module(f"edgeopt.graph.autograd.{family}")
    return _TABLE
