"""One of torchvision's classifiers with random weights, as ONNX and as weights for torch.

    python export.py NAME FOLDER

Batch normalizations take their statistics from eight pictures of random blots, layer by layer: with
statistics of their own making, deep networks give the same output for every input.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from torch import nn

from benchmarks.architectures import _declare_operators, live
from benchmarks.tflite_converters.judge import pictures


def network(name: str) -> nn.Module:
    """The network, ready for inference."""
    _declare_operators()
    from torchvision import models

    torch.manual_seed(0)
    net: nn.Module = live(getattr(models, name)(weights=None))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.reset_running_stats()
            module.momentum = None  # statistics are the mean over calls, of which there is one
    with torch.no_grad():
        net(torch.from_numpy(pictures(8)))
    return net.eval()


def main() -> None:
    """Exports one network."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    net = network(name)
    torch.save(net.state_dict(), folder / f"{name}.pt")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = torch.from_numpy(pictures(4))
        outputs = net(inputs)
        spread = float((outputs - outputs.mean(0)).std() / outputs.std())
        if spread < 0.05:
            sys.exit(f"{name} hardly depends on its input: {spread:.3f}")
        torch.onnx.export(
            net,
            (inputs[:1],),
            folder / f"{name}.onnx",
            dynamo=False,
            opset_version=17,
            input_names=["input"],
            output_names=["output"],
        )


if __name__ == "__main__":
    main()
