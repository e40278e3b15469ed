"""Static int8 with calibration data and an accuracy goal: edgeopt beside Olive, whole processes in turn.

``EDGEOPT_ZOO=... python -m benchmarks.beside_olive --olive PYTHON [--bare PYTHON] [--rounds 2]``

Olive's Python is one of an environment with ``olive-ai onnxruntime onnx requests "pydantic<2.13"``: without
``requests`` Olive 0.13 does not start, with a newer pydantic its evaluators cannot be configured. The bare
one, of an environment with edgeopt alone, is only weighed.

Both take the keyword-spotting network of the zoo, calibrate on 200 clips and judge on 800, with a goal
that can be reached (at most 1 pp of top-1 lost) and one that cannot (top-1 must rise by 5 pp for Olive; at
most 1 KiB for edgeopt, which refuses to call a rise a budget on the drop). Every run is a process of its
own with an empty cache; CPU seconds and peak memory are those that the kernel counted for it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.zoo import kws, zoo
from edgeopt.artifact import open_artifact

HEADER = (
    "tool, goal",
    "CPU s",
    "peak MB",
    "bytes before, after",
    "top-1 % before, after",
    "lines to write",
    "exit code",
    "verdict on the screen",
)

MODEL = "models/kws_dscnn_mlperf_tiny.onnx"

SCRIPT = """\
import numpy as np
import torch
from olive.data.registry import Registry


class Clips(torch.utils.data.Dataset):
    def __init__(self, file):
        arrays = np.load(file)
        self.features, self.label = arrays["features"], arrays["label"]
    def __len__(self):
        return len(self.label)
    def __getitem__(self, index):
        return {"features": self.features[index]}, int(self.label[index])


@Registry.register_dataset()
def clips(data_dir=None, **_):
    return Clips(data_dir)


@Registry.register_post_process()
def classes(outputs, **_):
    return torch.argmax(outputs["logits"] if isinstance(outputs, dict) else outputs, dim=-1)
"""


def main() -> None:
    """Runs both, turn by turn, and prints a Markdown table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--olive", required=True, help="the Python of an environment with Olive")
    parser.add_argument("--bare", default=sys.executable, help="the Python of one with edgeopt alone")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        save(folder / "data/calibration.npz", kws.calibrate())
        save(folder / "data/evaluation.npz", kws.evaluate())
        (folder / "user_script.py").write_text(SCRIPT)
        runs: dict[str, list[dict[str, Any]]] = {}
        for turn in range(options.rounds):
            for goal in ("reachable", "unreachable"):
                for tool in (edgeopt, olive):
                    place = folder / f"{tool.__name__}-{goal}-{turn}"
                    place.mkdir()
                    found = tool(options.olive, folder, place, goal == "reachable")
                    runs.setdefault(f"{tool.__name__}, goal {goal}", []).append(found)
        weights = {"edgeopt": installed(options.bare), "olive": installed(options.olive)}
    print("| " + " | ".join(HEADER) + " |")
    print("|" + "---|" * len(HEADER))
    for title, several in runs.items():
        print(f"| {title} | {row(several)} |")
    for tool, (count, size) in weights.items():
        print(f"\n{tool}: {count} packages, {size / 1e6:.0f} MB installed")


def edgeopt(_: str, folder: Path, place: Path, reachable: bool) -> dict[str, Any]:
    """One command."""
    goal = ["--max-drop", "1pp"] if reachable else ["--max-size", "1KiB"]
    command = [sys.executable, "-m", "edgeopt", "compile", str(zoo() / MODEL), "--device", "generic-x86-64"]
    command += ["--data", str(folder / "data"), "--metric", "top1", "--scheme", "static-int8", *goal]
    command += ["-o", str(place / "out")]
    found = process(command, place, {"EDGEOPT_CACHE": str(place / "cache")})
    said = [
        line
        for line in found["text"].splitlines()
        if line.startswith(("every", "the budget", "missed", "kept"))
    ]
    found["verdict"] = said[-1].partition(":" if "missed" not in said[-1] else ": /")[0] if said else "none"
    found["lines"] = "1 command"
    model = place / "out/model.onnx"
    if model.is_file():
        found |= {"size": model.stat().st_size, "accuracy": accuracy(place / "out")}
    return found


def olive(python: str, folder: Path, place: Path, reachable: bool) -> dict[str, Any]:
    """A JSON file of one workflow, and a script of data sets and post-processing."""
    workflow = {
        "input_model": {"type": "OnnxModel", "model_path": str(zoo() / MODEL)},
        "data_configs": [
            {
                "name": part,
                "user_script": str(folder / "user_script.py"),
                "load_dataset_config": {"type": "clips", "data_dir": str(folder / f"data/{part}.npz")},
                "post_process_data_config": {"type": "classes"},
                "dataloader_config": {"batch_size": 1},
            }
            for part in ("calibration", "evaluation")
        ],
        "evaluators": {
            "judge": {
                "metrics": [
                    {
                        "name": "accuracy",
                        "type": "accuracy",
                        "data_config": "evaluation",
                        "sub_types": [
                            {
                                "name": "accuracy_score",
                                "metric_config": {"task": "multiclass", "num_classes": 12},
                                "goal": {"type": "max-degradation", "value": 0.01}
                                if reachable
                                else {"type": "min-improvement", "value": 0.05},
                            }
                        ],
                    }
                ]
            }
        },
        "passes": {
            "quantize": {
                "type": "OnnxStaticQuantization",
                "data_config": "calibration",
                "per_channel": True,
                "quant_format": "QDQ",
            }
        },
        "evaluator": "judge",
        "evaluate_input_model": True,
        "output_dir": str(place / "out"),
        "cache_dir": str(place / "cache"),
        "log_severity_level": 3,
    }
    text = json.dumps(workflow, indent=2)
    (place / "workflow.json").write_text(text)
    command = [python, "-m", "olive", "run", "--config", str(place / "workflow.json")]
    found = process(command, place, {"OLIVE_DISABLE_TELEMETRY": "1"})
    found["lines"] = f"{len(text.splitlines())} of JSON, {len(SCRIPT.strip().splitlines())} of Python"
    found["verdict"] = "none"
    models = sorted(place.glob("out/**/model.onnx"))
    if models:
        found |= {"size": models[0].stat().st_size, "accuracy": top1(models[0])}
    return found


def process(command: list[str], place: Path, extra: dict[str, str]) -> dict[str, Any]:
    """Runs a command and returns what the kernel counted for it and what it said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **extra}
    log = place / "log.txt"
    started = time.monotonic()
    with log.open("wb") as stream:
        child = subprocess.Popen(command, cwd=place, env=environment, stdout=stream, stderr=stream)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return {
        "code": child.returncode,
        "cpu": usage.ru_utime + usage.ru_stime,
        "mb": usage.ru_maxrss / 1024,
        "wall": time.monotonic() - started,
        "text": log.read_text(errors="replace"),
    }


def top1(model: Path) -> float:
    """The accuracy of a model file in onnxruntime, in percent."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    data = kws.evaluate()
    scores = session.run(None, {"features": data["features"]})[0]
    return 100 * float((np.asarray(scores).argmax(1) == data["label"]).mean())


def accuracy(folder: Path) -> float:
    """The accuracy of an artifact, in percent."""
    data = kws.evaluate()
    with open_artifact(folder).open()["model"] as session:
        scores = session.run({"features": data["features"]})["logits"]
    return 100 * float((scores.argmax(1) == data["label"]).mean())


def row(runs: list[dict[str, Any]]) -> str:
    """The figures of several runs: the least CPU time and memory, since other work only adds to them."""
    last = runs[-1]
    original = zoo() / MODEL
    cells = [f"{min(run['cpu'] for run in runs):.1f}", f"{min(run['mb'] for run in runs):.0f}"]
    if "size" in last:
        cells.append(f"{original.stat().st_size}, {last['size']}")
        cells.append(f"{top1(original):.2f}, {last['accuracy']:.2f}")
    else:
        cells += ["no model", ""]
    cells += [last["lines"], ", ".join(sorted({str(run["code"]) for run in runs})), last["verdict"]]
    return " | ".join(cells)


def installed(python: str) -> tuple[int, int]:
    """The number of packages in a Python's environment, and the bytes of its site-packages."""
    code = (
        "import importlib.metadata, sysconfig\n"
        "print(len(list(importlib.metadata.distributions())), sysconfig.get_paths()['purelib'])"
    )
    ran = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    count, folder = ran.stdout.split()
    files = (path for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink())
    return int(count), sum(path.stat().st_size for path in files)


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays as an ``.npz``."""
    np.savez(path, **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
