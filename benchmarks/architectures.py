"""Networks with random but live weights, exported by both of torch's exporters.

    python -m benchmarks.architectures FOLDER [--only NAME ...]

The architectures are torchvision's, at small input sizes and without their widest layers, and a few
written here in plain torch: transformers with masks, rotary embeddings and key-value caches, recurrent
and up-sampling networks. Running statistics are drawn at random, so that every normalization does
something. A file is called ``NAME.dynamo.onnx`` or ``NAME.legacy.onnx``; what an exporter cannot write is
named with its reason. Needs torch and, for the first kind, torchvision.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Inputs = tuple[Tensor, ...]
Built = tuple[nn.Module, Inputs]


class Attention(nn.Module):
    """Multi-head attention written out, with an additive mask."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Computes one call."""
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        query, key, value = (
            layer(x).view(shape).permute(0, 2, 1, 3) for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(width // self.heads) + mask
        mixed = torch.softmax(scores, -1) @ value
        return self.out(mixed.permute(0, 2, 1, 3).reshape(batch, length, width))


class Encoder(nn.Module):
    """A sentence encoder: embeddings, masked attention, mean over the tokens that are there."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 3) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(500, width), nn.Embedding(64, width)
        self.attention = nn.ModuleList(Attention(width, heads) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
        self.wide = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(layers)
        )

    def forward(self, ids: Tensor, there: Tensor) -> Tensor:
        """Computes one call."""
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        mask = (1.0 - there[:, None, None, :].to(x.dtype)) * -1e4
        for number, (attention, wide) in enumerate(zip(self.attention, self.wide, strict=True)):
            x = self.norms[2 * number](x + attention(x, mask))
            x = self.norms[2 * number + 1](x + wide(x))
        weight = there.unsqueeze(-1).to(x.dtype)
        return functional.normalize((x * weight).sum(1) / weight.sum(1).clamp(min=1e-9))


class RMSNorm(nn.Module):
    """Root-mean-square normalization in primitives."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Computes one call."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Decoder(nn.Module):
    """One step of a decoder with rotary embeddings, gated layers and a key-value cache."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.heads, self.size, self.layers = heads, width // heads, layers
        self.words = nn.Embedding(500, width)
        names = ("query", "key", "value", "out")
        self.linear = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(width, width, bias=False) for name in names})
            for _ in range(layers)
        )
        self.gates = nn.ModuleList(nn.Linear(width, 2 * width, bias=False) for _ in range(layers))
        self.up = nn.ModuleList(nn.Linear(width, 2 * width, bias=False) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(2 * width, width, bias=False) for _ in range(layers))
        self.norms = nn.ModuleList(RMSNorm(width) for _ in range(2 * layers + 1))
        self.register_buffer("rates", 1e4 ** (-torch.arange(0, self.size, 2) / self.size))

    def rotate(self, x: Tensor, places: Tensor) -> Tensor:
        """Turns pairs of features by the angle of their place."""
        angle = places[:, None].to(x.dtype) * self.rates
        angle = torch.cat([angle, angle], -1)
        half = x.shape[-1] // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * angle.cos() + turned * angle.sin()

    def forward(self, ids: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes one call."""
        batch, length = ids.shape
        past = keys.shape[3]
        places = torch.arange(past, past + length)
        mask = torch.full((length, past + length), -1e4).triu(past + 1)
        x, new_keys, new_values = self.words(ids), [], []
        for number in range(self.layers):
            normed, layer = self.norms[2 * number](x), self.linear[number]
            query, key, value = (
                layer[name](normed).view(batch, length, self.heads, self.size).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            query, key = self.rotate(query, places), self.rotate(key, places)
            key, value = torch.cat([keys[number], key], 2), torch.cat([values[number], value], 2)
            new_keys.append(key)
            new_values.append(value)
            scores = query @ key.transpose(2, 3) / math.sqrt(self.size) + mask
            mixed = (torch.softmax(scores, -1) @ value).transpose(1, 2).reshape(batch, length, -1)
            x = x + layer["out"](mixed)
            normed = self.norms[2 * number + 1](x)
            x = x + self.down[number](functional.silu(self.gates[number](normed)) * self.up[number](normed))
        return self.norms[-1](x) @ self.words.weight.T, torch.stack(new_keys), torch.stack(new_values)


class UNet(nn.Module):
    """Down and up with skips, by bilinear resizing."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        sizes = [3, width, 2 * width, 4 * width]
        self.down = nn.ModuleList(_block(sizes[i], sizes[i + 1]) for i in range(3))
        self.up = nn.ModuleList(_block(sizes[i + 1] + sizes[i], sizes[i]) for i in (2, 1))
        self.last = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Computes one call."""
        skips = []
        for number, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if number else x)
            skips.append(x)
        for block, skip in zip(self.up, skips[1::-1], strict=True):
            x = functional.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skip], 1))
        return self.last(x)


class SuperResolution(nn.Module):
    """Residual blocks, group and instance normalization, sub-pixel convolution written out."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), norm, nn.Mish())
            for norm in (nn.GroupNorm(4, width), nn.InstanceNorm2d(width, affine=True))
        )
        self.last = nn.Conv2d(width, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Computes one call."""
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        x = self.last(x)
        batch, channels, height, width = x.shape
        x = x.view(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
        return torch.sigmoid(x.reshape(batch, channels // 4, 2 * height, 2 * width))


class Speech(nn.Module):
    """Convolutions over time, a recurrent layer in both directions, a linear head."""

    def __init__(self, recurrent: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.convolution = nn.Sequential(
            nn.Conv1d(20, 32, 3, padding=1), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 32, 3, padding=1)
        )
        self.recurrent = recurrent(32, 24, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, 30)

    def forward(self, x: Tensor) -> Tensor:
        """Computes one call."""
        x, _ = self.recurrent(self.convolution(x.transpose(1, 2)).transpose(1, 2))
        return torch.log_softmax(self.head(x), -1)


class Detector(nn.Module):
    """A head that decodes boxes on a grid and joins three scales."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([_block(3, 8, 4), _block(8, 16, 2), _block(16, 32, 2)])
        self.heads = nn.ModuleList(nn.Conv2d(width, 3 * 9, 1) for width in (8, 16, 32))

    def forward(self, x: Tensor) -> Tensor:
        """Computes one call."""
        found = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = stage(x)
            y = head(x)
            batch, _, height, width = y.shape
            y = y.view(batch, 3, 9, height, width).permute(0, 1, 3, 4, 2).sigmoid()
            rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            grid = torch.stack([columns, rows], 2).to(y.dtype)
            centre = (y[..., :2] * 2 - 0.5 + grid) * (64 // height)
            size = (y[..., 2:4] * 2) ** 2 * 8.0
            boxes = torch.cat([centre - size / 2, centre + size / 2, y[..., 4:]], -1)
            found.append(boxes.reshape(batch, -1, 9))
        return torch.cat(found, 1)


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()
    )


def _tokens(width: int = 12) -> Tensor:
    return torch.randint(0, 500, (2, width))


def _plain() -> dict[str, Callable[[], Built]]:
    def torch_encoder() -> Built:
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, activation="gelu")
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), (torch.randn(2, 10, 64),)

    there = torch.ones(2, 12, dtype=torch.int64)
    cache = torch.randn(2, 2, 4, 5, 16)
    return {
        "encoder": lambda: (Encoder(), (_tokens(), there)),
        "decoder": lambda: (Decoder(), (_tokens(3), cache, cache + 1)),
        "torch_encoder": torch_encoder,
        "unet": lambda: (UNet(), (torch.randn(1, 3, 64, 64),)),
        "super_resolution": lambda: (SuperResolution(), (torch.randn(1, 3, 24, 24),)),
        "speech_lstm": lambda: (Speech(nn.LSTM), (torch.randn(1, 30, 20),)),
        "speech_gru": lambda: (Speech(nn.GRU), (torch.randn(1, 30, 20),)),
        "detector": lambda: (Detector(), (torch.randn(1, 3, 64, 64),)),
    }


SIZES = {
    **dict.fromkeys(
        ("densenet121", "efficientnet_b0", "googlenet", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_large"),
        64,
    ),
    **dict.fromkeys(("mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50"), 64),
    **dict.fromkeys(("resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_1", "convnext_tiny"), 64),
    **dict.fromkeys(("alexnet", "vgg11_bn", "swin_t", "swin_v2_t", "vit"), 64),
    **{"inception_v3": 96, "maxvit": 64, "efficientnet_v2_s": 64, "shufflenet_v2_x0_5": 64},
    **dict.fromkeys(("deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large", "fcn_resnet50"), 64),
    **dict.fromkeys(("r3d_18", "r2plus1d_18", "mc3_18", "s3d", "mvit_v2_s"), 0),
}
"""torchvision's architectures and the side of their inputs; 0 for a film."""


def _torchvision(name: str, side: int) -> Built:
    _declare_operators()
    from torchvision import models

    image = torch.randn(1, 3, side, side) if side else torch.randn(1, 3, 16, 64, 64)
    options: dict[str, Any] = {"weights": None, "num_classes": 10}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": False}
    if name.startswith(("deeplab", "lraspp", "fcn")):
        options |= {"weights_backbone": None}
    if name == "vit":
        net: nn.Module = models.VisionTransformer(64, 16, 4, 4, 96, 192, num_classes=10)
    elif name == "maxvit":
        net = models.MaxVit((64, 64), 32, 2, [32, 64], [1, 2], 16, 0.0, num_classes=10)
    elif name == "s3d":
        net, image = models.video.s3d(weights=None, num_classes=10), torch.randn(1, 3, 16, 224, 224)
    elif name == "mvit_v2_s":
        net, image = models.video.mvit_v2_s(weights=None), torch.randn(1, 3, 16, 224, 224)
    elif not side:
        net = getattr(models.video, name)(**options)
    elif hasattr(models, name):
        net = getattr(models, name)(**options)
    else:
        net = getattr(models.segmentation, name)(**options)
    if name == "vgg11_bn":
        net.classifier = nn.Sequential(nn.Linear(512 * 4, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10))
    if name == "alexnet":
        net.classifier = nn.Sequential(nn.Dropout(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10))
    if name in ("vgg11_bn", "alexnet"):
        net.avgpool = nn.Identity()
    if name.startswith(("deeplab", "lraspp", "fcn")):
        net = _Segmentation(net)
    return net, (image,)


class _Segmentation(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        """Computes one call."""
        return self.net(x)["out"]


def _declare_operators() -> None:
    """Lets a torchvision without compiled operators be imported."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    _LIBRARIES.append(library)


_LIBRARIES: list[torch.library.Library] = []
"""A library's operators vanish with it."""


def live(net: nn.Module) -> nn.Module:
    """Draws running statistics and affine parameters at random, and sets the network to inference."""
    for module in net.modules():
        normalizes = isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm))
        if normalizes and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


def architectures() -> dict[str, Callable[[], Built]]:
    """Every network by name, with what builds it and its example inputs."""
    found = _plain()
    for name, side in SIZES.items():
        found[name] = lambda name=name, side=side: _torchvision(name, side)  # type: ignore[misc]
    return found


def export(name: str, build: Callable[[], Built], folder: Path) -> list[str]:
    """Exports one network both ways, where the file is not there yet; returns what went wrong."""
    wrong = []
    for way in ("legacy", "dynamo"):
        path = folder / f"{name}.{way}.onnx"
        if path.exists():
            continue
        torch.manual_seed(0)
        net, inputs = build()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if way == "dynamo":
                    torch.onnx.export(
                        live(net), inputs, path, dynamo=True, external_data=False, verbose=False
                    )
                else:
                    torch.onnx.export(live(net), inputs, path, dynamo=False, opset_version=17)
        except Exception as failure:  # an exporter may raise anything; the other models go on
            path.unlink(missing_ok=True)
            wrong.append(f"{name} {way}: {type(failure).__name__}: {str(failure).splitlines()[0][:150]}")
    return wrong


def main() -> None:
    """Exports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, build in architectures().items():
        if not arguments.only or name in arguments.only:
            for line in export(name, build, arguments.folder):
                print(line, flush=True)


if __name__ == "__main__":
    main()
