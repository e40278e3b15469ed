"""Running any model on numpy data, with any intermediate values tapped.

The reference mode is onnxruntime on the CPU with all graph optimizations off, so that every node is
computed as it stands in the graph: QuantizeLinear and DequantizeLinear in float, no saturating
integer kernel of the host.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from edgeopt.errors import RuntimeFailure
from edgeopt.session import Closing

Feeds = Mapping[str, np.ndarray]
"""The inputs of one call, by name."""

IN_MEMORY = 2**30
"""Models above this many bytes of initializers go to onnxruntime by way of a file."""

LENT = 2**12
"""Constants from this many bytes on are lent to onnxruntime where they lie, not copied into the model."""


class Executor(Closing):
    """A model loaded for running, on the host, with onnxruntime.

    Args:
        model: The model; it is not changed. Tensors that lie in files stay there.
        taps: Names of intermediate values to return beside the model's outputs.
        optimize: Let onnxruntime optimize the graph; off is the reference mode.
        threads: Threads of one operator.

    Raises:
        RuntimeFailure: onnxruntime cannot load the model.
    """

    def __init__(
        self,
        model: ir.Model,
        taps: Sequence[str] = (),
        *,
        optimize: bool = False,
        threads: int = 1,
    ) -> None:
        tapped = with_outputs(model, taps) if taps else model
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._lent: list[onnxruntime.OrtValue] = []  # they must outlive the session
        size = _bytes_in_memory(tapped)
        try:
            if size > IN_MEMORY or _has_external(tapped):
                options = _options(optimize, threads)
                if (
                    size > IN_MEMORY
                ):  # weights packed for kernels are copies; as they are they stay in their file
                    options.add_session_config_entry("session.disable_prepacking", "1")
                self._folder = tempfile.TemporaryDirectory(prefix="edgeopt-")
                path = Path(self._folder.name) / "model.onnx"
                ir.save(tapped, path, external_data="model.data")
                self._session = onnxruntime.InferenceSession(
                    os.fspath(path), options, providers=["CPUExecutionProvider"]
                )
            elif optimize:
                self._session = _opened(ir.to_proto(tapped), _options(optimize, threads))
            else:
                options = _options(optimize, threads)
                proto, constants = _parted(tapped)
                self._lent = lend(proto, constants, options)
                try:
                    self._session = _opened(proto, options)
                except Exception:  # it looks in vain for a lent bias that it means to replace, or fails again
                    self._session = _opened(ir.to_proto(tapped), _options(optimize, threads))
        except Exception as failure:  # onnxruntime raises a class of its own per status code
            self.close()
            raise RuntimeFailure(f"onnxruntime cannot load the model: {first_line(failure)}") from failure
        self.inputs = [value.name for value in self._session.get_inputs()]
        self.outputs = [value.name for value in self._session.get_outputs()]

    def close(self) -> None:
        """Frees the session and its temporary files."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def run(self, feeds: Feeds, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Runs one call.

        Args:
            feeds: An array for every input; further entries are ignored.
            names: The outputs and taps wanted; all by default.

        Raises:
            RuntimeFailure: onnxruntime fails on these inputs.
        """
        wanted = list(names) if names is not None else self.outputs
        try:
            values: list[Any] = self._session.run(
                wanted, {name: feeds[name] for name in self.inputs if name in feeds}
            )
        except Exception as failure:
            raise RuntimeFailure(f"onnxruntime fails to run the model: {first_line(failure)}") from failure
        return dict(zip(wanted, values, strict=True))

    def stream(
        self, samples: Iterable[Feeds], names: Sequence[str] | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Runs one call after another, keeping none: memory does not grow with their number."""
        for feeds in samples:
            yield self.run(feeds, names)


def _options(optimize: bool, threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _opened(proto: onnx.ModelProto, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Clones a model and makes further values of its main graph outputs.

    Raises:
        KeyError: The main graph has no value of that name.
    """
    clone = model.clone()
    values = {value.name: value for value in clone.graph.inputs}
    values.update((output.name, output) for node in clone.graph for output in node.outputs)
    present = {value.name for value in clone.graph.outputs}
    clone.graph.outputs.extend(values[name] for name in names if name not in present)
    return clone


def lend(
    proto: onnx.ModelProto, constants: Mapping[str, np.ndarray], options: onnxruntime.SessionOptions
) -> list[onnxruntime.OrtValue]:
    """Makes arrays initializers of a model that onnxruntime will read where they lie.

    Serialized with the model they would be copied several times.

    Args:
        proto: The model, which gets initializers without numbers.
        constants: Arrays by the names under which nodes read them.
        options: Of the session that will be opened with it.

    Returns:
        What holds the arrays; whoever owns the session keeps it as long.
    """
    held = []
    for name, array in constants.items():
        tensor = proto.graph.initializer.add(
            name=name,
            data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype),
            dims=array.shape,
            data_location=onnx.TensorProto.EXTERNAL,
        )
        tensor.external_data.add(key="location", value="lent")
        held.append(onnxruntime.OrtValue.ortvalue_from_numpy(array))
    options.add_external_initializers(list(constants), held)
    return held


def first_line(failure: BaseException) -> str:
    """The first line of an error's text, for a message of one sentence."""
    lines = str(failure).strip().splitlines()
    return lines[0] if lines else type(failure).__name__


def _parted(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Returns a model without its large constants, and these."""
    named = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    constants = {
        name: np.require(value.const_value.numpy(), requirements=["C", "ALIGNED"])
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
        and value.const_value.nbytes >= LENT
        and value.const_value.dtype in (ir.DataType.FLOAT, ir.DataType.INT8, ir.DataType.UINT8)
        and name not in named
    }
    skeleton = model.clone()
    for name in constants:
        del skeleton.graph.initializers[name]
    return ir.to_proto(skeleton), constants


def _bytes_in_memory(model: ir.Model) -> int:
    return sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def _has_external(model: ir.Model) -> bool:
    return any(
        isinstance(value.const_value, ir.ExternalTensor)
        for graph in model.graphs()
        for value in graph.initializers.values()
    )
