"""Float models: equal to onnxruntime, with no transpose that could be avoided."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from tflite_models import convert, error, feeds_of, model, node, platform

from edgeopt.errors import ModelError, RuntimeFailure, UserError
from edgeopt.graph.execute import Executor
from edgeopt.targets import make
from edgeopt.targets.tflite import Tflite
from edgeopt.targets.tflite.lower import lower

pytest.importorskip("ai_edge_litert", reason="needs the extra: pip install 'edgeopt[tflite]'")

RANDOM = np.random.default_rng(7)


def weight(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("group", [1, 2, 6])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 1, 1, 1]},
        {"strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"strides": [2, 2], "pads": [0, 0, 1, 1]},
        {"pads": [0, 2, 1, 0]},
        {"dilations": [2, 2], "pads": [2, 2, 2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 1]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    ],
)
def test_convolutions(tmp_path, group, attributes):
    conv = node("Conv", "x,w,b", "y", group=group, **attributes)
    given = model([conv], {"x": [1, 6, 9, 8]}, ["y"], {"w": weight(12, 6 // group, 3, 3), "b": weight(12)})
    assert error(given, tmp_path) < 1e-5


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        {"strides": [3, 2], "pads": [0, 1, 2, 1]},
        {"strides": [2, 2], "output_shape": [12, 13]},
        {"dilations": [2, 2]},
    ],
)
def test_transposed_convolutions(tmp_path, group, attributes):
    conv = node("ConvTranspose", "x,w,b", "y", group=group, **attributes)
    given = model([conv], {"x": [1, 4, 6, 6]}, ["y"], {"w": weight(4, 6 // group, 3, 3), "b": weight(6)})
    assert error(given, tmp_path) < 1e-5


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"strides": [2, 2], "pads": [0, 0, 1, 1]},
        {"strides": [2, 2], "ceil_mode": 1},
        {"strides": [2, 2], "pads": [1, 0, 0, 1], "ceil_mode": 1},
    ],
)
def test_pooling(tmp_path, kind, attributes):
    pool = node(kind, "x", "y", kernel_shape=[3, 3], **attributes)
    assert error(model([pool], {"x": [1, 3, 9, 10]}, ["y"]), tmp_path) < 1e-5


@pytest.mark.parametrize("attributes", [{"pads": [1, 1, 1, 1]}, {"pads": [0, 1, 2, 1], "strides": [2, 2]}])
def test_average_pooling_that_counts_its_pads(tmp_path, attributes):
    pool = node("AveragePool", "x", "y", kernel_shape=[3, 3], count_include_pad=1, **attributes)
    assert error(model([pool], {"x": [1, 3, 9, 10]}, ["y"]), tmp_path) < 1e-5


@pytest.mark.parametrize("mode", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"])
@pytest.mark.parametrize("kind", ["nearest", "linear"])
@pytest.mark.parametrize("sizes", [[1, 3, 10, 14], [1, 3, 3, 4]])
def test_resize(tmp_path, mode, kind, sizes):
    extra = {"nearest_mode": "floor"} if kind == "nearest" else {}
    resize = node("Resize", "x,,,s", "y", mode=kind, coordinate_transformation_mode=mode, **extra)
    given = model([resize], {"x": [1, 3, 5, 7]}, ["y"], {"s": np.array(sizes, np.int64)})
    assert error(given, tmp_path) < 1e-5


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_padding_modes(tmp_path, mode):
    pad = node("Pad", "x,p", "y", mode=mode)
    given = model([pad], {"x": [1, 3, 5, 7]}, ["y"], {"p": np.array([0, 0, 1, 2, 0, 0, 3, 1], np.int64)})
    assert error(given, tmp_path) == 0


def test_one_spatial_axis(tmp_path):
    nodes = [
        node("Conv", "x,w,b", "a", pads=[1, 1]),
        node("MaxPool", "a", "m", kernel_shape=[2], strides=[2]),
        node("GlobalAveragePool", "m", "y"),
    ]
    given = model(nodes, {"x": [1, 4, 16]}, ["y"], {"w": weight(8, 4, 3), "b": weight(8)})
    assert error(given, tmp_path) < 1e-5


def test_a_channel_shuffle_leaves_no_transpose(tmp_path):
    nodes = [
        node("Conv", "x,w", "a"),
        node("Reshape", "a,s5", "r"),
        node("Transpose", "r", "t", perm=[0, 2, 1, 3, 4]),
        node("Reshape", "t,s4", "u"),
        node("Conv", "u,v", "y"),
    ]
    constants = {
        "w": weight(8, 4, 3, 3),
        "v": weight(8, 8, 1, 1),
        "s5": np.array([1, 2, 4, 4, 4], np.int64),
        "s4": np.array([1, 8, 4, 4], np.int64),
    }
    given = model(nodes, {"x": [1, 4, 6, 6]}, ["y"], constants)
    assert error(given, tmp_path) < 1e-5
    prepared, _ = Tflite().prepare(given, platform())
    assert lower(prepared).transposes == 0


def test_a_flattened_image_is_put_in_order_for_its_classifier(tmp_path):
    nodes = [node("Conv", "x,w", "a"), node("Flatten", "a", "f"), node("Gemm", "f,v,b", "y", transB=1)]
    constants = {"w": weight(3, 4, 3, 3), "v": weight(5, 48), "b": weight(5)}
    assert error(model(nodes, {"x": [1, 4, 6, 6]}, ["y"], constants), tmp_path) < 1e-5


def test_products_of_computed_values_keep_their_axes(tmp_path):
    """Transposes before and behind would both vanish, were such a product free to swap rows and heads."""
    nodes = [
        node("Reshape", "x,shape", "r"),
        node("Transpose", "r", "t", perm=[0, 2, 1, 3]),
        node("MatMul", "t,k", "m"),
        node("Transpose", "m", "b", perm=[0, 2, 1, 3]),
        node("Reshape", "b,back", "y"),
    ]
    shapes = {"shape": np.array([1, 6, 4, 5]), "back": np.array([1, 6, 20])}
    assert error(model(nodes, {"x": [1, 6, 20], "k": [1, 4, 5, 5]}, ["y"], shapes), tmp_path) < 1e-5


def test_batch_normalization_is_folded_into_its_convolution(tmp_path):
    nodes = [node("Conv", "x,w", "a"), node("BatchNormalization", "a,s,b,m,v", "n"), node("Relu", "n", "y")]
    constants = {"w": weight(8, 4, 3, 3), "s": weight(8), "b": weight(8), "m": weight(8), "v": weight(8) ** 2}
    given = model(nodes, {"x": [1, 4, 6, 6]}, ["y"], constants)
    assert error(given, tmp_path) < 1e-5
    prepared, change = Tflite().prepare(given, platform())
    assert [operation.code for operation in lower(prepared).program.operations] == ["CONV_2D"]
    assert change.rewrites[0].rule == "fold-batch-normalization"


def test_an_open_batch_runs_sample_by_sample(tmp_path):
    nodes = [node("Conv", "x,w", "a"), node("GlobalAveragePool", "a", "y")]
    given = model(nodes, {"x": ["batch", 4, 6, 6]}, ["y"], {"w": weight(8, 4, 3, 3)})
    session, _ = convert(given, tmp_path)
    feeds = {"x": weight(5, 4, 6, 6)}
    np.testing.assert_allclose(session.run(feeds)["y"], Executor(given).run(feeds)["y"], rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeFailure, match="the file takes"):
        session.run({"x": weight(5, 4, 6, 7)})
    with pytest.raises(RuntimeFailure, match="is missing"):
        session.run({})


def test_open_dimensions_need_a_shape(tmp_path):
    given = model([node("Relu", "x", "y")], {"x": ["batch", 1, "h", "w"]}, ["y"])
    with pytest.raises(ModelError, match="cannot run 1 node") as refused:
        Tflite().prepare(given, platform())
    assert "/Relu:y (Relu)" in str(refused.value)
    assert "--shape" in str(refused.value)
    assert error(given, tmp_path, shape=("x=1,1,4,6",)) == 0


def test_what_cannot_be_said_names_the_node_and_the_reason():
    given = model([node("Erf", "x", "e"), node("Elu", "e", "y")], {"x": [1, 4]}, ["y"])
    problems = Tflite().check(given, platform())
    assert [(p.node, p.op_type) for p in problems] == [("/Erf:e", "Erf")]
    assert "cannot be said in TFLite" in problems[0].reason


def test_wrong_options_are_refused():
    with pytest.raises(UserError, match="no format"):
        make("tflite", format="ort")
    with pytest.raises(UserError, match="is no shape"):
        Tflite(shape=("x=1,a",)).check(model([node("Relu", "x", "y")], {"x": [1]}, ["y"]), platform())
    with pytest.raises(UserError, match="no input 'z'"):
        Tflite(shape=("z=1",)).check(model([node("Relu", "x", "y")], {"x": [1]}, ["y"]), platform())


def test_shapes_of_calibration_data_fix_open_dimensions():
    given = model([node("Relu", "x", "y")], {"x": ["batch", 1, "h", "w"]}, ["y"])
    fitted = Tflite().fitted({"x": (1, 1, 4, 6)})
    assert fitted.check(given, platform()) == []
    assert Tflite(shape=("x=1,1,2,2",)).fitted({"x": (1, 1, 4, 6)}).shape == ("x=1,1,2,2",)


def test_an_option_of_another_target_is_refused():
    with pytest.raises(UserError, match="the target onnxruntime has no option 'io'"):
        make("onnxruntime", io="int8")


def test_two_conversions_give_the_same_bytes(tmp_path):
    given = model([node("Conv", "x,w", "y")], {"x": [1, 4, 6, 6]}, ["y"], {"w": weight(8, 4, 3, 3)})
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        convert(given, tmp_path / name)
        files.append((tmp_path / name / "model.tflite").read_bytes())
    assert files[0] == files[1]


def test_an_input_that_is_an_output_is_copied(tmp_path):
    given = model([node("Identity", "x", "y"), node("Relu", "x", "z")], {"x": [2, 3]}, ["y", "z"])
    assert error(given, tmp_path) == 0


@pytest.mark.parametrize(
    ("name", "transposes", "operations"),
    [
        ("kws_dscnn_mlperf_tiny", 0, 13),
        ("resnet20_cifar10", 0, 38),
        ("mobilenetv3_cifar10", 0, 120),
        ("face_ulf_slim_320", 0, 79),
        ("yolo_fastestv2_coco", 0, 153),
    ],
)
def test_networks_of_the_zoo(zoo, tmp_path, name, transposes, operations):
    given = ir.load(zoo / "models" / f"{name}.onnx")
    session, prepared = convert(given, tmp_path)
    feeds = feeds_of(prepared)
    expected, got = Executor(given, optimize=True).run(feeds), session.run(feeds)
    for key, array in expected.items():
        assert np.abs(got[key] - array).max() < 1e-4 * np.abs(array).max()
    lowered = lower(prepared)
    assert lowered.transposes == transposes
    assert len(lowered.program.operations) <= operations
