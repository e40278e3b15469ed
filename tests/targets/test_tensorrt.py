"""The target tensorrt: rules, what is refused and why, the files, and whole compilations for Jetsons."""

from __future__ import annotations

import ast
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgeopt import compile, example
from edgeopt.artifact import open_artifact
from edgeopt.errors import EdgeoptError, ModelError, PassError
from edgeopt.graph.execute import Executor
from edgeopt.graph.names import name_nodes
from edgeopt.graph.placement import place
from edgeopt.graph.quantization import Site
from edgeopt.graph.shapes import infer_shapes
from edgeopt.platform import Platform, load_device, load_platform
from edgeopt.session import TensorSpec
from edgeopt.steps import Store
from edgeopt.targets.tensorrt import Tensorrt
from edgeopt.targets.tensorrt.commands import build_script, run_script

NANO = load_platform("jetson-nano")
ORIN = load_platform("jetson-orin-nano")
DATA = {"path": str(example.DATA), "metric": "top1"}


def parsed(text: str, opset: int = 17) -> ir.Model:
    """A model from ONNX's text format, with names and shapes."""
    head = f'<ir_version: 8, opset_import: ["" : {opset}]>\n'
    model = ir.from_proto(onnx.parser.parse_model(head + text))
    name_nodes(model)
    infer_shapes(model)
    return model


def operators(path: Path) -> set[str]:
    """The operators of an ONNX file."""
    return {node.op_type for node in onnx.load(path).graph.node}


# ---- rules


def test_a_jetson_compiles_for_its_gpu_unless_told_otherwise() -> None:
    assert (NANO.runtime.name, ORIN.runtime.name) == ("tensorrt", "tensorrt")
    assert load_platform("jetson-nano", "onnxruntime").rules.quantization is not None


def test_only_what_the_gpu_runs_fast_holds() -> None:
    assert NANO.rules.precisions == ["float16", "float32"]
    assert NANO.rules.quantization is None
    assert ORIN.rules.precisions[0] == "static-int8"
    assert ORIN.rules.quantization is not None
    assert ORIN.rules.quantization.activation.symmetric


@pytest.mark.parametrize(("version", "opset"), [("8.2.1", 13), ("8.5.2", 17), ("8.6.2", 17), ("10.3.0", 20)])
def test_every_version_of_jetpack_has_rules(version: str, opset: int) -> None:
    rules = ORIN.runtime.at(version)
    assert rules.opset[1] == opset
    assert rules.runs("Conv") and rules.runs("QuantizeLinear")
    assert rules.runs("LayerNormalization") == (version >= "8.6" or version.startswith("10"))


# ---- what is refused


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("(float[N] x) => (int64[A, B] y) { y = NonZero(x) }", "has no NonZero"),
        ("(uint8[N] x) => (uint8[N] y) { y = Identity(x) }", "does not compute in uint8"),
        ("(float[N, 4] x, int64[1] k) => (float[N, A] v, int64[N, A] i) { v, i = TopK(x, k) }", "input K"),
        (
            "(float[1, 2, 8] x, float[4, 2, 3] w) => (float[A, B, C] y) { y = Conv(x, w) }",
            "weights are computed",
        ),
        (
            '(float[1, 1, 4, 4] x, float[4] s) => (float[A,B,C,D] y) { y = Resize<mode = "cubic">(x, , s) }',
            "its mode is cubic",
        ),
        ('(float[2, 2] x) => (float[A] y) { y = Einsum<equation = "ii->i">(x) }', "takes a diagonal"),
        (
            "(float[1, 1, 8, 8] x) => (float[A, B, C, D] y, int64[A, B, C, D] i) "
            "{ y, i = MaxPool<kernel_shape = [2, 2]>(x) z = Identity(i) }",
            "its output of indices is read",
        ),
    ],
)
def test_check_names_the_node_and_the_reason(body: str, reason: str) -> None:
    (problem,) = Tensorrt().check(parsed(f"agraph {body}"), NANO)
    assert reason in problem.reason
    assert problem.node and problem.hint


def test_prepare_refuses_with_the_nodes_and_a_hint() -> None:
    model = parsed("agraph (float[N] x) => (int64[A, B] y) { y = NonZero(x) }")
    with pytest.raises(ModelError, match="cannot run 1 node of the model") as caught:
        Tensorrt().prepare(model, NANO)
    assert "NonZero" in str(caught.value.where)
    assert "onnxruntime" in str(caught.value.hint)


def test_asymmetric_quantization_is_refused() -> None:
    body = """agraph (float[N, 4] x) => (float[N, 4] y)
    <float scale = {0.1}, uint8 zero = {7}> {
        q = QuantizeLinear(x, scale, zero)
        y = DequantizeLinear(q, scale, zero)
    }"""
    assert {problem.op_type for problem in Tensorrt().check(parsed(body), ORIN)} >= {"QuantizeLinear"}


def test_integers_where_the_table_lists_floats_are_told() -> None:
    model = parsed("agraph (int64[N, 4] x) => (int64[1, 1] y) { y = ReduceSum(x) }")
    _, change = Tensorrt().prepare(model, NANO)
    assert any("ReduceSum" in note and "lists floats alone" in note for note in change.notes)
    _, change = Tensorrt().prepare(model, ORIN)
    assert not change.notes


# ---- files


def test_the_script_builds_with_the_flags_of_its_version(tmp_path: Path) -> None:
    fixed = TensorSpec("x", "float32", (1, 3, 8, 8))
    old = build_script([fixed], "float16", "8.2.1")
    assert "--fp16" in old and "--workspace=1024" in old and "Shapes" not in old
    new = build_script([fixed], "int8", "10.3.0")
    assert "--int8" in new and "--memPoolSize=workspace:1024" in new
    assert "--fp16" not in build_script([fixed], "float32", "8.2.1")


def test_symbolic_dimensions_are_variables_of_the_script(tmp_path: Path) -> None:
    inputs = [
        TensorSpec("ids", "int64", ("batch", "sequence")),
        TensorSpec("mask", "int64", ("batch", "sequence")),
    ]
    script = tmp_path / "build.sh"
    script.write_text(build_script(inputs, "float16", "8.2.1"))
    trtexec = tmp_path / "trtexec"
    trtexec.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    trtexec.chmod(0o755)
    base = {"PATH": os.environ["PATH"], "TRTEXEC": str(trtexec)}
    missing = subprocess.run(["sh", script], env=base, capture_output=True, text=True, check=False)
    assert missing.returncode and "SEQUENCE" in missing.stderr
    env = {**base, "SEQUENCE": "64", "MAX_BATCH": "4"}
    ran = subprocess.run(["sh", script], env=env, capture_output=True, text=True, check=True).stdout.split()
    assert "--minShapes=ids:1x64,mask:1x64" in ran
    assert "--optShapes=ids:1x64,mask:1x64" in ran
    assert "--maxShapes=ids:4x64,mask:4x64" in ran


@pytest.mark.parametrize("version", ["8.2.1", "10.3.0"])
def test_the_program_is_python_3_6_for_that_api(version: str) -> None:
    text = run_script([TensorSpec("x", "float32", ("batch", 3))], version)
    ast.parse(text, feature_version=(3, 6))
    assert '"x": (1, 3)' in text
    assert ("execute_async_v3" in text) == version.startswith("10")


# ---- whole compilations


def test_the_example_for_the_nano_is_a_float16_plan_at_opset_13(tmp_path: Path) -> None:
    outcome = compile(
        str(example.MODEL), "jetson-nano", data=DATA, output=tmp_path / "out", store=Store(tmp_path / "store")
    )
    assert outcome.target == "tensorrt"
    artifact = open_artifact(tmp_path / "out")
    artifact.verify()
    model = onnx.load(tmp_path / "out" / "model.onnx")
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 13)]
    assert all(NANO.rules.runs(name) for name in operators(tmp_path / "out" / "model.onnx"))
    assert {item.data_type for item in model.graph.initializer} <= {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.INT64,
    }
    assert "--fp16" in (tmp_path / "out" / "build.sh").read_text()
    assert os.access(tmp_path / "out" / "build.sh", os.X_OK)
    assert artifact.manifest["precision"] == "float16"
    assert any("no engine was built or run here" in note for note in outcome.notes)
    images = np.load(example.DATA / "evaluation.npz")["image"][:64]
    with Executor(ir.load(example.MODEL)) as original:
        expected = original.run({"image": images})["logits"]
    got = artifact.open()["model"].run({"image": images})["logits"]
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_example_for_the_orin_is_symmetric_int8_without_quantized_biases(tmp_path: Path) -> None:
    compile(
        str(example.MODEL),
        "jetson-orin-nano",
        data=DATA,
        scheme="static-int8",
        output=tmp_path / "out",
        store=Store(tmp_path / "store"),
    )
    path = tmp_path / "out" / "model.onnx"
    model = onnx.load(path)
    types = {item.name: item for item in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        zero = onnx.numpy_helper.to_array(types[node.input[2]])
        assert zero.dtype == np.int8 and not zero.any()
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2:
            assert types[node.input[2]].data_type == onnx.TensorProto.FLOAT
            assert makers[node.input[0]].op_type == "DequantizeLinear"
    assert not Tensorrt().check(ir.load(path), ORIN)
    assert "--int8" in (tmp_path / "out" / "build.sh").read_text()


def test_the_residual_alone_is_quantized_for_a_sum() -> None:
    body = """agraph (float[1, 1, 8, 8] x) => (float[1, 1, 8, 8] y)
    <float[1, 1, 1, 1] w = {2}, float[1, 1, 1, 1] v = {3}> {
        a = Conv(x, w)
        r = Relu(a)
        b = Conv(r, v)
        s = Add(b, x)
        y = Relu(s)
    }"""
    model = parsed(body)
    assert ORIN.rules.quantization is not None
    placement = place(model, ORIN.rules.quantization)
    assert set(placement.activations) == {Site("x"), Site("r")}


def test_tensorrt_8_takes_float_weights_before_the_quantization() -> None:
    device = load_device("jetson-orin-nano")
    platform = Platform(device=device, runtime=ORIN.runtime, runtime_version="8.5.2")
    body = """agraph (float[1, 4] x) => (float[1, 2] y)
    <float scale = {0.1}, int8 zero = {0}, float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}> {
        q = QuantizeLinear(w, scale, zero)
        d = DequantizeLinear(q, scale, zero)
        y = MatMul(x, d)
    }"""
    kept, _ = Tensorrt().prepare(parsed(body), platform)
    assert [node.op_type for node in kept.graph] == ["QuantizeLinear", "DequantizeLinear", "MatMul"]
    folded, _ = Tensorrt().prepare(parsed(body), ORIN)
    assert [node.op_type for node in folded.graph] == ["DequantizeLinear", "MatMul"]


def test_decompositions_of_a_quantized_model_are_proved_in_float() -> None:
    platform = Platform(device=load_device("jetson-orin-nano"), runtime=ORIN.runtime, runtime_version="8.5.2")
    body = """agraph (float[N, 4] x) => (float[N, 4] y)
    <float scale = {0.1}, int8 zero = {0}, float[4] gain = {1, 2, 3, 4}> {
        n = LayerNormalization(x, gain)
        q = QuantizeLinear(n, scale, zero)
        d = DequantizeLinear(q, scale, zero)
        y = Gelu(d)
    }"""
    prepared, change = Tensorrt().prepare(parsed(body, 20), platform)
    assert prepared.opset_imports[""] == 17
    assert {rewrite.rule for rewrite in change.rewrites} == {"decompose LayerNormalization", "decompose Gelu"}
    assert change.details["error"] < 1e-5
    assert any("exceed float16" in note for note in change.notes)


def test_large_weights_lie_in_the_file_itself(tmp_path: Path) -> None:
    body = "agraph (float[N, 640] x, float[640, 512] w) => (float[N, 512] y) { y = MatMul(x, w) }"
    model = ir.to_proto(parsed(body))
    weight = model.graph.input.pop()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((640, 512), np.float32), weight.name))
    compile(model, "jetson-nano", output=tmp_path / "out", store=Store(tmp_path / "store"))
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    (tmp_path / "store").rename(tmp_path / "gone")
    path = tmp_path / "elsewhere" / "model.onnx"
    assert path.stat().st_size > 640 * 512 * 4
    assert not onnx.load(path, load_external_data=False).graph.initializer[0].external_data


def test_int8_on_the_nano_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgeoptError, match="runs no integer kernels"):
        compile(str(example.MODEL), "jetson-nano", data=DATA, scheme="static-int8", output=tmp_path / "out")


def test_a_float16_engine_keeps_no_single_node_in_float(tmp_path: Path) -> None:
    with pytest.raises(PassError, match="as a whole"):
        compile(
            str(example.MODEL),
            "jetson-nano",
            scheme="float16",
            keep_float=["*"],
            output=tmp_path / "out",
            store=Store(tmp_path / "store"),
        )
