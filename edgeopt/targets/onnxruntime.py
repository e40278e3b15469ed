"""The target onnxruntime: an ``.onnx`` file with QuantizeLinear and DequantizeLinear, or an ``.ort`` file.

``prepare`` folds quantized weights to integers and biases to int32 at scale input x weight, each behind a
DequantizeLinear of its own, because onnxruntime joins it with the one operator that reads it. Rows of a
quantized table are gathered as integers, and weights of operators that compute in float are widened once,
at load. What int8 values become by moving or selecting alone is quantized too
(``_carry.py``). ``emit`` strips everything that a device does not need.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import onnxruntime

from edgeopt import units
from edgeopt.errors import OutputError, RuntimeFailure
from edgeopt.graph.change import Change
from edgeopt.graph.execute import first_line
from edgeopt.host import distortion
from edgeopt.platform import Platform
from edgeopt.session import Session, TensorSpec
from edgeopt.targets._carry import carry_integers
from edgeopt.targets._dynamic import expand_dynamic
from edgeopt.targets._fold import fold_biases, fold_constants, widen_at_load
from edgeopt.targets._opset import ir_version, lower
from edgeopt.targets.base import Emitted, ModelFile, Problem, Target, refuse

EXTERNAL = 2**31 - 2**24
"""Models above this many bytes of weights cannot be one protobuf file."""

MAPPED = 2**29
"""Above this many bytes weights lie in a file of their own, which onnxruntime maps instead of reading it."""

ORT_BYTES = "onnxruntime orders the tensors of an .ort file anew each time, so its bytes differ between runs"


@dataclass(frozen=True)
class Onnxruntime(Target):
    """Lowers a model for onnxruntime's CPU kernels; ``format`` is ``onnx`` (the default) or ``ort``."""

    name: ClassVar[str] = "onnxruntime"

    def __post_init__(self) -> None:
        if self.format not in ("", "onnx", "ort"):
            raise OutputError(f"onnxruntime has no format {self.format!r}", hint="onnx or ort")

    def check(self, model: ir.Model, platform: Platform) -> list[Problem]:
        """Lists operators without a kernel, and operators that cannot be lowered to the opset."""
        rules = platform.rules
        own = {(key[0], key[1]) for key in model.functions}
        problems = [
            Problem(node.name or "", node.op_type, f"there is no kernel for {node.domain or 'ai.onnx'}")
            for node in model.graph.all_nodes()
            if not rules.runs(node.op_type, node.domain) and (node.domain, node.op_type) not in own
        ]
        return problems + lower(model.clone(), _opset(model, platform))

    def prepare(self, model: ir.Model, platform: Platform) -> tuple[ir.Model, Change]:
        """Folds weights and biases to integers and lowers the opset.

        Raises:
            ModelError: The platform cannot run the model; names the nodes.
        """
        refuse(self.check(model, platform), platform)
        prepared = model.clone()
        gathers = platform.rules.runs("GatherBlockQuantized", "com.microsoft")
        weights = fold_constants(prepared, gathers_blocks=gathers)
        dynamic = expand_dynamic(prepared)
        biases = fold_biases(prepared)
        widened = 0 if self.format == "ort" else widen_at_load(prepared)  # an .ort file would grow
        lower(prepared, _opset(prepared, platform))
        carried = carry_integers(prepared)
        prepared.ir_version = ir_version(prepared.opset_imports.get("", 0))
        change = Change(
            details={
                "weights": weights,
                "biases": biases.count,
                "widened_at_load": widened,
                "carried": carried,
                "dynamic": dynamic,
            }
        )
        if weights:
            change.summary = (
                f"{units.number(weights, 'weight')} and "
                f"{units.number(biases.count, 'bias', 'biases')} to integers"
            )
        change.notes.extend(biases.notes)
        return prepared, change

    def emit(self, model: ir.Model, platform: Platform, folder: Path) -> Emitted:
        """Writes ``model.onnx`` or ``model.ort``, and ``model.data`` where the weights exceed 512 MB."""
        stripped = strip_names(model)
        size = sum(
            value.const_value.nbytes
            for value in stripped.graph.initializers.values()
            if value.const_value is not None
        )
        apart = size > MAPPED and self.format != "ort"
        if not apart and size <= EXTERNAL:
            ir.external_data.load_to_model(stripped)  # the store keeps large weights in files of its own
        if self.format == "ort":
            if size > EXTERNAL:
                raise OutputError("an .ort file cannot hold more than 2 GB", hint="--format onnx")
            _save_ort(stripped, folder / "model.ort", platform)
            return Emitted("model.ort", (ModelFile("model.ort"),), notes=(ORT_BYTES,))
        if apart:
            ir.save(stripped, folder / "model.onnx", external_data="model.data")
            return Emitted("model.onnx", (ModelFile("model.onnx"), ModelFile("model.data")))
        ir.save(stripped, folder / "model.onnx")
        return Emitted("model.onnx", (ModelFile("model.onnx"),))

    def open(self, folder: Path, manifest: Mapping[str, Any], *, threads: int = 1) -> Session:
        """Opens an emitted artifact with onnxruntime's own optimizations.

        Raises:
            RuntimeFailure: onnxruntime cannot load the file.
        """
        main = manifest.get("model", "model.onnx")
        return OnnxruntimeSession(folder / str(main), threads=threads)

    def snippets(self, emitted: Emitted, inputs: Sequence[TensorSpec]) -> dict[str, str]:
        """Returns ``run.py`` and ``run.cpp``, which feed zeros."""
        return {"run.py": _python(emitted, inputs), "run.cpp": _cpp(emitted, inputs)}


def strip_names(model: ir.Model) -> ir.Model:
    """Returns a copy without metadata, doc strings, types of inner values and long inner names.

    Inputs and outputs keep their names, nodes and initializers their order.
    """
    clone = model.clone()
    clone.metadata_props.clear()
    clone.doc_string = None
    clone.producer_name, clone.producer_version, clone.domain = "edgeopt", None, None
    clone.model_version = None
    outer = {id(value) for value in (*clone.graph.inputs, *clone.graph.outputs)}
    taken = {value.name for value in (*clone.graph.inputs, *clone.graph.outputs)}
    count = 0

    def short() -> str:
        nonlocal count
        while True:
            count += 1
            if (name := np.base_repr(count, 36).lower()) not in taken:
                return name

    for graph in clone.graphs():
        graph.doc_string = None
        graph.metadata_props.clear()
        values = [*graph.inputs, *graph.initializers.values()]
        for value in values:
            if graph is not clone.graph and value in graph.inputs:
                outer.add(id(value))
                taken.add(value.name)
    for graph in clone.graphs():
        inner = [value for value in graph.initializers.values() if id(value) not in outer]
        for value in graph.initializers.values():
            value.doc_string = None
            value.metadata_props.clear()
        for value in inner:  # all leave first: an artifact's own short names come again in another order
            graph.initializers.pop(value.name or "")
        for value in inner:
            value.name = short()
            graph.register_initializer(value)
            value.type, value.shape = None, None
        for value in (*graph.inputs, *graph.outputs):
            value.doc_string = None
            value.metadata_props.clear()
        for node in graph:
            node.doc_string = None
            node.name = None
            node.metadata_props.clear()
            for output in node.outputs:
                output.doc_string = None
                output.metadata_props.clear()
                if id(output) in outer:
                    continue
                if output.name:
                    output.name = short()
                output.type, output.shape = None, None
    return clone


def _opset(model: ir.Model, platform: Platform) -> int:
    """The highest opset of a file that holds a model's operators."""
    nodes = model.graph.all_nodes()
    return platform.rules.highest_opset(node.op_type for node in nodes if node.domain in ("", "ai.onnx"))


def _save_ort(model: ir.Model, path: Path, platform: Platform) -> None:
    """Converts with onnxruntime itself, leaving the choice of kernels to the device at load."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = os.fspath(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry("optimization.minimal_build_optimizations", "save")
    disabled = ["NchwcTransformer"] if platform.device.cpu.arch != "x86_64" else []
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        source = Path(folder) / "model.onnx"
        ir.save(model, source)
        try:
            onnxruntime.InferenceSession(
                os.fspath(source),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=disabled,
            )
        except Exception as failure:  # onnxruntime raises a class of its own per status code
            raise RuntimeFailure(f"onnxruntime cannot convert the model: {first_line(failure)}") from failure


class OnnxruntimeSession(Session):
    """A model file running on onnxruntime's CPU kernels.

    Args:
        path: An ``.onnx`` or ``.ort`` file.
        threads: Threads of one operator.

    Raises:
        RuntimeFailure: onnxruntime cannot load the file.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        self._session = _load(path, threads)
        self.inputs = [_spec(item) for item in self._session.get_inputs()]
        self.outputs = [_spec(item) for item in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs one call: an array for every input."""
        names = [spec.name for spec in self.outputs]
        given = {spec.name: feeds[spec.name] for spec in self.inputs if spec.name in feeds}
        try:
            values: list[Any] = self._session.run(names, given)
        except Exception as failure:  # onnxruntime raises a class of its own per status code
            raise RuntimeFailure(f"onnxruntime fails to run the model: {first_line(failure)}") from failure
        return dict(zip(names, values, strict=True))


def _load(path: Path, threads: int) -> onnxruntime.InferenceSession:
    attempts = (True, False) if distortion() else (False,)  # x86 without VNNI saturates byte products
    for exact in attempts:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        if exact:
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # exact products fail to load for some files with shared weights
            failure = error
    raise RuntimeFailure(
        f"onnxruntime cannot load the artifact: {first_line(failure)}", where=str(path)
    ) from failure


_TYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "string": "str",
    "bool": "bool",
}


def _spec(item: Any) -> TensorSpec:
    kind = str(item.type).removeprefix("tensor(").removesuffix(")")
    shape = tuple(dim if isinstance(dim, int) else (dim or "?") for dim in item.shape)
    return TensorSpec(item.name, _TYPES.get(kind, kind), shape)


def _python(emitted: Emitted, inputs: Sequence[TensorSpec]) -> str:
    lines = [
        "from pathlib import Path",
        "",
        "import numpy as np",
        "import onnxruntime",
        "",
        f'model = Path(__file__).with_name("{emitted.main}")',
        'session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])',
        "feeds = {",
    ]
    for spec in inputs:
        shape = ", ".join(str(dim if isinstance(dim, int) else 1) for dim in spec.shape)
        comma = "," if len(spec.shape) == 1 else ""
        lines.append(f'    "{spec.name}": np.zeros(({shape}{comma}), np.{spec.dtype}),')
    lines += [
        "}",
        "for output, value in zip(session.get_outputs(), session.run(None, feeds)):",
        "    print(output.name, value.shape, value.dtype)",
    ]
    return "\n".join(lines) + "\n"


_CPP_TYPES = {
    "float32": "float",
    "float64": "double",
    "int64": "int64_t",
    "int32": "int32_t",
    "int8": "int8_t",
    "uint8": "uint8_t",
    "bool": "bool",
}


def _cpp(emitted: Emitted, inputs: Sequence[TensorSpec]) -> str:
    lines = [
        "// g++ -std=c++17 run.cpp -lonnxruntime -o run",
        "#include <cstdio>",
        "#include <vector>",
        "#include <onnxruntime_cxx_api.h>",
        "",
        "int main() {",
        "  Ort::Env env;",
        f'  Ort::Session session(env, "{emitted.main}", Ort::SessionOptions{{}});',
        "  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);",
        "  std::vector<const char*> names;",
        "  std::vector<Ort::Value> feeds;",
    ]
    for index, spec in enumerate(inputs):
        dims = [dim if isinstance(dim, int) else 1 for dim in spec.shape]
        kind = _CPP_TYPES.get(spec.dtype, "float")
        count = int(np.prod(dims, dtype=np.int64)) if dims else 1
        lines += [
            f"  static {kind} data{index}[{count}] = {{}};",
            f"  std::vector<int64_t> shape{index}{{{', '.join(map(str, dims))}}};",
            f'  names.push_back("{spec.name}");',
            f"  feeds.push_back(Ort::Value::CreateTensor<{kind}>(memory, data{index}, {count},",
            f"                                                   shape{index}.data(), shape{index}.size()));",
        ]
    lines += [
        "  auto outputs = session.GetOutputNames();",
        "  std::vector<const char*> wanted;",
        "  for (auto& name : outputs) wanted.push_back(name.c_str());",
        "  auto values = session.Run(Ort::RunOptions{}, names.data(), feeds.data(), feeds.size(),",
        "                            wanted.data(), wanted.size());",
        "  for (auto& value : values)",
        '    std::printf("%zu elements\\n", value.GetTensorTypeAndShapeInfo().GetElementCount());',
        "}",
    ]
    return "\n".join(lines) + "\n"
