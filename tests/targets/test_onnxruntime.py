"""The target onnxruntime: integers in the file, equal bytes every time, sessions by original names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks import Net, attention_net, residual_net, rows

from edgeopt import fidelity, passes, targets
from edgeopt.errors import ModelError, OutputError, RuntimeFailure
from edgeopt.graph.execute import Executor
from edgeopt.graph.opset import raise_opset
from edgeopt.graph.quantization import read
from edgeopt.passes import Context, Facets, Pass
from edgeopt.platform import Platform, load_device, load_platform, load_runtime

PI = load_platform("raspberry-pi-4", "onnxruntime")


def quantized(model: ir.Model, shape: tuple[int, ...], scheme: str = "static-int8") -> ir.Model:
    samples = rows(shape)
    step = passes.make(scheme)
    assert isinstance(step, Pass)
    served = Facets(rules=PI.rules, calibration=samples, validation=samples)
    step.apply(model, Context(served, step.reads))
    return model


def on_version(version: str) -> Platform:
    device = load_device("raspberry-pi-4")
    return Platform(device=device, runtime=load_runtime("onnxruntime"), runtime_version=version)


def test_prepare_folds_weights_and_biases_and_keeps_the_numbers() -> None:
    model = quantized(residual_net(), (3, 8, 8))
    before = ir.to_proto(model).SerializeToString()
    prepared, change = targets.make("onnxruntime").prepare(model, PI)
    assert ir.to_proto(model).SerializeToString() == before
    assert (change.details["weights"], change.details["biases"]) == (6, 6)
    kinds = {value.dtype for value in prepared.graph.initializers.values() if value.const_value.size > 16}  # type: ignore[union-attr]
    assert kinds == {ir.DataType.INT8}
    dequantized = [node for node in prepared.graph if node.op_type == "DequantizeLinear"]
    assert all(len(node.outputs[0].uses()) >= 1 for node in dequantized)
    samples = rows((3, 8, 8))
    value = fidelity.compare(Executor(model).run, Executor(prepared).run, samples.feeds()).value
    assert value is not None and value > 30


@pytest.mark.parametrize(("version", "plain", "integer"), [("1.23.0", 23, 21), ("1.24.4", 23, 23)])
def test_onnxruntime_1_23_takes_quantized_files_at_opset_21(version: str, plain: int, integer: int) -> None:
    """It refuses QuantizeLinear of opset 23 with any type, and runs everything else of it."""
    model, reason = raise_opset(residual_net(), 23)
    assert reason is None
    prepared, _ = targets.make("onnxruntime").prepare(model, on_version(version))
    assert prepared.opset_imports[""] == plain
    prepared, _ = targets.make("onnxruntime").prepare(quantized(model, (3, 8, 8)), on_version(version))
    assert prepared.opset_imports[""] == integer


def test_prepared_quantization_can_be_read_again() -> None:
    model = quantized(residual_net(), (3, 8, 8))
    params = read(model)
    prepared, _ = targets.make("onnxruntime").prepare(model, PI)
    again = read(prepared)
    assert {where.value: chain for where, chain in again.items() if where in params} == {
        where.value: chain for where, chain in params.items()
    }


def test_a_shared_weight_gets_a_dequantizelinear_per_reader() -> None:
    net = Net(["n", 4, 32])
    weight = net.weight(32, 32)
    model = net.model(net.add("MatMul", net.add("MatMul", net.x, weight), weight))
    prepared, _ = targets.make("onnxruntime").prepare(quantized(model, (4, 32)), PI)
    products = [node.inputs[1] for node in prepared.graph if node.op_type == "MatMul"]
    assert len({id(value) for value in products}) == 2
    assert len({value.producer().inputs[0] for value in products if value is not None}) == 1  # type: ignore[union-attr]


def test_a_host_that_saturates_gets_exact_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(["n", 4, 32])
    weight = net.weight(32, 32)
    model = net.model(net.add("MatMul", net.add("MatMul", net.x, weight), weight))
    target = targets.make("onnxruntime")
    prepared, _ = target.prepare(quantized(model, (4, 32)), PI)
    target.emit(prepared, PI, tmp_path)
    monkeypatch.setattr("edgeopt.targets.onnxruntime.distortion", lambda: "this host saturates")
    session = target.open(tmp_path, {"model": "model.onnx"})  # though two products share a weight
    value = fidelity.compare(Executor(prepared).run, session.run, rows((4, 32)).feeds()).value
    assert value is not None and value > 30


def test_rows_of_a_table_are_gathered_as_integers() -> None:
    net = Net(["n", 5], dtype=ir.DataType.INT64)
    table = net.weight(40, 16)
    model = net.model(net.add("MatMul", net.add("Gather", table, net.x), net.weight(16, 16, scale=0.2)))
    feeds = {"x": np.arange(10).reshape(2, 5)}
    expected = Executor(model).run(feeds)
    step = passes.make("weight-only")
    assert isinstance(step, Pass)
    stored = model.clone()
    step.apply(stored, Context(Facets(rules=PI.rules)))
    between = Executor(stored).run(feeds)
    prepared, _ = targets.make("onnxruntime").prepare(stored, PI)
    gather = next(node for node in prepared.graph if node.op_type == "Gather")
    assert gather.inputs[0] is not None and gather.inputs[0].dtype == ir.DataType.INT8
    result = Executor(prepared).run(feeds)
    for name, array in between.items():
        np.testing.assert_array_equal(result[name], array)
        assert np.abs(array - expected[name]).max() < 0.02 * np.abs(expected[name]).max()


@pytest.mark.parametrize("kind", ["onnx", "ort"])
def test_emit_is_deterministic_and_opens(tmp_path: Path, kind: str) -> None:
    target = targets.make("onnxruntime", format=kind)
    prepared, _ = target.prepare(quantized(residual_net(), (3, 8, 8)), PI)
    written = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        emitted = target.emit(prepared, PI, folder)
        written.append((folder / emitted.main).read_bytes())
    assert emitted.main == f"model.{kind}"
    if kind == "onnx":  # onnxruntime itself orders an .ort file's tensors at random, and we say so
        assert written[0] == written[1]
    assert bool(emitted.notes) == (kind == "ort")
    feeds = next(rows((3, 8, 8)).feeds(4))
    with target.open(tmp_path / "0", {"model": emitted.main}) as session:
        assert [(spec.name, spec.dtype, spec.shape) for spec in session.inputs] == [
            ("x", "float32", ("n", 3, 8, 8))
        ]
        result = session.run(feeds)
        with pytest.raises(RuntimeFailure):
            session.run({"x": np.zeros((1, 1), np.float32)})
    expected = Executor(prepared).run(feeds)
    assert list(result) == list(expected)
    for name, array in expected.items():
        assert np.abs(result[name] - array).max() < 0.1 * np.abs(array).max()


def test_what_ships_holds_no_metadata(tmp_path: Path) -> None:
    model = quantized(residual_net(), (3, 8, 8))
    model.metadata_props["author"] = "somebody"
    model.doc_string = "secret"
    for node in model.graph:
        node.doc_string = "traceback"
        node.metadata_props["edgeopt.original_names"] = '["/a/long/name"]'
    target = targets.make("onnxruntime")
    prepared, _ = target.prepare(model, PI)
    target.emit(prepared, PI, tmp_path)
    data = (tmp_path / "model.onnx").read_bytes()
    assert not any(word in data for word in (b"somebody", b"secret", b"traceback", b"long"))
    proto = onnx.load(tmp_path / "model.onnx")
    assert not proto.graph.value_info
    onnx.checker.check_model(proto)


def test_integer_tensors_of_the_file_equal_the_prepared_ones(tmp_path: Path) -> None:
    target = targets.make("onnxruntime")
    prepared, _ = target.prepare(quantized(residual_net(), (3, 8, 8)), PI)
    target.emit(prepared, PI, tmp_path)
    shipped = [
        onnx.numpy_helper.to_array(item) for item in onnx.load(tmp_path / "model.onnx").graph.initializer
    ]
    kept = [value.const_value.numpy() for value in prepared.graph.initializers.values()]  # type: ignore[union-attr]
    assert len(shipped) == len(kept)
    for one, other in zip(shipped, kept, strict=True):
        np.testing.assert_array_equal(one, other)


def test_dynamic_products_run(tmp_path: Path) -> None:
    target = targets.make("onnxruntime")
    model = attention_net()
    prepared, _ = target.prepare(quantized(model.clone(), (6, 32), "dynamic-int8"), PI)
    target.emit(prepared, PI, tmp_path)
    session = target.open(tmp_path, {"model": "model.onnx"})
    value = fidelity.compare(Executor(model).run, session.run, rows((6, 32)).feeds()).value
    assert value is not None and value > 25


def test_a_dynamic_product_with_a_bias_runs_in_integers(tmp_path: Path) -> None:
    net = Net(["n", 32])
    model = net.model(net.add("Gemm", net.x, net.weight(24, 32), net.weight(24), transB=1))
    target = targets.make("onnxruntime")
    prepared, change = target.prepare(quantized(model.clone(), (32,), "dynamic-int8"), PI)
    assert change.details["dynamic"] == 1
    kinds = [node.op_type for node in prepared.graph]
    assert kinds == ["DynamicQuantizeLinear", "MatMulInteger", "Cast", "Mul", "Mul", "Add"]
    target.emit(prepared, PI, tmp_path)
    session = target.open(tmp_path, {"model": "model.onnx"})
    value = fidelity.compare(Executor(model).run, session.run, rows((32,)).feeds()).value
    assert value is not None and value > 30


def test_weights_of_recurrent_layers_are_widened_at_load(tmp_path: Path) -> None:
    net = Net([5, "n", 8])
    weights = [net.weight(1, 48, 8), net.weight(1, 48, 16, scale=0.2)]
    model = net.model(net.add("GRU", net.x, *weights, hidden_size=16))
    target = targets.make("onnxruntime")
    stored = model.clone()
    step = passes.make("weight-only")
    assert isinstance(step, Pass)
    step.apply(stored, Context(Facets(rules=PI.rules)))
    prepared, change = target.prepare(stored, PI)
    assert change.details["widened_at_load"] == 1  # the other weight is too small to be worth it
    feeds = {"x": np.random.default_rng(0).standard_normal((5, 2, 8)).astype(np.float32)}
    target.emit(prepared, PI, tmp_path)
    result = target.open(tmp_path, {"model": "model.onnx"}).run(feeds)
    for name, array in Executor(stored).run(feeds).items():
        np.testing.assert_allclose(result[name], array, rtol=1e-4, atol=1e-5)


def test_the_opset_is_lowered_to_what_the_version_takes() -> None:
    model = quantized(residual_net(), (3, 8, 8))
    prepared, _ = targets.make("onnxruntime").prepare(model, on_version("1.17.3"))
    assert (prepared.opset_imports[""], prepared.ir_version) == (20, 9)
    oldest, _ = targets.make("onnxruntime").prepare(model, on_version("1.10.0"))
    assert (oldest.opset_imports[""], oldest.ir_version) == (15, 8)
    onnx.checker.check_model(ir.to_proto(oldest))
    feeds = next(rows((3, 8, 8)).feeds())
    for name, array in Executor(prepared).run(feeds).items():
        np.testing.assert_array_equal(Executor(oldest).run(feeds)[name], array)


def test_reductions_lose_their_axes_input_below_opset_18() -> None:
    net = Net(["n", 3, 4])
    model = net.model(net.add("ReduceMean", net.x, net.constant(np.array([1])), keepdims=0))
    feeds = next(rows((3, 4)).feeds())
    expected = Executor(model).run(feeds)
    prepared, _ = targets.make("onnxruntime").prepare(model, on_version("1.10.0"))
    np.testing.assert_array_equal(Executor(prepared).run(feeds)["v0"], expected["v0"])


def test_what_cannot_run_is_an_error_that_names_the_node() -> None:
    net = Net(["n", 4])
    model = net.model(net.add("NoSuchOperator", net.x))
    with pytest.raises(ModelError, match="cannot run 1 node") as error:
        targets.make("onnxruntime").prepare(model, PI)
    assert "/nosuchoperator_0" in str(error.value)
    net = Net(["n", 4])
    with pytest.raises(ModelError, match="cannot run"):
        targets.make("onnxruntime").prepare(net.model(net.add("Gelu", net.x)), on_version("1.10.0"))
    with pytest.raises(OutputError, match="no format"):
        targets.make("onnxruntime", format="tflite")


def test_the_python_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = targets.make("onnxruntime")
    prepared, _ = target.prepare(residual_net(), PI)
    emitted = target.emit(prepared, PI, tmp_path)
    inputs = target.open(tmp_path, {"model": emitted.main}).inputs
    snippets = target.snippets(emitted, inputs)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippets["run.py"], "run.py", "exec"), {"__file__": str(tmp_path / "run.py")})
    assert 'session(env, "model.onnx"' in snippets["run.cpp"]


def test_a_keyword_spotter_fits_into_fifty_kilobytes(zoo: Path, tmp_path: Path) -> None:
    from edgeopt.graph.opset import raise_opset

    raised, reason = raise_opset(ir.load(zoo / "models" / "kws_dscnn_mlperf_tiny.onnx"))
    assert reason is None
    packed = np.load(zoo / "data" / "kws_mlperf_tiny" / "kws01.npz")
    calibration = packed["features"][~packed["is_eval"]][:40]
    model = raised.clone()
    for name in ("simplify", "fold-batch-norm"):
        step = passes.make(name)
        assert isinstance(step, Pass)
        step.apply(model, Context(Facets(rules=PI.rules), verify="off"))
    from networks import Rows

    served = Facets(rules=PI.rules, calibration=Rows([{"features": row[None]} for row in calibration]))
    static = passes.make("static-int8", {"observer": "mse"})
    assert isinstance(static, Pass)
    static.apply(model, Context(served, static.reads))
    target = targets.make("onnxruntime")
    prepared, _ = target.prepare(model, PI)
    target.emit(prepared, PI, tmp_path)
    assert (tmp_path / "model.onnx").stat().st_size < 50_000
    held_out = [{"features": row[None]} for row in packed["features"][packed["is_eval"]][:40]]
    session = target.open(tmp_path, {"model": "model.onnx"})
    value = fidelity.compare(Executor(raised).run, session.run, held_out).value
    assert value is not None and value > 25
