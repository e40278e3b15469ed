"""Every model of the zoo with its data, metric and harness, and a check of its float accuracy.

``python -m benchmarks.zoo.models [NAME]...`` measures the float models and prints a table.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.zoo import model_file
from edgeopt import metrics
from edgeopt.data import Data, DataSpec, open_data
from edgeopt.evaluate import judge
from edgeopt.harness import SINGLE, Harness
from edgeopt.runners.host import OnnxSession
from edgeopt.session import Session

CIFAR = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
CIFAR_CCT = {"scale": 1, "mean": [125.3, 123.0, 113.9], "std": [63.0, 62.1, 66.7]}
YOLO = {"resize": [352, 352], "channels": "BGR"}
FACE = {"resize": [240, 320], "scale": 1, "mean": 127, "std": 128}


@dataclass(frozen=True)
class Entry:
    """A model: its files by part, the module with its data, and how it is judged."""

    parts: dict[str, str]
    data: str
    metric: str | None
    preprocess: dict[str, Any] | None = None
    harness: bool = False

    def spec(self) -> DataSpec:
        """What a recipe says under ``data``."""
        module = f"benchmarks.zoo.{self.data}"
        metric = f"{module}{self.metric}" if self.metric and self.metric.startswith(":") else self.metric
        return DataSpec.model_validate(
            {
                "calibrate": f"{module}:calibrate",
                "evaluate": f"{module}:evaluate",
                "preprocess": self.preprocess,
                "metric": metric,
                "harness": f"{module}:run" if self.harness else None,
            }
        )

    def files(self) -> dict[str, Path]:
        """The file of every part."""
        return {part: model_file(name) for part, name in self.parts.items()}

    def sessions(self, threads: int = 1) -> dict[str, Session]:
        """The float model, opened."""
        return {part: OnnxSession(path, threads=threads) for part, path in self.files().items()}


def _one(file: str) -> dict[str, str]:
    return {SINGLE: file}


ENTRIES = {
    "tiny_darknet_imagenet": Entry(_one("tiny_darknet_imagenet"), "imagenet", "top1", {"crop": 224}),
    "resnet20_cifar10": Entry(_one("resnet20_cifar10"), "cifar", "top1", CIFAR),
    "resnet20_cifar10.dynamo": Entry(
        _one("resnet20_cifar10.dynamo_bnfolded_opset18"), "cifar", "top1", CIFAR
    ),
    "resnet56_cifar10": Entry(_one("resnet56_cifar10"), "cifar", "top1", CIFAR),
    "mobilenetv3_cifar10": Entry(_one("mobilenetv3_cifar10"), "cifar", "top1", CIFAR),
    "cct_vit_cifar10": Entry(_one("cct_vit_cifar10"), "cifar", "top1", CIFAR_CCT),
    "kws_dscnn_mlperf_tiny": Entry(_one("kws_dscnn_mlperf_tiny"), "kws", "top1"),
    "kws_dscnn_rescaled": Entry(_one("kws_dscnn_rescaled"), "kws", "top1"),
    "agnews_text_transformer": Entry(_one("agnews_text_transformer"), "agnews", "top1"),
    "g2p_gru": Entry(
        {"encoder": "g2p_gru_encoder", "decoder": "g2p_gru_decoder_step"},
        "g2p",
        ":word_accuracy",
        harness=True,
    ),
    "dncnn_s_25": Entry(_one("dncnn_s_25"), "denoise", ":psnr"),
    "yolo_fastestv2_coco": Entry(_one("yolo_fastestv2_coco"), "yolo", ":map50", YOLO),
    "yolo_fastestv2_rescaled": Entry(_one("yolo_fastestv2_rescaled"), "yolo", ":map50", YOLO),
    "dtln": Entry(
        {"model_1": "dtln_model_1", "model_2": "dtln_model_2"},
        "dtln",
        ":si_sdr",
        harness=True,
    ),
    "face_ulf_slim_320": Entry(_one("face_ulf_slim_320"), "face", None, FACE),
    "minilm_l6_sts": Entry(_one("minilm_l6_sts"), "sts", "spearman", harness=True),
}


def open_entry(
    entry: Entry, sessions: dict[str, Session]
) -> tuple[Data, metrics.Metric | None, Harness | None]:
    """Opens the data of a model."""
    spec = entry.spec()
    metric = metrics.find(spec.metric) if spec.metric else None
    harness = Harness.load(spec.harness) if spec.harness else None
    only = next(iter(sessions.values()))
    inputs = None if harness else only.inputs
    return open_data(spec, inputs, metric, outputs=only.outputs), metric, harness


def main(names: list[str]) -> None:
    """Measures float models."""
    print(f"{'model':26} {'metric':16} {'value':>8}  {'95 % interval':20} {'n':>5} {'CPU s':>6}")
    for name, entry in ENTRIES.items():
        if names and name not in names:
            continue
        if not all(path.is_file() for path in entry.files().values()):
            print(f"{name:26} not in the zoo")
            continue
        start = time.process_time()
        sessions = entry.sessions()
        data, metric, harness = open_entry(entry, sessions)
        if data.evaluate is None:
            raise SystemExit(f"{name} has no evaluation data")
        if metric is None and entry.data == "face":
            metric = metrics.find("benchmarks.zoo.face:faces")
        found = judge(None, sessions, data.evaluate, metric, harness=harness).artifact
        seconds = time.process_time() - start
        if found is not None:
            lower, upper = found.interval or (found.value, found.value)
            print(
                f"{name:26} {found.quantity:16} {found.value:8.4f}  [{lower:.4f}, {upper:.4f}]"
                f"{'':4} {found.n:5} {seconds:6.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
