"""Quantizes one model with one peer, in the peer's own environment, for ``benchmarks.beside_int8_peers``.

``PYTHON benchmarks/peer_int8.py SETTING MODEL.onnx CALIBRATION.npz OUT.onnx`` imports nothing of edgeopt.
The archive holds arrays ``input/index``, one model call each. Prints one JSON line: the peer's version, its
processor seconds and its largest resident set. The settings are the best of each peer on some model of the
zoo, found by hand among many:

- ``onnxruntime``: static QDQ, uint8 activations by min-max, int8 weights per channel, after its own
  pre-processing; ``onnxruntime-products`` quantizes Conv, MatMul and Gemm alone and leaves their outputs.
- ``nncf``: its defaults with asymmetric activations and without the overflow fix; ``nncf-transformer``:
  the transformer scheme with SmoothQuant at 0.6.
- ``quark-cle``: AMD Quark, uint8 activations, int8 weights per channel, cross-layer equalization;
  ``quark-adaround`` and ``quark-adaquant`` with fine-tuning behind it, and further batches and iterations
  of AdaQuant; ``quark-smooth``: SmoothQuant, products alone, without output quantization, with AdaQuant
  behind it where the name says so.
- ``ppq-equalize``: ESP-PPQ for onnxruntime, 20 rounds of equalization without a threshold, ranges by
  percentile; ``ppq-equalize-bias`` with bias correction behind it.
- ``aimet``: AIMET-ONNX with batch normalization folded; ``aimet-cle`` with cross-layer equalization and
  high-bias folding, both on the model as onnxsim simplifies it.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PRODUCTS = ["Conv", "MatMul", "Gemm"]

Calls = list[dict[str, np.ndarray]]


def _adaquant(batch: int, iterations: int) -> dict[str, Any]:
    return {"finetune": "adaquant", "batch": batch, "iterations": iterations}


SETTINGS: dict[str, dict[str, Any]] = {
    "onnxruntime": {},
    "onnxruntime-products": {"products": True},
    "nncf": {},
    "nncf-transformer": {"transformer": True, "products": True},
    "quark-cle": {},
    "quark-adaround": {"finetune": "adaround", "batch": 16, "iterations": 1000},
    "quark-adaquant": _adaquant(8, 300),
    "quark-adaquant-b4-i200": _adaquant(4, 200),
    "quark-adaquant-b2-i300": _adaquant(2, 300),
    "quark-smooth": {"products": True, "alpha": 0.5},
    "quark-smooth-60": {"products": True, "alpha": 0.6},
    "quark-smooth-adaquant": {"products": True, "alpha": 0.5, **_adaquant(8, 300)},
    "ppq-equalize": {"rounds": 20},
    "ppq-equalize-bias": {"rounds": 20, "bias": True},
    "aimet": {},
    "aimet-cle": {"equalize": True},
}
"""What is asked of a peer, by setting; ``products``: between the products it stays float."""


class Reader:
    """The calibration calls, as onnxruntime's and Quark's calibrators want them."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.left: Iterator[dict[str, np.ndarray]] = iter(calls)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Returns the next call, or ``None`` behind the last."""
        return next(self.left, None)

    def rewind(self) -> None:
        """Starts again."""
        self.left = iter(self.calls)

    reset_iter = rewind

    def __len__(self) -> int:
        return len(self.calls)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return iter(self.calls)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.calls[index]


def onnxruntime(options: dict[str, Any], source: Path, calls: Calls, out: Path) -> str:
    """Quantizes with onnxruntime's own tool."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quant_pre_process, quantize_static

    class Own(Reader, CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        pass

    given: dict[str, Any] = {}
    if "products" in options:
        given = {
            "op_types_to_quantize": PRODUCTS,
            "extra_options": {"OpTypesToExcludeOutputQuantization": PRODUCTS},
        }
    with tempfile.TemporaryDirectory() as folder:
        prepared = f"{folder}/prepared.onnx"
        quant_pre_process(str(source), prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            str(out),
            Own(calls),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            **given,
        )
    return f"onnxruntime {onnxruntime.__version__}"


def nncf(options: dict[str, Any], source: Path, calls: Calls, out: Path) -> str:
    """Quantizes with NNCF."""
    import nncf
    import onnx

    advanced = nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.DISABLE,
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=0.6),
    )
    result = nncf.quantize(
        onnx.load(str(source)),
        nncf.Dataset(calls),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER if "transformer" in options else None,
        advanced_parameters=advanced,
        subset_size=len(calls),
    )
    onnx.save(result, str(out))
    return f"NNCF {nncf.__version__}"


def quark(options: dict[str, Any], source: Path, calls: Calls, out: Path) -> str:
    """Quantizes with AMD Quark."""
    import quark
    from onnxruntime.quantization.calibrate import CalibrationMethod
    from onnxruntime.quantization.quant_utils import QuantType
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config import Config, QuantizationConfig

    extra: dict[str, Any] = {"ActivationSymmetric": False, "WeightSymmetric": True}
    algorithm, smooth = options.get("finetune"), "alpha" in options
    if algorithm:
        extra["FastFinetune"] = {
            "DataSize": len(calls),
            "BatchSize": options["batch"],
            "NumIterations": options["iterations"],
            "LearningRate": 1e-5 if algorithm == "adaquant" else 0.1,
            "OptimAlgorithm": algorithm,
            "OptimDevice": "cpu",
            "InferDevice": "cpu",
            "EarlyStop": True,
            "UpdateBias": algorithm == "adaquant",
        }
    if smooth:
        extra |= {"SmoothAlpha": options["alpha"], "OpTypesToExcludeOutputQuantization": PRODUCTS}
    settings = QuantizationConfig(
        calibrate_method=CalibrationMethod.MinMax,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        include_cle=not smooth,
        include_sq=smooth,
        include_fast_ft=algorithm is not None,
        op_types_to_quantize=PRODUCTS if smooth else [],
        print_summary=False,
        extra_options=extra,
    )
    ModelQuantizer(Config(global_quant_config=settings)).quantize_model(str(source), str(out), Reader(calls))
    return f"Quark {quark.__version__}"


def ppq(options: dict[str, Any], source: Path, calls: Calls, out: Path) -> str:
    """Quantizes with ESP-PPQ, and repairs what makes its file invalid.

    The file has the shape of the traced call in its inputs and outputs, gives the outputs in another order,
    and keeps an attribute of Reshape that its operator set does not know.
    """
    from importlib.metadata import version

    import onnx
    import torch
    from esp_ppq.api import QuantizationSettingFactory, export_ppq_graph, quantize_onnx_model
    from esp_ppq.core import TargetPlatform

    setting = QuantizationSettingFactory.default_setting()
    setting.equalization = True
    setting.equalization_setting.iterations = options["rounds"]
    setting.equalization_setting.value_threshold = 0.0
    setting.quantize_activation_setting.calib_algorithm = "percentile"
    setting.bias_correct = "bias" in options
    original = onnx.load(str(source))
    (name,) = (value.name for value in original.graph.input)
    batches = [torch.from_numpy(call[name]) for call in calls]
    graph = quantize_onnx_model(
        onnx_import_file=str(source),
        calib_dataloader=batches,
        calib_steps=len(batches),
        input_shape=list(batches[0].shape),
        setting=setting,
        collate_fn=lambda batch: batch,
        platform=TargetPlatform.ONNXRUNTIME,
        device="cpu",
    )
    export_ppq_graph(graph, TargetPlatform.ONNXRUNTIME, str(out))
    model = onnx.load(str(out))
    by_name = {value.name: value for value in (*original.graph.input, *original.graph.output)}
    for field in (model.graph.input, model.graph.output):
        for value in field:
            value.CopyFrom(by_name[value.name])
    outputs = [value.name for value in original.graph.output]
    ordered = sorted(model.graph.output, key=lambda value: outputs.index(value.name))
    del model.graph.output[:]
    model.graph.output.extend(ordered)
    del model.graph.value_info[:]
    if model.opset_import[0].version < 14:
        for node in model.graph.node:
            kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)
    onnx.save(model, str(out))
    return f"ESP-PPQ {version('esp-ppq')}"


def aimet(options: dict[str, Any], source: Path, calls: Calls, out: Path) -> str:
    """Quantizes with AIMET-ONNX."""
    from importlib.metadata import version

    import onnx
    import onnxsim
    from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight
    from aimet_onnx.cross_layer_equalization import equalize_model
    from aimet_onnx.quantsim import QuantizationSimModel

    model, _ = onnxsim.simplify(onnx.load(str(source)))
    if "equalize" in options:
        equalize_model(model)
    else:
        fold_all_batch_norms_to_weight(model)
    simulation = QuantizationSimModel(model, param_type="int8", activation_type="int8")
    simulation.compute_encodings(calls)
    onnx.save(simulation.to_onnx_qdq(prequantize_constants=True), str(out))
    return f"AIMET-ONNX {version('aimet-onnx')}"


def main() -> None:
    """Quantizes, and says what it took."""
    setting, source, data, out = sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    calls: dict[int, dict[str, np.ndarray]] = {}
    with np.load(data) as archive:
        for key in archive.files:
            name, _, index = key.rpartition("/")
            calls.setdefault(int(index), {})[name] = archive[key]
    families = {"onnxruntime": onnxruntime, "nncf": nncf, "quark": quark, "ppq": ppq, "aimet": aimet}
    family = families[setting.partition("-")[0]]
    version = family(SETTINGS[setting], source, [calls[index] for index in sorted(calls)], out)
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    print(json.dumps({"peer": version, "setting": setting, "cpu": seconds, "mb": own.ru_maxrss / 1024}))


if __name__ == "__main__":
    main()
