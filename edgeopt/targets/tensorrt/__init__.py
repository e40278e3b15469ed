"""The target tensorrt: an ONNX file that the parser of the device's TensorRT takes, and its build command.

An engine belongs to one GPU and one version of TensorRT, so it is built on the board: ``build.sh`` holds
the command. ``prepare`` says the model in the operators and the opset of that version by our own
decompositions (``graph/legalize``), each proved against what it replaces. On this host the ONNX file is
run in onnxruntime, operator by operator as it stands; no engine is built or run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from edgeopt import units
from edgeopt.errors import ModelError, OutputError, RuntimeFailure
from edgeopt.graph.change import Change
from edgeopt.graph.execute import Executor
from edgeopt.graph.legalize import legalize
from edgeopt.graph.precision import engine_precision
from edgeopt.graph.proof import WHOLE_MODEL, compare_models, model_bytes
from edgeopt.graph.quantization import strip
from edgeopt.platform import Platform, RuntimeVersion
from edgeopt.session import Session, signature
from edgeopt.targets._fold import fold_constants
from edgeopt.targets._opset import ir_version, lower
from edgeopt.targets.base import Emitted, ModelFile, Problem, Target, refuse
from edgeopt.targets.onnxruntime import EXTERNAL, strip_names
from edgeopt.targets.tensorrt.commands import build_script, run_script
from edgeopt.targets.tensorrt.constraints import PROCESSOR, on_integers, problems

TOLERANCE = 1e-4
"""How far the whole lowered model may stray from the original, relative to its largest output."""


@dataclass(frozen=True)
class Tensorrt(Target):
    """Lowers a model for TensorRT's ONNX parser."""

    name: ClassVar[str] = "tensorrt"

    def __post_init__(self) -> None:
        if self.format not in ("", "onnx"):
            raise OutputError(f"tensorrt has no format {self.format!r}", hint="onnx")

    def check(self, model: ir.Model, platform: Platform) -> list[Problem]:
        """Lists what stays unsupported when everything that can be decomposed is, node by node."""
        clone = model.clone()
        rules = platform.rules
        legalize(clone, rules.runs, rules.opset[1], verify="off")
        return _remaining(clone, platform)

    def prepare(self, model: ir.Model, platform: Platform) -> tuple[ir.Model, Change]:
        """Decomposes, lowers the opset, and stores quantized constants as the version takes them.

        Raises:
            ModelError: TensorRT cannot run the model; names the nodes.
        """
        refuse(self.check(model, platform), platform)
        rules = platform.rules
        prepared = model.clone()
        change = legalize(prepared, rules.runs, rules.opset[1])
        refuse(_remaining(prepared.clone(), platform), platform)
        before = prepared.opset_imports.get("", 0)
        lower(prepared, rules.opset[1])
        after = prepared.opset_imports.get("", 0)
        prepared.ir_version = ir_version(after)
        _prove(model, prepared, change)
        if engine_precision(prepared) != "float32" and (count := _normalizations(change)):
            change.notes.append(
                f"{count} normalizations became single operators, whose squares exceed float16 for inputs "
                "beyond 255: compare the engine's outputs with golden/ on the device"
            )
        if doubtful := on_integers(prepared, rules):
            change.notes.append(
                f"the table of TensorRT {platform.runtime_version} lists floats alone for these, which "
                f"compute on integers here: {', '.join(doubtful[:5])}"
                + (f" and {len(doubtful) - 5} more" if len(doubtful) > 5 else "")
            )
        weights = _store_integers(prepared, rules)
        said = [f"{len(change.rewrites)} operators decomposed"] if change.rewrites else []
        said += [f"opset {before} -> {after}"] if after != before else []
        said += [f"{units.number(weights, 'weight')} to integers"] if weights else []
        change.summary = ", ".join(said)
        change.details.update(weights=weights, opset=after)
        return prepared, change

    def emit(self, model: ir.Model, platform: Platform, folder: Path) -> Emitted:
        """Writes ``model.onnx``, ``build.sh`` that builds the engine from it, and ``run.py``."""
        stripped = strip_names(model)
        files = [ModelFile("model.onnx"), ModelFile("build.sh", "snippet"), ModelFile("run.py", "snippet")]
        if model_bytes(stripped) > EXTERNAL:
            ir.save(stripped, folder / "model.onnx", external_data="model.data")
            files.insert(1, ModelFile("model.data"))
        else:
            ir.external_data.load_to_model(stripped)  # the store keeps large weights in files of its own
            ir.save(stripped, folder / "model.onnx")
        inputs = signature(model.graph.inputs)
        precision = engine_precision(model)
        script = folder / "build.sh"
        script.write_text(build_script(inputs, precision, platform.runtime_version), encoding="utf-8")
        script.chmod(0o755)
        text = run_script(inputs, platform.runtime_version)
        (folder / "run.py").write_text(text, encoding="utf-8")
        return Emitted("model.onnx", tuple(files), notes=tuple(_notes(model, precision, platform)))

    def open(self, folder: Path, manifest: Mapping[str, Any], *, threads: int = 1) -> Session:
        """Opens the ONNX file on this host's processor; it is no engine.

        Raises:
            RuntimeFailure: onnxruntime cannot load the file.
        """
        path = folder / str(manifest.get("model", "model.onnx"))
        try:
            return OnnxReference(ir.load(path), threads=threads)
        except OSError as failure:
            raise RuntimeFailure(f"cannot read the artifact: {failure}", where=str(path)) from failure


class OnnxReference(Session):
    """An ONNX model in onnxruntime; one with quantization operator by operator, in float.

    The host's integer kernels would saturate or round where the GPU does not.

    Raises:
        RuntimeFailure: onnxruntime cannot load the model.
    """

    def __init__(self, model: ir.Model, *, threads: int = 1) -> None:
        quantized = engine_precision(model) == "int8"
        self._executor = Executor(model, optimize=not quantized, threads=threads)
        self.inputs = signature([value for value in model.graph.inputs if not value.is_initializer()])
        self.outputs = signature(model.graph.outputs)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs one call: an array for every input."""
        return self._executor.run(feeds)

    def close(self) -> None:
        """Frees the session."""
        self._executor.close()


def _normalizations(change: Change) -> int:
    return sum(rewrite.rule.endswith("Normalization") for rewrite in change.rewrites)


def _prove(model: ir.Model, prepared: ir.Model, change: Change) -> None:
    """Compares the whole lowered model with the original, where both run on seeded inputs.

    Quantized models are compared in float: a last bit that a decomposition moves can flip a rounding to
    integers, and the rounding itself is not what was changed.

    Raises:
        ModelError: They differ.
    """
    if model_bytes(model) > WHOLE_MODEL:
        change.notes.append("the model is above 1 GiB: only the single decompositions were proved")
        return
    if engine_precision(model) == "int8":
        model, prepared = model.clone(), prepared.clone()
        strip(model)
        strip(prepared)
    try:
        difference = compare_models(model, prepared)
    except RuntimeFailure as failure:
        change.notes.append(f"the lowered model could not be compared as a whole: {failure.message}")
        return
    change.details["error"] = difference.error
    if difference.reason and not difference.error <= TOLERANCE:
        raise ModelError(f"the lowered model computes something else: {difference.reason}")


def _remaining(model: ir.Model, platform: Platform) -> list[Problem]:
    """Lists what a legalized model still holds that cannot be said; the model is used up."""
    rules = platform.rules
    version = f"TensorRT {platform.runtime_version}"
    found = [
        Problem(
            node.name or "",
            node.op_type,
            f"{version} has no {node.op_type}, and it could not be decomposed",
            PROCESSOR,
        )
        for node in model.graph.all_nodes()
        if not rules.runs(node.op_type, node.domain)
    ]
    for further in (problems(model, rules, version), lower(model, rules.opset[1])):
        known = {problem.node for problem in found}
        found += [problem for problem in further if problem.node not in known]
    return found


def _store_integers(model: ir.Model, rules: RuntimeVersion) -> int:
    if rules.quantization is None or rules.quantization.constants_stored == "float":
        return 0
    return fold_constants(model)


def _notes(model: ir.Model, precision: str, platform: Platform) -> list[str]:
    version, rules = f"TensorRT {platform.runtime_version}", platform.rules.quantization
    notes = [
        f"no engine was built or run here: build.sh builds it on the device with {version}, and what is "
        "measured here is the ONNX file in onnxruntime"
    ]
    if precision == "float16":
        notes.append("the size is that of the ONNX file in float32; the engine's weights take about half")
    elif precision == "int8" and rules is not None and rules.constants_stored == "float":
        notes.append(
            "the size is that of the ONNX file with float32 weights; the engine's take about a quarter"
        )
    wide = [value.name or "" for value in model.graph.inputs if value.dtype == ir.DataType.INT64]
    if wide and platform.runtime_version.startswith("8."):
        notes.append(f"{version} casts int64 to int32: its engine takes {', '.join(wide)} as int32")
    return notes
