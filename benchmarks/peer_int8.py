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
  ``quark-adaround`` and ``quark-adaquant`` with fine-tuning behind it; ``quark-smooth``: SmoothQuant at 0.5,
  products alone, without output quantization.
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


class Reader:
    """The calibration calls, as onnxruntime's and Quark's calibrators want them."""

    def __init__(self, calls: list[dict[str, np.ndarray]]) -> None:
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


def onnxruntime(setting: str, source: Path, calls: list[dict[str, np.ndarray]], out: Path) -> str:
    """Quantizes with onnxruntime's own tool."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quant_pre_process, quantize_static

    class Own(Reader, CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        pass

    options: dict[str, Any] = {}
    if setting == "onnxruntime-products":
        options = {
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
            **options,
        )
    return f"onnxruntime {onnxruntime.__version__}"


def nncf(setting: str, source: Path, calls: list[dict[str, np.ndarray]], out: Path) -> str:
    """Quantizes with NNCF."""
    import nncf
    import onnx

    advanced = nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.DISABLE,
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=0.6),
    )
    transformer = setting == "nncf-transformer"
    result = nncf.quantize(
        onnx.load(str(source)),
        nncf.Dataset(calls),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        advanced_parameters=advanced,
        subset_size=len(calls),
    )
    onnx.save(result, str(out))
    return f"NNCF {nncf.__version__}"


def quark(setting: str, source: Path, calls: list[dict[str, np.ndarray]], out: Path) -> str:
    """Quantizes with AMD Quark."""
    import quark
    from onnxruntime.quantization.calibrate import CalibrationMethod
    from onnxruntime.quantization.quant_utils import QuantType
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config import Config, QuantizationConfig

    extra: dict[str, Any] = {"ActivationSymmetric": False, "WeightSymmetric": True}
    algorithm = setting.removeprefix("quark-")
    fine = algorithm in ("adaround", "adaquant")
    if fine:
        extra["FastFinetune"] = {
            "DataSize": len(calls),
            "BatchSize": 8,
            "NumIterations": 300 if algorithm == "adaquant" else 1000,
            "LearningRate": 1e-5 if algorithm == "adaquant" else 0.1,
            "OptimAlgorithm": algorithm,
            "OptimDevice": "cpu",
            "InferDevice": "cpu",
            "EarlyStop": True,
            "UpdateBias": algorithm == "adaquant",
        }
    smooth = algorithm == "smooth"
    if smooth:
        extra |= {"SmoothAlpha": 0.5, "OpTypesToExcludeOutputQuantization": PRODUCTS}
    settings = QuantizationConfig(
        calibrate_method=CalibrationMethod.MinMax,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        include_cle=not smooth,
        include_sq=smooth,
        include_fast_ft=fine,
        op_types_to_quantize=PRODUCTS if smooth else [],
        print_summary=False,
        extra_options=extra,
    )
    ModelQuantizer(Config(global_quant_config=settings)).quantize_model(str(source), str(out), Reader(calls))
    return f"Quark {quark.__version__}"


def main() -> None:
    """Quantizes, and says what it took."""
    setting, source, data, out = sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    calls: dict[int, dict[str, np.ndarray]] = {}
    with np.load(data) as archive:
        for key in archive.files:
            name, _, index = key.rpartition("/")
            calls.setdefault(int(index), {})[name] = archive[key]
    family = {"onnxruntime": onnxruntime, "nncf": nncf, "quark": quark}[setting.partition("-")[0]]
    version = family(setting, source, [calls[index] for index in sorted(calls)], out)
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    print(json.dumps({"peer": version, "setting": setting, "cpu": seconds, "mb": own.ru_maxrss / 1024}))


if __name__ == "__main__":
    main()
