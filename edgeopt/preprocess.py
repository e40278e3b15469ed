"""Preprocessing of images, declared rather than coded, and on request part of the model.

An image is uint8 [height, width, channels], RGB. The steps run in this order, each only if asked for:
grayscale, resize, crop (these three are the *geometry*, on pixels), channel order, scale, mean and
standard deviation, layout (these are *numeric*, in float32). Sizes and centres are rounded as torchvision
does. ``fold`` puts the numeric steps into the model as ONNX nodes, so that an artifact takes uint8 images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import onnx_ir as ir
from pydantic import BeforeValidator, Field

from edgeopt.errors import DataError, ModelError, nearest
from edgeopt.schema import Schema


def _fraction(value: Any) -> Any:
    """Reads ``1/255`` as well as a plain number."""
    if isinstance(value, str) and "/" in value:
        above, _, below = value.partition("/")
        try:
            return float(above) / float(below)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"{value!r} is no number, such as 1/255") from None
    return value


Number = Annotated[float, BeforeValidator(_fraction)]
Channels = Annotated[
    tuple[Number, ...], BeforeValidator(lambda value: value if isinstance(value, (list, tuple)) else [value])
]


class Preprocess(Schema):
    """What happens to an image before it is the model's input.

    Attributes:
        input: The input it is for; the model's only one by default.
        grayscale: Make one channel of three (ITU-R 601 weights).
        resize: The short side's length, the ratio kept; or [height, width] exactly.
        interpolation: Of the resizing, as pillow does it.
        crop: The side of a square, or [height, width], cut from the centre.
        channels: The order that the model wants.
        scale: Multiplies pixels; 1/255 brings them to 0..1. ``mean`` and ``std`` are on this scale.
        mean: Subtracted, one for all channels or one each.
        std: Divides, one for all channels or one each.
        layout: NCHW or NHWC, as the model wants it.
        fold: Put the numeric steps into the model, which then takes uint8 NHWC.
    """

    input: str | None = None
    grayscale: bool = False
    resize: int | tuple[int, int] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    crop: int | tuple[int, int] | None = None
    channels: Literal["RGB", "BGR"] = "RGB"
    scale: Number = Field(default=1 / 255)
    mean: Channels = ()
    std: Channels = ()
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    fold: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of everything it says."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Runs all steps; with ``fold`` only the geometry, since the model does the rest.

        Args:
            image: uint8 [height, width, channels] or [height, width].

        Returns:
            float32 [channels, height, width] or, as the layout says, [height, width, channels]; with
            ``fold`` uint8 [height, width, channels].

        Raises:
            DataError: The array is no such image, or smaller than the crop.
        """
        pixels = self.geometry(image)
        return pixels if self.fold else self.numeric(pixels)

    def geometry(self, image: np.ndarray) -> np.ndarray:
        """Runs the steps on pixels: uint8 [h, w, channels] in and out."""
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise DataError(
                f"preprocessing needs uint8 images [height, width, channels], not {image.dtype} "
                f"of shape {list(image.shape)}"
            )
        if image.ndim == 2:
            image = image[..., None]
        if self.grayscale and image.shape[-1] == 3:
            # ITU-R 601-2, as pillow's mode L rounds it
            image = _pillow(image, "L")
        if self.resize is not None:
            image = self._resized(image)
        if self.crop is not None:
            height, width = (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
            if image.shape[0] < height or image.shape[1] < width:
                raise DataError(
                    f"the image of {image.shape[0]} x {image.shape[1]} is smaller than the crop "
                    f"of {height} x {width}",
                    hint="resize first",
                )
            top, left = round((image.shape[0] - height) / 2), round((image.shape[1] - width) / 2)
            image = image[top : top + height, left : left + width]
        return np.ascontiguousarray(image)

    def numeric(self, pixels: np.ndarray) -> np.ndarray:
        """Runs the numeric steps: uint8 [..., h, w, channels] to float32 in the layout asked for."""
        channels = pixels.shape[-1]
        if self.channels == "BGR" and channels == 3:
            pixels = pixels[..., ::-1]
        values = pixels.astype(np.float32)
        if self.scale != 1:
            values = values * np.float32(self.scale)
        if self.mean:
            values = values - self._per_channel(self.mean, channels, "mean")
        if self.std:
            values = values / self._per_channel(self.std, channels, "std")
        if self.layout == "NCHW":
            values = np.moveaxis(values, -1, -3)
        return np.ascontiguousarray(values)

    def _per_channel(self, values: Sequence[float], channels: int, name: str) -> np.ndarray:
        if len(values) not in (1, channels):
            raise DataError(
                f"preprocess.{name} has {len(values)} values and the image has {channels} channels"
            )
        return np.asarray(values, np.float32)

    def _resized(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        if isinstance(self.resize, int):
            short = min(height, width)
            height, width = height * self.resize // short, width * self.resize // short
        elif self.resize is not None:
            height, width = self.resize
        if (height, width) == image.shape[:2]:
            return image
        from PIL import Image

        method = Image.Resampling[self.interpolation.upper()]
        squeezed = image[..., 0] if image.shape[-1] == 1 else image
        resized = np.asarray(Image.fromarray(squeezed).resize((width, height), method))
        return resized[..., None] if resized.ndim == 2 else resized


def fold(model: ir.Model, preprocess: Preprocess) -> ir.Model:
    """Puts the numeric steps of preprocessing in front of a model's input.

    The input keeps its name; it becomes uint8 [batch, height, width, channels].

    Args:
        model: The model; it is not changed.
        preprocess: The preprocessing; its geometry stays outside.

    Returns:
        A new model, to be fed with what ``Preprocess.geometry`` returns.

    Raises:
        ModelError: The model has no such input, or it is no image of float32.
    """
    model = model.clone()
    graph = model.graph
    inputs = {value.name or "": value for value in graph.inputs if not value.is_initializer()}
    name = preprocess.input or (next(iter(inputs)) if len(inputs) == 1 else None)
    if name is None:
        raise ModelError(
            f"the model has {len(inputs)} inputs, and preprocessing does not say which one it is for",
            hint="preprocess.input: " + next(iter(inputs), ""),
        )
    if name not in inputs:
        raise ModelError(f"the model has no input {name!r}", nearest=nearest(name, inputs))
    inner = inputs[name]
    if inner.shape is None or len(inner.shape) != 4 or inner.dtype != ir.DataType.FLOAT:
        raise ModelError(
            f"preprocessing can be folded into a float32 input of rank 4, and {name!r} is "
            f"{inner.dtype} of shape {inner.shape}"
        )
    shape = ir.Shape(list(inner.shape))
    dims = list(shape)
    channel_axis = 1 if preprocess.layout == "NCHW" else 3
    outer = [dims[0], dims[2], dims[3], dims[1]] if preprocess.layout == "NCHW" else dims
    channels = dims[channel_axis]
    image = ir.Value(name=name, type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape(outer))
    nodes: list[ir.Node] = []

    def constant(suffix: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array, name=f"{name}_preprocess_{suffix}")
        value = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
        graph.register_initializer(value)
        return value

    def add(op_type: str, *operands: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(op_type, list(operands), attributes, name=f"{name}_preprocess_{op_type}_{len(nodes)}")
        nodes.append(node)
        node.outputs[0].name = f"{node.name}_out"
        return node.outputs[0]

    value = image
    if preprocess.channels == "BGR" and channels == 3:
        value = add("Gather", value, constant("channels", np.array([2, 1, 0], np.int64)), axis=3)
    value = add("Cast", value, to=ir.DataType.FLOAT.value)
    if preprocess.scale != 1:
        value = add("Mul", value, constant("scale", np.array(preprocess.scale, np.float32)))
    if preprocess.mean:
        value = add("Sub", value, constant("mean", np.asarray(preprocess.mean, np.float32)))
    if preprocess.std:
        value = add("Div", value, constant("std", np.asarray(preprocess.std, np.float32)))
    if preprocess.layout == "NCHW":
        value = add("Transpose", value, perm=[0, 3, 1, 2])

    value.shape, value.type = ir.Shape(dims), inner.type
    position = list(graph.inputs).index(inner)
    ir.convenience.replace_all_uses_with(inner, value, replace_graph_outputs=True)
    graph.inputs[position] = image
    first = next(iter(graph), None)
    if first is None:
        graph.extend(nodes)
    else:
        graph.insert_before(first, nodes)
    return model


def _pillow(image: np.ndarray, mode: str) -> np.ndarray:
    from PIL import Image

    converted = np.asarray(Image.fromarray(image).convert(mode))
    return converted[..., None] if converted.ndim == 2 else converted
