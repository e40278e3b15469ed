"""Turns steps with their layouts into operations: what the operators' functions write with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.graph.layout import Choice, Layout, identity, moves_only_units, permutation, shape_of
from edgeopt.targets.tflite.program import Operation, Program, Tensor, Unsupported
from edgeopt.targets.tflite.steps import Constant, Step, constant, parameters

PADDING = {"SAME": 0, "VALID": 1}
ACTIVATION = {"": 0, "RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}
NOT_NEGATIVE = (ACTIVATION["RELU"], ACTIVATION["RELU6"])
INTEGERS = {"int8", "int16", "int32", "int64", "uint8", "bool"}
DTYPES = {"float32", *INTEGERS}


class Emitter:
    """Holds the program while it is written, and where every value stands in it.

    Args:
        layouts: The layout of every graph input, by name.
    """

    def __init__(self, layouts: dict[str, Layout]) -> None:
        self.program = Program()
        self.layouts = layouts
        self.choice = Choice((), ())
        self.step: Step | None = None
        self.transposes = 0
        self._made: dict[ir.Value, tuple[Tensor, Layout]] = {}
        self._moved: dict[tuple[ir.Value, Layout], Tensor] = {}
        self._constants: dict[tuple[ir.Value, Layout | None, int, bool], Tensor] = {}
        self._names: dict[str, int] = {}

    # ---- values

    def name(self, wanted: str) -> str:
        """A name that no tensor has yet."""
        count = self._names.get(wanted, 0)
        self._names[wanted] = count + 1
        return wanted if count == 0 else self.name(f"{wanted}/{count}")

    def tensor(self, value: ir.Value, layout: Layout) -> Tensor:
        """A new tensor for a value in a layout, with its quantization."""
        shape = shape_of(value)
        dtype = "float32" if value.dtype is None else value.dtype.numpy().name
        if dtype not in DTYPES:
            raise Unsupported(f"{value.name!r} is of type {dtype}, which TFLite does not compute in")
        found = Tensor(self.name(value.name or "value"), tuple(shape[axis] for axis in layout), dtype)
        self.quantize(found, value)
        return found

    def quantize(self, tensor: Tensor, value: ir.Value) -> None:
        """Gives a tensor the quantization of a value, if it has one."""
        if (known := parameters(value)) is not None:
            tensor.scale = np.array([known.scale], np.float32)
            tensor.zero_point = np.array([known.zero_point], np.int64)

    def like(self, source: Tensor, shape: tuple[int, ...], suffix: str) -> Tensor:
        """A new tensor of the same type and quantization."""
        made = Tensor(self.name(f"{source.name}/{suffix}"), tuple(shape), source.dtype)
        made.scale, made.zero_point = source.scale, source.zero_point
        return made

    def define(self, value: ir.Value, tensor: Tensor, layout: Layout) -> None:
        """Says which tensor holds a value."""
        self._made[value] = (tensor, layout)

    def constant(self, array: np.ndarray, name: str) -> Tensor:
        """A constant of the operator's own."""
        return Tensor(self.name(name), array.shape, array.dtype.name, array)

    def shape(self, sizes: Any, name: str = "shape") -> Tensor:
        """A constant int32 vector: a shape, axes, paddings, ..."""
        return self.constant(np.asarray(sizes, np.int32), name)

    def number(self, value: float, like: Tensor, name: str) -> Tensor:
        """A constant scalar of a tensor's type; in integers quantized as the tensor is."""
        if like.scale is None or like.zero_point is None:
            return self.constant(np.array(value, like.dtype), name)
        info = np.iinfo(like.dtype)
        scaled = np.rint(value / float(like.scale[0])) + int(like.zero_point[0])
        made = self.constant(np.array(np.clip(scaled, info.min, info.max), like.dtype), name)
        made.scale, made.zero_point = like.scale, like.zero_point
        return made

    def read(self, index: int, *, rank: int | None = None) -> Tensor:
        """An input of the current step in the layout that it is to be read in.

        A constant of fewer axes than the layout is broadcast to it; ``rank`` overrules.
        """
        step = self._current()
        value = step.inputs[index]
        if value is None:
            raise Unsupported(f"input {index} is missing")
        layout = self.choice.inputs[index]
        known = constant(value)
        if known is not None:
            return self._constant(value, known, layout, rank if rank is not None else len(layout or ()))
        want = layout if layout is not None else identity(len(shape_of(value)))
        return self.value(value, want)

    def value(self, value: ir.Value, want: Layout) -> Tensor:
        """A computed value, transposed where it lies otherwise."""
        if value not in self._made:
            raise Unsupported(f"{value.name!r} is not computed by the graph")
        tensor, have = self._made[value]
        if have == want:
            return tensor
        if (value, want) not in self._moved:
            self._moved[value, want] = self._move(tensor, shape_of(value), have, want)
        return self._moved[value, want]

    def write(self, index: int = 0) -> Tensor:
        """A new tensor for an output of the current step, in the layout that it is to be left in."""
        value = self._current().outputs[index]
        made = self.tensor(value, self.choice.outputs[index])
        self.define(value, made, self.choice.outputs[index])
        return made

    def layout(self, index: int = 0) -> Layout:
        """The layout that the current step reads an input in."""
        found = self.choice.inputs[index]
        return found if found is not None else identity(len(self._current().shape(index)))

    def axis(self, axis: int, index: int = 0) -> int:
        """Where an axis of an input of the current step lies in memory; negative ones from the end."""
        layout = self.layout(index)
        return layout.index(axis % len(layout))

    # ---- operations

    def op(
        self,
        code: str,
        inputs: Sequence[Tensor | None],
        outputs: list[Tensor],
        table: str = "",
        **options: Any,
    ) -> Tensor:
        """Writes an operation and returns its first output."""
        node = self.step.name if self.step is not None else ""
        self.program.operations.append(Operation(code, list(inputs), outputs, table, options, node))
        return outputs[0]

    def reshape(self, source: Tensor, target: Tensor) -> Tensor:
        """Writes a RESHAPE."""
        sizes = list(target.shape)
        return self.op(
            "RESHAPE",
            [source, self.shape(sizes)],
            [target],
            "ReshapeOptions",
            newShape=np.array(sizes, np.int32),
        )

    def pad(
        self, source: Tensor, before_after: list[tuple[int, int]], value: float = 0.0, suffix: str = "padded"
    ) -> Tensor:
        """Writes a PAD (PADV2 for another value than zero), or returns the tensor if nothing is padded."""
        if not any(map(any, before_after)):
            return source
        shape = tuple(
            size + before + after for size, (before, after) in zip(source.shape, before_after, strict=True)
        )
        target = self.like(source, shape, suffix)
        paddings = self.shape(before_after, "paddings")
        if value == 0.0:
            return self.op("PAD", [source, paddings], [target], "PadOptions")
        return self.op(
            "PADV2", [source, paddings, self.number(value, source, "pad_value")], [target], "PadV2Options"
        )

    def never_negative(self, tensor: Tensor) -> bool:
        """Whether the operation that makes a tensor ends in an activation that gives nothing below zero."""
        for operation in reversed(self.program.operations):
            if any(output is tensor for output in operation.outputs):
                fused = operation.options.get("fusedActivationFunction", 0)
                return operation.code in ("RELU", "RELU6", "LOGISTIC") or fused in NOT_NEGATIVE
        return False

    def slice(self, source: Tensor, begin: list[int], target: Tensor) -> Tensor:
        """Writes a SLICE: ``target``'s sizes from ``begin`` on."""
        return self.op(
            "SLICE",
            [source, self.shape(begin, "begin"), self.shape(target.shape, "size")],
            [target],
            "SliceOptions",
        )

    def activation(self) -> int:
        """The current step's fused activation, as options want it."""
        return ACTIVATION[self._current().activation]

    # ---- within

    def _current(self) -> Step:
        if self.step is None:
            raise RuntimeError("no step is being written")
        return self.step

    def _move(self, tensor: Tensor, shape: tuple[int, ...], have: Layout, want: Layout) -> Tensor:
        target = self.like(tensor, tuple(shape[axis] for axis in want), "transposed")
        if moves_only_units(shape, have, want):
            return self.reshape(tensor, target)
        self.transposes += 1
        order = self.shape(permutation(have, want), "permutation")
        return self.op("TRANSPOSE", [tensor, order], [target], "TransposeOptions")

    def _constant(self, value: ir.Value, known: Constant, layout: Layout | None, rank: int) -> Tensor:
        step = self._current()
        key = (value, layout, rank, step.integer)
        if key in self._constants:
            return self._constants[key]
        data, axis = known.data, known.axis
        if data.ndim < rank and data.size > 1:
            axis += rank - data.ndim
            data = data.reshape((1,) * (rank - data.ndim) + data.shape)
        if layout is not None and len(layout) == data.ndim:
            data = np.transpose(data, layout)
            axis = layout.index(axis) if data.ndim else 0
        self._constants[key] = self.weight(value.name or "constant", data, known, axis)
        return self._constants[key]

    def weight(self, name: str, data: np.ndarray, known: Constant, axis: int = 0) -> Tensor:
        """A constant with the quantization of ``known`` along an axis of ``data``.

        Where the current step computes in float, a quantized or float16 constant is dequantized by an
        operation of the file.
        """
        if data.dtype == np.float64:
            raise Unsupported("float64 is not computed by TFLite's kernels", "cast the model to float32")
        made = self.constant(np.ascontiguousarray(data), name)
        if known.scale is not None and known.zero_point is not None:
            made.scale, made.zero_point, made.axis = (
                known.scale.reshape(-1),
                known.zero_point.reshape(-1),
                axis,
            )
        step = self._current()
        if made.dtype == "float16" or (made.scale is not None and not step.integer):
            made.name = self.name(f"{name}/stored")
            real = Tensor(self.name(f"{name}/float"), made.shape, "float32")
            return self.op("DEQUANTIZE", [made], [real], "DequantizeOptions")
        return made
