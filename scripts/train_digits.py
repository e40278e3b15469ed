"""Trains the built-in example: a depthwise-separable network on scikit-learn's handwritten digits.

    python scripts/train_digits.py edgeopt/example             trains, exports and splits the data
    python scripts/train_digits.py edgeopt/example --measure   what naive quantization costs it

It needs torch, onnx and scikit-learn. Training took 10 CPU seconds (torch 2.13, scikit-learn 1.9), twice
with the same bytes. The 1797 samples are shuffled
once and split into 1000 for training, 200 for calibration and 597 for evaluation, which nothing in
training ever sees.

The network is small and narrow, and some of its depthwise channels die in training, as they do in
MobileNets: their batch statistics have next to no variance, so folding the normalization makes their
weights hundreds of times larger than those of their neighbours. One scale per tensor then
leaves the living channels a few integers each; one scale per channel does not mind. The settings
were chosen from a random search so that this shows clearly, and accuracy stays high. Measured with
``--measure`` (onnxruntime 1.32, its own static quantization of 200 samples, x86-64), on 597 samples:

    float                         97.15 %
    int8, min-max, per tensor     80.07 %
    int8, min-max, per channel    97.15 %
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

WIDTH = 12
BLOCKS = 6
LEARNING_RATE = 0.2
WEIGHT_DECAY = 5e-4
NOISE = 0.05
EPOCHS = 20
BATCH = 50
SEED = 0


def separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A depthwise 3x3 and a pointwise convolution, each normalized and rectified."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Digits(nn.Module):
    """Images [batch, 1, 8, 8] float32 in 0..1 to logits [batch, 10] float32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()
        )
        widths = [WIDTH] + [2 * WIDTH] * BLOCKS
        self.blocks = nn.Sequential(
            *(separable(widths[i], widths[i + 1], 2 if i == 0 else 1) for i in range(BLOCKS))
        )
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Computes the logits."""
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


def split() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns images [n, 1, 8, 8] float32 in 0..1 and labels [n] int64 of the three parts."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.RandomState(0).permutation(len(digits.target))
    images = (digits.images[order, None] / 16).astype(np.float32)
    labels = digits.target[order].astype(np.int64)
    bounds = {"training": (0, 1000), "calibration": (1000, 1200), "evaluation": (1200, len(labels))}
    return {part: (images[start:end], labels[start:end]) for part, (start, end) in bounds.items()}


def train(images: np.ndarray, labels: np.ndarray) -> Digits:
    """Trains with momentum on a one-cycle schedule, with small shifts and noise."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    shifts = np.random.RandomState(SEED)
    model = Digits()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=EPOCHS * len(y) // BATCH
    )
    for _ in range(EPOCHS):
        order = torch.randperm(len(y))
        for start in range(0, len(y), BATCH):
            chosen = order[start : start + BATCH]
            down, right = (int(shift) for shift in shifts.randint(-1, 2, 2))
            batch = torch.roll(x[chosen], (down, right), (2, 3))
            batch = batch + NOISE * torch.randn_like(batch)
            loss = functional.cross_entropy(model(batch), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def export(model: Digits, path: Path) -> None:
    """Writes opset 17 with a dynamic batch; the normalizations stay nodes of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(2, 1, 8, 8),),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )


def accuracy(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 accuracy in percent, every node computed as it stands in the graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return 100 * float((session.run(None, {"image": images})[0].argmax(1) == labels).mean())


def measure(folder: Path) -> None:
    """Prints the accuracy of the float model and of onnxruntime's own static quantization of it."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    calibration, evaluation = np.load(folder / "calibration.npz"), np.load(folder / "evaluation.npz")

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.samples = iter(calibration["image"])

        def get_next(self) -> dict[str, np.ndarray] | None:
            sample = next(self.samples, None)
            return None if sample is None else {"image": sample[None]}

    def report(what: str, path: Path) -> None:
        print(f"{what:28} {accuracy(path, evaluation['image'], evaluation['label']):6.2f} %")

    report("float", folder / "model.onnx")
    with tempfile.TemporaryDirectory() as scratch:
        folded, quantized = Path(scratch) / "folded.onnx", Path(scratch) / "quantized.onnx"
        quant_pre_process(folder / "model.onnx", folded)
        for per_channel in (False, True):
            quantize_static(
                folded,
                quantized,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=per_channel,
                weight_type=QuantType.QInt8,
            )
            report(f"int8, min-max, per {'channel' if per_channel else 'tensor'}", quantized)


def main() -> None:
    """Trains and writes, or measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--measure", action="store_true", help="only measure what is in the folder")
    arguments = parser.parse_args()
    if not arguments.measure:
        parts = split()
        export(train(*parts["training"]), arguments.folder / "model.onnx")
        for part in ("calibration", "evaluation"):
            images, labels = parts[part]
            np.savez_compressed(arguments.folder / f"{part}.npz", image=images, label=labels)
    measure(arguments.folder)


if __name__ == "__main__":
    main()
