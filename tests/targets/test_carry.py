"""Files with int8 activations load in onnxruntime at every level of its optimizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from networks import Net, rows

from edgeopt import passes, targets
from edgeopt.graph.execute import Executor
from edgeopt.graph.quantization import QuantParams, Site, read, write
from edgeopt.passes import Context, Facets, Pass
from edgeopt.platform import load_platform

LEVELS = [
    onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
]
DEVICES = ["raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "generic-x86-64"]


def pooled_net(*, ends: bool = False) -> ir.Model:
    """Conv, Relu and MaxPool whose maxima are read in float, as before a transformer's blocks."""
    net = Net(["n", 3, 8, 8])
    value = net.add("Relu", net.conv(net.x, 3, 8))
    value = net.add("MaxPool", value, kernel_shape=[2, 2], strides=[2, 2])
    value = net.add("Reshape", value, net.constant(np.array([-1, 8, 16])))
    value = net.add("Transpose", value, perm=[0, 2, 1])
    return net.model(value if ends else net.add("Softmax", value))


def sessions(file: Path) -> list[onnxruntime.InferenceSession]:
    made = []
    for level in LEVELS:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.x64quantprecision", "1")
        made.append(onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]))
    return made


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ends", [False, True], ids=["read-in-float", "output"])
def test_maxima_of_integers_load_at_every_level(device: str, ends: bool, tmp_path: Path) -> None:
    platform = load_platform(device, "onnxruntime")
    model, samples = pooled_net(ends=ends), rows((3, 8, 8))
    step = passes.make("static-int8")
    assert isinstance(step, Pass)
    served = Facets(rules=platform.rules, calibration=samples, validation=samples)
    step.apply(model, Context(served, step.reads))
    target = targets.make("onnxruntime")
    prepared, change = target.prepare(model, platform)
    assert change.details["carried"] == (3 if device == "raspberry-pi-5" else 0)
    assert prepared.opset_imports[""] == 21
    target.emit(prepared, platform, tmp_path)
    feeds = next(samples.feeds())
    (expected,) = Executor(model).run(feeds).values()
    # one step of the pooled integers: kernels, and the bias as an integer, may round a half the other way
    close = {"rtol": 0, "atol": 0.03 if ends else 0.01}
    np.testing.assert_allclose(next(iter(Executor(prepared).run(feeds).values())), expected, **close)
    for session in sessions(tmp_path / "model.onnx"):
        np.testing.assert_allclose(session.run(None, feeds)[0], expected, **close)


def test_carried_values_have_the_parameters_they_came_with() -> None:
    net = Net(["n", 4, 4])
    first = net.add("Transpose", net.x, perm=[0, 2, 1])
    model = net.model(net.add("Sigmoid", net.add("Unsqueeze", first, net.constant(np.array([1])))))
    link = QuantParams(ir.DataType.INT8, np.array(0.05, np.float32), np.array(-3, np.int8))
    write(model, {Site("x"): [link]})
    prepared, _ = targets.make("onnxruntime").prepare(model, load_platform("raspberry-pi-5", "onnxruntime"))
    assert read(prepared) == {Site("x"): [link], Site("v0"): [link], Site("v1"): [link]}
