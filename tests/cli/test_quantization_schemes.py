"""Schemes of quantization from the outside: what a recipe or an option asks for is what the file holds."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt import passes, platform

Edgeopt = Callable[..., Any]

WORDS, CHANNELS = 512, 32


def save(
    path: str,
    nodes: list[onnx.NodeProto],
    inputs: list[Any],
    weights: dict[str, np.ndarray],
    outputs: list[Any],
) -> None:
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)


def node(operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], name=f"/{output}", **attributes)


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


@pytest.fixture
def words() -> None:
    """A language model of one layer whose table of words is also what it multiplies by at the end."""
    weights = {
        "table": normal(WORDS, CHANNELS),
        "gamma": np.ones(CHANNELS, np.float32),
        "beta": np.zeros(CHANNELS, np.float32),
        "square": normal(CHANNELS, CHANNELS, scale=0.2, seed=1),
        "bias": normal(WORDS, seed=2),
        "last": np.array([1], np.int64),
    }
    nodes = [
        node("Gather", "table ids", "embedded"),
        node("LayerNormalization", "embedded gamma beta", "normed", axis=-1),
        node("MatMul", "normed square", "mixed"),
        node("Tanh", "mixed", "bent"),
        node("ReduceMean", "bent last", "mean", keepdims=0),
        node("Gemm", "mean table bias", "logits", transB=1),
    ]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 6])]
    save("words.onnx", nodes, inputs, weights, [helper.make_tensor_value_info("logits", 1, None)])
    random = np.random.default_rng(5)
    Path("words").mkdir()
    for part in ("calibration", "evaluation"):
        np.savez(f"words/{part}.npz", ids=random.integers(0, WORDS, (64, 6)))


@pytest.fixture
def image() -> None:
    """Three convolutions and a classifier."""
    weights, nodes, value = {}, [], "x"
    for index, size in enumerate((3, 16, 16)):
        weights[f"w{index}"] = normal(16, size, 3, 3, scale=(size * 9) ** -0.5, seed=index)
        weights[f"b{index}"] = normal(16, scale=0.1, seed=index)
        nodes.append(node("Conv", f"{value} w{index} b{index}", f"conv{index}", pads=[1, 1, 1, 1]))
        nodes.append(node("Relu", f"conv{index}", f"relu{index}"))
        value = f"relu{index}"
    weights |= {"w3": normal(16, 64, scale=0.25, seed=3), "w4": normal(64, 16, scale=0.2, seed=4)}
    nodes += [
        node("GlobalAveragePool", value, "pooled"),
        node("Flatten", "pooled", "flat"),
        node("MatMul", "flat w3", "wide"),
        node("Tanh", "wide", "bent"),
        node("MatMul", "bent w4", "logits"),
    ]
    inputs = [helper.make_tensor_value_info("x", 1, ["n", 3, 8, 8])]
    save("image.onnx", nodes, inputs, weights, [helper.make_tensor_value_info("logits", 1, ["n", 16])])
    Path("images").mkdir()
    for seed, part in enumerate(("calibration", "evaluation")):
        np.savez(f"images/{part}.npz", x=normal(64, 3, 8, 8, seed=10 + seed))


def recipe(model: str, data: str, steps: list[Any], device: str = "raspberry-pi-4") -> str:
    body = {
        "recipe": 1,
        "models": {model: {"path": f"{model}.onnx", "passes": steps}},
        "data": {"path": data},
        "devices": [device],
        "budget": {"fidelity": "25 dB"},
        "output": {"dir": "out"},
    }
    Path("recipe.yaml").write_text(json.dumps(body))
    return f"out/{model}/{device}/onnxruntime/model.onnx"


def held(path: str) -> dict[tuple[int, ...], list[int]]:
    """The element types of a file's constants, by shape."""
    found: dict[tuple[int, ...], list[int]] = {}
    for tensor in onnx.load(path).graph.initializer:
        found.setdefault(tuple(tensor.dims), []).append(tensor.data_type)
    return found


def quantizers(path: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Scale and zero point of each QuantizeLinear."""
    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return [
        (constants[item.input[1]], constants[item.input[2]])
        for item in graph.node
        if item.op_type == "QuantizeLinear"
    ]


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("scheme", ["static-int8", "weight-only"])
def test_a_table_that_is_read_twice_is_quantized_and_stored_once(edgeopt: Edgeopt, scheme: str) -> None:
    path = recipe("words", "words", [{"quantize": {"scheme": scheme}}])
    ran = edgeopt("run", "recipe.yaml")
    assert ran.code == 0, ran.out + ran.err  # 25 dB are met on the evaluation data
    tables = held(path).get((WORDS, CHANNELS), []) + held(path).get((CHANNELS, WORDS), [])
    assert tables == [TensorProto.INT8]
    assert Path(path).stat().st_size < 0.4 * Path("words.onnx").stat().st_size


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize(
    ("device", "dtype", "middle"), [("raspberry-pi-4", np.uint8, 128), ("raspberry-pi-5", np.int8, 0)]
)
def test_symmetric_activations_have_their_zero_in_the_middle(
    edgeopt: Edgeopt, device: str, dtype: type, middle: int
) -> None:
    path = recipe("image", "images", [{"quantize": {"activations": "symmetric"}}], device)
    ran = edgeopt("run", "recipe.yaml")
    assert ran.code == 0, ran.out + ran.err
    zeros = [zero for _, zero in quantizers(path)]
    assert len(zeros) >= 4
    assert all(zero.dtype == dtype and np.all(zero == middle) for zero in zeros)
    plain = recipe("image", "images", ["quantize"], device)
    assert edgeopt("run", "recipe.yaml", "--set", "output.dir=other").code == 0
    others = [zero for _, zero in quantizers(plain.replace("out/", "other/"))]
    assert any(np.any(zero != middle) for zero in others)


@pytest.mark.usefixtures("image")
def test_several_schemes_in_one_model(edgeopt: Edgeopt) -> None:
    steps = [
        {"weight-only": {"keep_float": ["/conv*", "/logits"]}},
        {"static-int8": {"keep_float": ["/conv2", "/logits"]}},
        {"dynamic-int8": {"keep_float": ["/conv2"]}},
    ]
    path = recipe("image", "images", steps)
    ran = edgeopt("run", "recipe.yaml")
    assert ran.code == 0, ran.out + ran.err
    shapes = held(path)
    for shape in ((16, 3, 3, 3), (16, 64)):
        assert shapes[shape] == [TensorProto.INT8]
    assert shapes[64, 16] == [TensorProto.UINT8]  # two unsigned operands saturate nowhere
    assert sorted(shapes[16, 16, 3, 3]) == [TensorProto.FLOAT, TensorProto.INT8]
    operators = {item.op_type for item in onnx.load(path).graph.node}
    assert {"DynamicQuantizeLinear", "MatMulInteger", "QuantizeLinear", "DequantizeLinear"} <= operators


@pytest.fixture
def one_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Somebody's package with a device whose runtime wants one scale per weight."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "acme_profiles.py").write_text(
        "from pathlib import Path\n"
        'DEVICES, RUNTIMES = (Path(__file__).parent / name for name in ("devices", "runtimes"))\n'
    )
    info = folder / "acme_profiles-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-profiles\nVersion: 1.0\n")
    points = (
        "[edgeopt.devices]\nacme = acme_profiles:DEVICES\n[edgeopt.runtimes]\nacme = acme_profiles:RUNTIMES\n"
    )
    (info / "entry_points.txt").write_text(points)
    for kind, name in (("devices", "raspberry-pi-4"), ("runtimes", "onnxruntime")):
        (folder / kind).mkdir()
        text = platform.profile_names(kind)[name].read_text()  # type: ignore[arg-type]
        text = text.replace(f"name: {name}", "name: acme").replace("{onnxruntime:", "{acme:")
        text = text.replace("symmetric: true, per_channel: true", "symmetric: true")
        (folder / kind / "acme.yaml").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    for remembered in (platform.profile_names, passes._installed):
        remembered.cache_clear()
    yield
    for remembered in (platform.profile_names, passes._installed):
        remembered.cache_clear()
    sys.modules.pop("acme_profiles", None)
    shutil.rmtree(info)


@pytest.mark.usefixtures("image", "one_scale")
def test_a_runtime_may_want_one_scale_per_weight(edgeopt: Edgeopt) -> None:
    recipe("image", "images", ["quantize"], "acme")
    ran = edgeopt("run", "recipe.yaml")
    assert ran.code == 0, ran.out + ran.err
    path = next(Path("out").rglob("model.onnx"))
    graph = onnx.load(path).graph
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    scales = [item.input[1] for item in graph.node if item.op_type == "DequantizeLinear"]
    assert len(scales) >= 9 and all(sizes[name] == 1 for name in scales)
