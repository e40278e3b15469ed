"""One conversion by one tool, or only the imports that it needed, as a process of its own.

    python convert.py TOOL convert MODEL.onnx WEIGHTS.pt OUT.tflite MODULES.json
    python convert.py TOOL import MODULES.json
    python convert.py TOOL measure MODEL.onnx WEIGHTS.pt OUT.tflite MODULES.json COST.json

Runs in the tool's own environment and needs nothing else. After ``convert`` MODULES.json lists the modules
that it left imported; ``import`` imports these and ends. ``measure`` imports them, then converts, and writes
the CPU seconds that this took and by how many MB the peak memory rose. So what a conversion costs is told
from what its imports cost, however lazily a tool imports.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path


def edgeopt(model: Path, weights: Path, out: Path) -> None:
    """Load, exact passes, the file."""
    from edgeopt import convert

    convert(model, out)


def edgeopt_compile(model: Path, weights: Path, out: Path) -> None:
    """The whole of ``edgeopt compile``, proofs, golden vectors and report included, from an empty cache."""
    import edgeopt
    from edgeopt.job import structure_passes
    from edgeopt.steps import Store

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outcome = edgeopt.compile(
            str(model),
            "raspberry-pi-4",
            target="tflite",
            passes=structure_passes(),
            output=folder / "artifact",
            store=Store(folder / "store"),
        )
        shutil.copy(Path(outcome.path) / "model.tflite", out)


def onnx2tf(model: Path, weights: Path, out: Path) -> None:
    """onnx2tf, its own defaults."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import onnx2tf as tool

    with tempfile.TemporaryDirectory() as name:
        tool.convert(
            input_onnx_file_path=str(model), output_folder_path=name, non_verbose=True, verbosity="error"
        )
        shutil.copy(next(Path(name).glob("*_float32.tflite")), out)


def onnx2tf_through_tensorflow(model: Path, weights: Path, out: Path) -> None:
    """onnx2tf of the days before its own writer; noise stands for the pictures that it would download."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import numpy as np
    from onnx2tf import onnx2tf as module

    noise = np.random.default_rng(0).random((20, 128, 128, 3), np.float32)
    module.download_test_image_data = lambda: noise
    onnx2tf(model, weights, out)


def litert_torch(model: Path, weights: Path, out: Path) -> None:
    """litert-torch, from the torch module itself."""
    import litert_torch as tool
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    from torchvision import models

    net = getattr(models, model.stem)(weights=None)
    net.load_state_dict(torch.load(weights))
    tool.convert(net.eval(), (torch.zeros(1, 3, 224, 224),)).export(str(out))


TOOLS = {
    "edgeopt": edgeopt,
    "edgeopt compile": edgeopt_compile,
    "onnx2tf": onnx2tf,
    "onnx2tf with TensorFlow": onnx2tf_through_tensorflow,
    "litert-torch": litert_torch,
}


def imports(modules: Path) -> None:
    """Imports the modules that are listed."""
    for name in json.loads(modules.read_text()):
        try:
            importlib.import_module(name)
        except Exception:  # a module made at run time, or one that cannot be imported by itself
            sys.modules.pop(name, None)


def spent() -> tuple[float, float]:
    """CPU seconds so far, those of ended children included, and the peak of memory in MB."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return seconds, max(own.ru_maxrss, children.ru_maxrss) / 1024


def main() -> None:
    """Converts, or imports, or measures."""
    tool, mode, *places = sys.argv[1:]
    if mode == "import":
        imports(Path(places[0]))
        return
    model, weights, out, modules = map(Path, places[:4])
    if mode == "measure":
        imports(modules)
        start = spent()
        TOOLS[tool](model, weights, out)
        seconds, megabytes = (after - before for after, before in zip(spent(), start, strict=True))
        Path(places[4]).write_text(json.dumps({"seconds": seconds, "megabytes": megabytes}))
        return
    before = set(sys.modules)
    TOOLS[tool](model, weights, out)
    # What a lazy loader has left unread was not imported, and touching it would read it.
    read = {name: module for name, module in sys.modules.items() if type(module).__name__ != "_LazyModule"}
    modules.write_text(json.dumps([name for name in read if name not in before]))


if __name__ == "__main__":
    main()
