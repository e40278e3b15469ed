from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.errors import DataError, ModelError
from edgeopt.graph.execute import Executor
from edgeopt.preprocess import Preprocess, fold


def image_model(layout: str) -> ir.Model:
    dims = ["batch", 3, 5, 6] if layout == "NCHW" else ["batch", 5, 6, 3]
    text = f"""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[{", ".join(map(str, dims))}] image) => (float[{", ".join(map(str, dims))}] out)
        {{ out = Relu (image) }}
    """
    return ir.from_onnx_text(text)


@settings(max_examples=25, deadline=None)
@given(
    layout=st.sampled_from(["NCHW", "NHWC"]),
    channels=st.sampled_from(["RGB", "BGR"]),
    scale=st.sampled_from([1 / 255, 1.0, 0.5]),
    mean=st.sampled_from([(), (0.5,), (0.485, 0.456, 0.406)]),
    std=st.sampled_from([(), (0.5,), (0.229, 0.224, 0.225)]),
)
def test_folding_equals_the_numpy_path(layout, channels, scale, mean, std) -> None:
    preprocess = Preprocess(layout=layout, channels=channels, scale=scale, mean=mean, std=std)
    model = image_model(layout)
    folded = fold(model, preprocess)
    assert len(model.graph) == 1, "the model given is not changed"
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3)).astype(np.uint8)
    apart = Executor(model).run({"image": np.stack([preprocess.apply(image) for image in images])})
    joined = Executor(folded).run({"image": images})
    np.testing.assert_allclose(joined["out"], apart["out"], rtol=1e-6, atol=1e-6)


def test_a_folded_input_keeps_its_name_and_takes_uint8() -> None:
    folded = fold(image_model("NCHW"), Preprocess())
    value = folded.graph.inputs[0]
    assert value.name == "image" and value.dtype == ir.DataType.UINT8
    assert [str(dim) for dim in value.shape or ()] == ["batch", "5", "6", "3"]


def test_with_fold_data_stay_uint8() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    preprocess = Preprocess(crop=(5, 6), mean=(0.5,), fold=True)
    assert preprocess.apply(image).dtype == np.uint8
    np.testing.assert_array_equal(preprocess.apply(image), image[2:7, 3:9])


def test_folding_needs_a_float_image_input() -> None:
    with pytest.raises(ModelError, match="no input 'picture'"):
        fold(image_model("NCHW"), Preprocess(input="picture"))
    text = '<ir_version: 8, opset_import: ["" : 17]> net (int64[3] ids) => (int64[3] out) {out = Abs(ids)}'
    with pytest.raises(ModelError, match="float32 input of rank 4"):
        fold(ir.from_onnx_text(text), Preprocess())


def test_numbers_are_those_of_the_usual_formula() -> None:
    image = np.random.default_rng(1).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = ((image / 255 - mean) / std).transpose(2, 0, 1)
    found = Preprocess(mean=mean, std=std).apply(image)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_resize_keeps_the_ratio_by_the_short_side_or_not() -> None:
    image = np.zeros((10, 20, 3), np.uint8)
    assert Preprocess(resize=5).geometry(image).shape == (5, 10, 3)
    assert Preprocess(resize=(7, 9)).geometry(image).shape == (7, 9, 3)
    assert Preprocess(resize=8, crop=8).apply(image).shape == (3, 8, 8)
    assert Preprocess(grayscale=True).apply(image).shape == (1, 10, 20)


def test_a_fraction_is_read_as_one() -> None:
    assert Preprocess.model_validate({"scale": "1/255"}).scale == 1 / 255
    with pytest.raises(ValueError, match="is no number"):
        Preprocess.model_validate({"scale": "1/x"})


def test_errors_are_sentences() -> None:
    with pytest.raises(DataError, match="smaller than the crop of 8 x 8"):
        Preprocess(crop=8).apply(np.zeros((4, 9, 3), np.uint8))
    with pytest.raises(DataError, match="needs uint8 images"):
        Preprocess().apply(np.zeros((4, 9, 3), np.float32))
    with pytest.raises(DataError, match=r"preprocess\.mean has 2 values and the image has 3 channels"):
        Preprocess(mean=(1.0, 2.0)).apply(np.zeros((4, 9, 3), np.uint8))
